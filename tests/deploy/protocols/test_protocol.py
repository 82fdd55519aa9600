"""What a protocol file says becomes a list of cells, the same each time, or one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.documentation import table
from common.errors import SettingError
from common.settings import keys
from common.study import parse_study
from deploy.protocols.protocol import (
    Cell,
    Overrides,
    Protocol,
    begins_from,
    cells,
    chosen,
    load_protocol,
)
from deploy.protocols.studies import TASKS, check_cells, group_of, site_names, tables_of

OURS = Path(__file__).parents[3] / "deploy" / "studies" / "pretraining-sources.toml"
EVERY = ["scratch", "video", "synthetic", "supervised", "simclr", "masked"]


def test_the_published_protocol_has_every_cell_that_the_paper_asks_for() -> None:
    """Six beginnings, five shares, three seeds, three tasks; what others begin from comes first."""
    protocol = load_protocol(OURS, small=False)
    every = cells(protocol)
    networks = len(protocol.architectures)
    assert (len(protocol.shares), len(protocol.seeds)) == (5, 3)
    assert list(protocol.initialisations) == EVERY
    before, after = every[: networks * 5], every[networks * 5 :]
    assert not any(cell.task for cell in before)
    assert len(after) == networks * 6 * 5 * 3 * 3
    assert len({cell.name for cell in every}) == len(every)
    assert {begins_from(cell) for cell in after} - {None} == set(before)


@pytest.mark.parametrize("small", [False, True])
def test_every_cell_of_our_protocol_is_a_study_that_can_be_read(small: bool) -> None:
    """A mistake in the file must not wait for the night's last cell."""
    protocol = load_protocol(OURS, small=small)
    check_cells(protocol, cells(protocol), OURS)


def test_the_small_protocol_has_every_beginning_and_a_transformer_beside_a_cnn() -> None:
    """It is there to show the whole comparison, at a size for two cores."""
    protocol = load_protocol(OURS, small=True)
    assert list(protocol.initialisations) == EVERY
    assert {"sfcn", "vit"} <= set(protocol.architectures)
    assert len(protocol.shares) >= 2
    assert protocol.grid.spacing_mm == 10.0


def test_cells_are_named_by_what_sets_them_apart_and_go_seed_by_seed(protocol_file: Any) -> None:
    """Names are folders: the same file must lead to the same ones; an early end has whole pairs."""
    file = protocol_file(seeds=[2, 1], shares=[1.0, 0.05], tasks=["pd"])
    names = [cell.name for cell in cells(load_protocol(file, small=False))]
    assert names == [
        "pretraining-sfcn-supervised",
        "pd-sfcn-scratch-5pc-2", "pd-sfcn-supervised-5pc-2",
        "pd-sfcn-scratch-100pc-2", "pd-sfcn-supervised-100pc-2",
        "pd-sfcn-scratch-5pc-1", "pd-sfcn-supervised-5pc-1",
        "pd-sfcn-scratch-100pc-1", "pd-sfcn-supervised-100pc-1",
    ]  # fmt: skip


def test_asking_for_a_cell_asks_for_what_it_begins_from(protocol_file: Any) -> None:
    """Alone it would fail for lack of a checkpoint."""
    every = cells(load_protocol(protocol_file(), small=False))
    found = chosen(every, ["age-sfcn-supervised-*"])
    assert [cell.name for cell in found] == [
        "pretraining-sfcn-supervised", "age-sfcn-supervised-100pc-1",
    ]  # fmt: skip
    assert chosen(every, []) == every
    with pytest.raises(SettingError, match=r"--only is age-vit.*no cell is called so"):
        chosen(every, ["age-vit*"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sheds": [1]}, "sheds is not a known key; did you mean seeds?"),
        ({"seeds": []}, "seeds is empty"),
        ({"shares": [0.5, 0.5]}, "shares lists 50pc twice"),
        ({"shares": [0.0]}, "shares.0 is 0"),
        ({"initialisations": ["scratch", "dreams"]}, "initialisations.1"),
        ({"tasks": ["ad", "ms"]}, "tasks.1"),
        ({"small": {"seeds": [3, 3]}}, "small: seeds lists 3 twice"),
        ({"small": {"downstream": {"rounds": 0}}}, "small.downstream"),
        ({"architectures": {"ViT": {"backbone": {}, "learning_rate": 0.1}}}, "architectures"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused_with_its_key(
    protocol_file: Any, changes: Any, words: str
) -> None:
    """Hours of cells follow from one file: whatever is wrong with it is said before the first."""
    with pytest.raises(SettingError, match=words.replace("?", r"\?")):
        load_protocol(protocol_file(**changes), small=False)


def test_a_network_that_no_study_knows_is_refused_before_any_cell(protocol_file: Any) -> None:
    """With the network's name in the protocol, since no study file is there yet to point at."""
    changes = {"architectures.sfcn.backbone": {"name": "sfcn", "chanels": [2]}}
    file = protocol_file(**changes)
    protocol = load_protocol(file, small=False)
    with pytest.raises(SettingError, match=r"architectures.sfcn: backbone.chanels is not a known"):
        check_cells(protocol, cells(protocol), file)


def test_small_replaces_keys_whole_and_leaves_the_rest(protocol_file: Any) -> None:
    """A network that the small protocol does not name must not slip in from the whole one."""
    other = {"backbone": {"name": "resnet"}, "learning_rate": 0.1}
    file = protocol_file(small={"architectures": {"resnet": other}, "seeds": [7]})
    small = load_protocol(file, small=True)
    assert (list(small.architectures), small.seeds) == (["resnet"], (7,))
    assert small.grid == load_protocol(file, small=False).grid


def study_of(protocol: Any, **cell: Any) -> Any:
    made = Cell(architecture="sfcn", **cell)
    return parse_study(tables_of(protocol, made), Path(f"{made.name}.toml"))


def test_cells_of_a_seed_differ_by_their_beginning_alone(protocol_file: Any) -> None:
    """Else a difference to scratch would be of other people, other steps, or other weights."""
    protocol = load_protocol(protocol_file(), small=False)
    one, other = (
        study_of(protocol, source=source, task="ad", share=0.5, seed=3).model_dump()
        for source in ("scratch", "masked")
    )
    assert {key for key in one if one[key] != other[key]} == {"name"}
    assert one["splits"]["share"] == 0.5


def test_fewer_people_are_trained_on_for_as_many_steps(protocol_file: Any) -> None:
    """Else little data would also be little training, and any head start would look like a gain."""
    protocol = load_protocol(protocol_file(**{"downstream.most_local_epochs": 6}), small=False)
    epochs = [
        study_of(protocol, source="scratch", task="ad", share=s).pretraining.local_epochs
        for s in (1.0, 0.5, 0.25, 0.1)
    ]
    assert epochs == [1, 2, 4, 6]  # no more than most_local_epochs


def test_whoever_judges_took_part_in_nothing(protocol_file: Any) -> None:
    """The unseen hospital is in no pretraining, and a task's hospitals are its own."""
    protocol = load_protocol(protocol_file(initialisations=EVERY, tasks=[*TASKS]), small=False)
    every = cells(protocol)
    trained = {name for cell in every for name in site_names(cell)[0]}
    judges = {name for cell in every for name in site_names(cell)[1]}
    assert judges == {"ad-unseen", "pd-unseen", "age-unseen"}
    assert not judges & trained
    assert {group_of(cell) for cell in every if not cell.task} == {"films", "heads", "pretraining"}


def test_every_key_of_a_protocol_is_in_the_operators_guide() -> None:
    """A key that the guide lacks is a key that nobody finds."""
    rows = [row for row in keys(Protocol) if not row[0].startswith("small.")]
    assert table(rows) in (OURS.parents[1] / "README.md").read_text()
    assert set(Overrides.model_fields) == set(Protocol.model_fields) - {"name", "small"}
