"""Bytes of every order and report: pretraining whole and by adapters, fine-tuning by each method.

Counted on messages as Flower carries them, arrays and text together, in a run of the local engine.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w
from flwr.app import Message, RecordDict

from common.network.size import outline
from common.protocol.wire import unpack_order
from common.study import Study, parse_study
from deploy import local
from deploy.hospitals.dataset import write_hospitals
from tests.conftest import BRAINS, FEATURES, overridden, write_table_site

WIDTH = 512  # of both layers: 266,000 numbers, of which adapters of rank 2 are one in a hundred
SITES = {"alpha": "train", "beta": "train", "omega": "heldout"}
METHODS = ["pretrained/full", "pretrained/lora", "pretrained/frozen", "scratch/full", "linear"]


def table() -> str:
    """Two runs: of the whole network, and of adapters on a frozen one."""
    lora = {"pretraining.trains": "lora", "pretraining.rank": 2}
    lines = [
        f"Two layers of {WIDTH}, two sites that train, one that judges; kB of one message.",
        "",
        "| network | order | first: down | up | later: down | up |",
        "|---|---|---|---|---|---|",
    ]
    for title, changes in (("whole", {}), ("frozen, with LoRA of rank 2", lora)):
        for what, messages in _counted(changes).items():
            first, later = messages[0], messages[-1]
            cells = [f"{size / 1e3:,.1f}" for size in (*first, *later)]
            lines.append(f"| {title} | {what} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_vit()])


def _vit() -> list[str]:
    """ViT-B/16 at 96^3 by additions of rank 8, over the bytes of the whole network."""
    changes = {
        "data": {"kind": "t1w", "shape": [96, 96, 96], "spacing_mm": 2.0},
        "backbone": {"name": "vit"},
        "pretraining": {
            "rounds": 2, "batch_size": 4, "warmup": 0.1, "learning_rate": 1e-4, "trains": "lora",
            "rank": 8,
        },
        "sites": {"train": ["alpha", "beta"]},
    }  # fmt: skip
    tables = overridden(BRAINS, changes)
    whole = sum(4 * p.numel() for p in outline(_whole(tables)).parameters())
    with _counting() as seen, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_hospitals(
            folder / "sites", names=["alpha", "beta"], participants=20, spacing_mm=14.0, seed=1
        )
        (folder / "study.toml").write_text(tomli_w.dumps(tables))
        local.simulate(folder / "study.toml", folder / "sites", folder / "run")
    first, *_, last = seen["train"]
    cells = [f"{size / 1e6:,.2f} ({size / whole:.2%})" for size in (*first, *last)]
    return [
        f"ViT-B/16 at 96^3, {whole / 1e6:.1f} MB; MB of one message, and its share of the whole network.",
        "",
        "| network | order | first: down | up | later: down | up |",
        "|---|---|---|---|---|---|",
        f"| frozen, with LoRA of rank 8 | train | {' | '.join(cells)} |",
    ]


def _whole(tables: dict[str, Any]) -> Study:
    return parse_study(overridden(tables, {"pretraining.trains": "full"}), Path("study.toml"))


class CountingGrid(local.LocalGrid):
    """The local engine, noting the bytes of every message to and from one site, by order."""

    seen: dict[str, list[tuple[int, int]]]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = dict(self._waiting)
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            sent = asked[reply.metadata.reply_to_message_id].content
            order, _ = unpack_order(sent)
            if order.site in ("alpha", "omega"):
                way = "/".join(word for word in (order.init, order.method) if word)
                what = f"{order.kind} {way}".strip()
                self.seen[what].append((_bytes(sent), _bytes(reply.content)))
        return replies


def _bytes(content: RecordDict) -> int:
    arrays = sum(len(a.data) for record in content.array_records.values() for a in record.values())
    text = sum(
        len(str(value)) for record in content.config_records.values() for value in record.values()
    )
    return arrays + text


def _counted(more: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
    task = {"name": "ill", "target": "diagnosis", "methods": METHODS, "epochs": 1,
            "learning_rates": [0.01]}  # fmt: skip
    changes = {
        "backbone": {"name": "mlp", "hidden": [WIDTH, WIDTH], "dropout": 0.0},
        "sites": {"train": ["alpha", "beta"], "heldout": ["omega"]},
        "pretraining.rounds": 3,
        "finetuning": [task],
        **more,
    }
    with _counting() as seen, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for site, role in SITES.items():
            write_table_site(folder, site, role=role, participants=40)
        (folder / "study.toml").write_text(tomli_w.dumps(overridden(FEATURES, changes)))
        local.simulate(folder / "study.toml", folder / "sites", folder / "run")
    return seen


@contextmanager
def _counting() -> Iterator[dict[str, list[tuple[int, int]]]]:
    CountingGrid.seen = defaultdict(list)
    plain, local.LocalGrid = local.LocalGrid, CountingGrid  # type: ignore[misc]
    try:
        yield CountingGrid.seen
    finally:
        local.LocalGrid = plain  # type: ignore[misc]
