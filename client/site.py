"""The hospital's own file: where its data are, what its columns mean, what it allows.

It never leaves the site, and it may only tighten what a study asks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, SerializeAsAny, model_validator

from client.hours import check_window
from common import catalogue
from common.errors import SettingError
from common.protocol.orders import OrderKind
from common.sections import Name
from common.settings import Table, checked, line_of, read_toml

LOCAL_DISK: Final = "set folder in the site file to a place on a local disk"


class Column(Table):
    """Where a target's labels are and what the site's codes mean in the study's words."""

    column: str = Field("", description="Column of the site's table that holds the target.")
    value: str = Field(
        "",
        description="Instead of a column: what holds for every scan of the site, such as the "
        "state 'rest' where nothing else was acquired.",
    )
    codes: dict[str, str] = Field(
        {}, description="Site code to study class, such as {F = 'female'}; empty: same words."
    )
    missing: tuple[str, ...] = Field(
        ("", "n/a", "N/A", "NA", "NaN", "nan", "-9999", "-9999.0"),
        description="Entries that mean: not known.",
    )
    factor: float = Field(1.0, description="Multiplied in, to reach the study's unit.")

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if bool(self.column) == bool(self.value):
            given = "both are given" if self.column else "neither is given"
            raise ValueError(f"column or value is needed; {given}")
        return self

    @property
    def place(self) -> str:
        """Where the labels are, in words."""
        return f'value "{self.value}"' if self.value else f"column {self.column}"


class Device(Table):
    """What the site computes on."""

    kind: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU if any.")
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0,
        description="CPU threads of training; 0 takes the machine's cores. Small networks gain "
        "nothing by a second one, and the local engine then lets several sites work at a time.",
    )
    loaders: Annotated[int, Field(ge=0, le=64)] = Field(
        0,
        description="Threads that make and augment samples ahead of training; 0 takes half of the "
        "cores, at most eight.",
    )

    workers: Annotated[int, Field(ge=0, le=256)] = Field(
        0,
        description="Processes that do the repeats of a protocol, each with one thread and memory "
        "for a step of its own; 0 takes one for each GPU, or for each core as far as memory goes.",
    )

    @property
    def loader_threads(self) -> int:
        """Threads that make and augment samples."""
        return self.loaders or min(8, max(1, (os.cpu_count() or 1) // 2))


class Policy(Table):
    """What the site allows, whatever a study asks."""

    minimum_cohort: Annotated[int, Field(ge=1)] = Field(
        10, description="Fewest usable participants for the site to take part at all."
    )
    minimum_support: Annotated[int, Field(ge=1)] = Field(
        10, description="Fewest participants behind any number that leaves the site."
    )
    orders: tuple[OrderKind, ...] = Field(
        (
            "census",
            "overlap",
            "settle",
            "keys",
            "shares",
            "train",
            "unmask",
            "finetune",
            "protocol",
            "judge",
            "evaluate",
        ),
        description="Kinds of order it carries out.",
    )
    secure_sums_only: bool = Field(
        False,
        description="Train only in studies of secure sums, whose coordinator sees no site's own "
        "update.",
    )
    most_exposures: Annotated[int, Field(ge=0)] = Field(
        1000,
        description="Most training orders (train, finetune, protocol, linear, cross) that it "
        "carries out, over all studies and runs; 0 sets no limit.",
    )
    epsilon: Annotated[float, Field(ge=0, le=1e6)] = Field(
        0.0,
        description="Most that private training may cost any participant in her life, over all "
        "studies and runs; an order that would cost more is declined. 0: no cap of the site's. "
        "Studies without privacy have no epsilon; most_exposures is what limits them.",
    )
    sums_of_few: bool = Field(
        False,
        description="Let sums leave (settle) that hold more numbers than so few people can hide "
        "behind, such as products of many columns; only for data that are public anyway.",
    )
    most_judgements: Annotated[int, Field(ge=0)] = Field(
        3,
        description="How often each model of a study may be judged here, each time as another "
        "run's; 0 sets no limit.",
    )
    largest_report_mb: Annotated[float, Field(gt=0)] = Field(
        1000.0, description="Largest report that leaves, in MB (1,000,000 bytes)."
    )
    largest_update_norm: Annotated[float, Field(ge=0)] = Field(
        1000.0, description="Largest Euclidean norm of a training report's update; 0 sets no limit."
    )
    largest_drift: Annotated[float, Field(ge=0)] = Field(
        30.0,
        description="How many times as far as its own last update the shared arrays may have moved "
        "since; 0 sets no limit.",
    )
    largest_network: Annotated[int, Field(ge=1)] = Field(
        250_000_000,
        description="Most numbers in a network that a study asks for, with what fine-tuning adds; "
        "of more, the study is not approved and none is built.",
    )
    largest_step_gb: Annotated[float, Field(gt=0)] = Field(
        64.0,
        description="Most memory in GB that one step of a study's training may take, by the "
        "shapes of its samples and layers.",
    )
    hours: tuple[Annotated[str, AfterValidator(check_window)], ...] = Field(
        (),
        description="When orders are taken, in local time, such as ['Mon-Fri 19:00-07:00', "
        "'Sat,Sun 00:00-24:00']; empty: always.",
    )

    @property
    def largest_report_bytes(self) -> int:
        """The largest report in bytes."""
        return round(self.largest_report_mb * 1_000_000)


class Site(Table):
    """One hospital."""

    name: Name = Field(description="The site's name, as in the study.")
    role: Literal["train", "heldout"] = Field(
        description="train: contributes to weights. heldout: only judges."
    )
    folder: str = Field(".callosum", description="Where prepared data and cached reports are kept.")
    secret: str = Field(
        "",
        description="Decides, with a study's salt, who of your participants trains, chooses and "
        "tests; empty: drawn once and kept in the folder. Set it only where the same splits must "
        "come about again elsewhere.",
    )
    overlap_key: str = Field(
        "",
        description="A secret that all sites of a consortium agree on and the coordinator does not "
        "know: tokens of scans, by which sites' overlaps are counted, are made with it. Needed "
        "where fewer than 16 numbers of a sample differ much from person to person; sites with "
        "other keys cannot be compared.",
    )
    person_column: str = Field(
        "",
        description="Column of the site's tables with an identifier that people keep at every "
        "hospital, such as a national number. Tokens of it, made with overlap_key, show the same "
        "person at two sites whatever the scan; it never leaves itself.",
    )
    data: SerializeAsAny[BaseModel] = Field(description="Where the data are.")
    targets: dict[str, Column] = Field({}, description="How columns map to targets.")
    device: Device = Field(Device(), description="What it computes on.")
    policy: Policy = Field(Policy(), description="What it allows.")
    file: Path = Field(Path("site.toml"), exclude=True, description="The file itself; not a key.")

    @model_validator(mode="after")
    def _identifiers_need_a_key(self) -> Self:
        if self.person_column and not self.overlap_key:
            raise ValueError(
                f"person_column is {self.person_column} and overlap_key is empty; identifiers are "
                "easily guessed, and need a key that the coordinator does not know"
            )
        return self

    @property
    def root(self) -> Path:
        """Folder that relative paths of the file start from."""
        return self.file.parent

    @property
    def state(self) -> Path:
        """Folder that Callosum writes to at this site."""
        return self.root / self.folder


def load_site(path: Path) -> Site:
    """Read and check a site file.

    Raises
    ------
    SettingError
        Naming every fault with its key, line and remedy.
    """
    table = read_toml(path)
    if "file" in table:
        raise SettingError(f"file is not a known key ({path}{line_of(path, 'file')})")
    data = table.get("data")
    if isinstance(data, dict):
        kind = data.get("kind")
        if not isinstance(kind, str):
            known = ", ".join(catalogue.names("kinds"))
            where = f"({path}{line_of(path, 'data')})"
            raise SettingError(f"data.kind is missing; installed: {known} {where}")
        try:
            model = catalogue.load("kinds", kind).Site
        except SettingError as error:
            where = f"({path}{line_of(path, 'data.kind')})"
            raise SettingError(f"data.kind: {error} {where}") from None
        table["data"] = checked(model, data, file=path, at="data")
    return checked(Site, {**table, "file": path}, file=path)
