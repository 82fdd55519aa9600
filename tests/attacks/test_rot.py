"""A disk that rots: the same bits, or one clear error; never another model in silence."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.authority.ledger import read_ledger
from client.authority.receipts import read_receipts
from client.authority.records import open_records
from client.service.agent import Agent
from common.errors import CallosumError, DamagedError
from common.network.building import arrays_of, build, plan_of
from common.protocol.orders import Order, digest_of
from common.protocol.wire import open_arrays, spool
from common.seeding import seed_of
from server.run import read_run


def flipped(path: Path, share: float) -> None:
    """Flip one bit at a share of the file's length."""
    data = bytearray(path.read_bytes())
    data[int(share * (len(data) - 1))] ^= 4
    path.write_bytes(data)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def result(run: Path) -> dict[str, str]:
    files = [*run.rglob("final.safetensors"), run / "results.csv"]
    return {str(file.relative_to(run)): sha(file) for file in files}


@pytest.fixture(scope="module")
def finished(module_federation: Any) -> Any:
    """A finished run of three rounds with a judge; tests copy its folder."""
    made = module_federation({
        "objective.targets": ["age"], "sites": {"train": ["alpha", "beta"], "heldout": ["omega"]},
        "evaluation.head": False, "pretraining.rounds": 3,
    })  # fmt: skip
    made.simulate()
    return made


@pytest.fixture
def run(finished: Any) -> Iterator[Path]:
    folder = finished.folder / "copy"
    shutil.copytree(finished.folder / "run", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.7, 1.0])
def test_a_rotten_final_model_is_made_again_to_the_same_bits(
    finished: Any, run: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is what everybody takes away; the round before it and its replies are still there."""
    wanted = result(run)
    flipped(run / "checkpoints" / "final.safetensors", share)
    finished.simulate("copy")
    assert result(run) == wanted
    assert "final.safetensors is damaged" in capsys.readouterr().err
    assert (run / "checkpoints" / "final.damaged").exists()


def test_a_rotten_checkpoint_gives_way_to_the_one_before(finished: Any, run: Path) -> None:
    """The run goes on from one round earlier, whose replies are spooled: no site works again."""
    wanted = result(run)
    (run / "checkpoints" / "final.safetensors").unlink()
    flipped(run / "checkpoints" / "0002.safetensors", 0.9)
    flipped(run / "rounds" / "0002" / "replies" / "alpha.safetensors", 0.9)  # and a reply as well
    finished.simulate("copy")
    assert result(run) == wanted


def test_rotten_checkpoints_alone_are_one_error_and_then_begin_anew(
    finished: Any, run: Path
) -> None:
    """Beginning anew costs a night; a person is told before it is done."""
    wanted = result(run)
    for path in (run / "checkpoints").glob("*.safetensors"):
        flipped(path, 0.5)
    with pytest.raises(DamagedError, match="all checkpoints in .* trains federated again"):
        finished.simulate("copy")
    finished.simulate("copy")
    assert result(run) == wanted


def test_a_reply_that_rots_before_it_is_averaged_is_asked_for_again(
    finished: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reply's arrival and the last site's lie hours."""
    from server.federation.rounds import Rounds

    wanted, averaged, times = result(run), Rounds._averaged, []

    def rotting(self: Any, number: int, outcome: Any, now: Any) -> Any:
        times.append(number)
        if len(times) == 1:
            flipped(run / f"rounds/{number:04d}/replies/beta.safetensors", 0.9)
        return averaged(self, number, outcome, now)

    monkeypatch.setattr(Rounds, "_averaged", rotting)
    (run / "checkpoints" / "final.safetensors").unlink()
    finished.simulate("copy")
    assert times == [3, 3]
    assert result(run) == wanted


@pytest.mark.parametrize("name", ["study.json", "provenance.json", "rounds/0002/record.json"])
def test_a_rotten_table_of_a_run_is_one_error(run: Path, name: str) -> None:
    """Another seed is another model; another run id is another order, paid for once more."""
    sound = (run / name).read_bytes()
    for place in range(0, len(sound), 3):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << place % 7
        (run / name).write_bytes(damaged)
        if json_or_none(damaged) == json.loads(sound):
            continue  # a space became another kind of space
        with pytest.raises(CallosumError):
            read_run(run).federated.records()


def json_or_none(data: bytes | bytearray) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


# At a site that keeps books.


@pytest.fixture
def alpha(federation: Any) -> Iterator[tuple[Agent, Order, Any]]:
    """An agent with records, and an order to train."""
    made = federation({"sites": {"train": ["alpha"]}, "objective.targets": ["age"]})
    agent = made.agent("alpha")
    network = build(agent.study, seed=seed_of(agent.study.seed, "initial"))
    arrays, plan = arrays_of(network), plan_of(network, agent.study.aggregation.normalisation)
    moving = {name: array for name, array in arrays.items() if plan[name].travels}
    order = Order(
        kind="train", study=agent.study.digest, run="c" * 64, site="alpha", round=1,
        arrays=digest_of(moving),
        base=digest_of({n: a for n, a in arrays.items() if n not in moving}),
    )  # fmt: skip
    with open_records(agent.site) as records:
        yield Agent(agent.site, agent.study, agent.cohort, records=records), order, arrays


def test_a_kept_report_that_rots_is_worked_anew_to_the_same_answer(
    alpha: tuple[Agent, Order, Any],
) -> None:
    """It costs an epoch, no privacy, and nobody outside notices."""
    agent, order, arrays = alpha
    _, sent = agent.answer(order, arrays)
    [kept] = (agent.site.state / "runs").rglob("report-0001.safetensors")
    for share in (0.01, 0.5, 0.99):
        flipped(kept, share)
        again, anew = agent.answer(order, arrays)
        assert again.refusal == ""
        assert digest_of(anew) == digest_of(sent)
    assert len(read_ledger(agent.site.state / "ledger.sqlite").exposures) == 1
    assert len({r["content"] for r in read_receipts(agent.site.state / "receipts")}) == 1


def test_a_kept_report_that_contradicts_the_ledger_is_worked_anew(
    alpha: tuple[Agent, Order, Any],
) -> None:
    """A cache from a backup, sound in itself, would fail the order for ever."""
    agent, order, arrays = alpha
    report, sent = agent.answer(order, arrays)
    [kept] = (agent.site.state / "runs").rglob("report-0001.safetensors")
    spool(kept, report, {name: array + np.float32(1) for name, array in sent.items()})
    again, anew = agent.answer(order, arrays)
    assert again.refusal == ""
    assert digest_of(anew) == digest_of(sent)
    with open_arrays(kept) as file:
        assert digest_of(file.all()) == digest_of(sent)
