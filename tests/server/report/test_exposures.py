"""What the page says was spent of privacy: every order that looked at a site's people is counted."""

from __future__ import annotations

from pathlib import Path

from server.report.exposures import Exposure, exposures

ANSWERS = (
    "settle/0000/amber", "settle/0001/amber", "comparisons/pooled/settle/0000/pooled",
    "labels/amber", "shortcuts/shortcuts-after/0/amber", "finetuning/ill/scratch-full/amber",
    "protocols/draws/linear-k100/amber", "protocols/draws/linear-k300/amber",
    "evaluation/federated/elm", "evaluation/pooled/elm",
)  # fmt: skip


def test_every_order_about_people_is_counted_at_its_site(tmp_path: Path) -> None:
    """Sums and protocols leave a site as rounds do; left out, a site would seem hardly asked."""
    for answer in ANSWERS:
        file = tmp_path / f"{answer}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    records = {"federated": [{"answered": {"amber": {}}}] * 3}
    assert exposures(tmp_path, records, ["amber", "birch", "elm"]) == [
        Exposure(site="amber", summed=4, rounds=3, tuned=3, judged=0),
        Exposure(site="birch", summed=0, rounds=0, tuned=0, judged=0),
        Exposure(site="elm", summed=0, rounds=0, tuned=0, judged=2),
        Exposure(site="pooled", summed=1, rounds=0, tuned=0, judged=0),
    ]
