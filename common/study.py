"""What a consortium agreed to do: one TOML file becomes one frozen, checked value with a digest.

A site approves the digest, so whatever changes what a site would be asked to do changes the digest;
layout and comments of the file do not.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from common import catalogue
from common.catalogue import Shelf
from common.errors import SettingError
from common.seams import Layout
from common.settings import Table, checked, line_of, read_toml

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
RESERVED: Final = frozenset({"pooled", "all"})  # sites' names that stand for several of them
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=10)]


# the tables that a plug-in describes: section, shelf of the catalogue, and the key with its name
_SHELVES: Final[tuple[tuple[str, Shelf, str], ...]] = (
    ("data", "kinds", "kind"),
    ("backbone", "backbones", "name"),
    ("objective", "objectives", "name"),
)


class Target(Table):
    """Something to predict. Centre and scale are constants of the study, never a site's own."""

    kind: Literal["regression", "binary", "categorical"] = Field(description="What is predicted.")
    unit: str = Field("", description='Unit of a regression target, such as "years".')
    centre: float = Field(0.0, description="Subtracted before training (regression).")
    scale: Positive = Field(1.0, description="Divided by before training (regression).")
    low: float = Field(-1e9, description="Values below are refused as impossible (regression).")
    high: float = Field(1e9, description="Values above are refused as impossible (regression).")
    classes: tuple[str, ...] = Field(
        (), description="The study's words; for binary the second is the positive class."
    )
    weight: Positive = Field(1.0, description="Weight of this target's loss in pretraining.")
    positive_weight: Annotated[float, Field(ge=1, le=5)] = Field(
        1.0, description="Weight of positive samples (binary), at most 5."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        listed = f"classes is [{', '.join(self.classes)}]"
        if self.kind == "regression" and self.classes:
            raise ValueError(f"{listed}; a regression target has none")
        if self.kind == "binary" and len(self.classes) != 2:
            raise ValueError(f"{listed}; a binary target needs two, the positive one last")
        if self.kind == "categorical" and len(self.classes) < 3:
            raise ValueError(f"{listed}; a categorical target needs three or more")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"{listed}; classes must differ from each other")
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}; low must be below")
        return self

    @property
    def outputs(self) -> int:
        """Numbers a head gives for this target: one, or one a class."""
        return len(self.classes) if self.kind == "categorical" else 1


class Pretraining(Table):
    """How each site trains in each round."""

    rounds: Annotated[int, Field(ge=1, le=10_000)] = Field(10, description="Federated rounds.")
    local_epochs: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="Passes over a site's training scans in one round."
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(8, description="Scans in a step.")
    optimiser: Literal["sgd", "adam", "adamw"] = Field("adamw", description="Local optimiser.")
    learning_rate: Rate = Field(1e-3, description="Local learning rate in the first round.")
    momentum: Share = Field(0.9, description="Momentum of sgd.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-3, description="Weight decay.")
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="Learning rate over the rounds; cosine falls to a twentieth."
    )
    gradient_clip: Annotated[float, Field(ge=0)] = Field(
        5.0, description="Largest gradient norm of a step; 0 leaves gradients alone."
    )
    proximal_mu: Annotated[float, Field(ge=0)] = Field(
        0.0, description="FedProx: pull towards the round's global weights; 0 is FedAvg."
    )


class Aggregation(Table):
    """How reports become the next global arrays."""

    server_optimiser: Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"] = Field(
        "fedavg", description="What is done with the averaged update."
    )
    learning_rate: Rate = Field(1.0, description="Server learning rate; 1 with fedavg.")
    momentum: Share = Field(0.9, description="fedavgm: momentum.")
    beta_1: Share = Field(0.9, description="fedadam, fedyogi: first moment.")
    beta_2: Share = Field(0.99, description="fedadam, fedyogi: second moment.")
    tau: Positive = Field(1e-3, description="fedadam, fedyogi, fedadagrad: adaptivity.")
    normalisation: Literal["average", "silobn", "fedbn", "groupnorm"] = Field(
        "average", description="What happens to normalisation layers; see server/README.md."
    )

    @model_validator(mode="after")
    def _plain_average(self) -> Self:
        if self.server_optimiser == "fedavg" and self.learning_rate != 1.0:
            raise ValueError(
                f"learning_rate is {self.learning_rate:g}; fedavg takes 1, use fedavgm for another"
            )
        return self


class Sites(Table):
    """Who takes part, by name and role."""

    train: tuple[Name, ...] = Field(description="Sites that contribute to the weights.")
    heldout: tuple[Name, ...] = Field(
        (), description="Sites that judge the result and never contribute."
    )
    quorum: Annotated[int, Field(ge=0)] = Field(
        0, description="Fewest training sites for a round to count; 0 asks for all."
    )
    time_limit_s: Positive = Field(
        3600.0, description="Longest wait without any answer arriving; then the quorum decides."
    )

    @model_validator(mode="after")
    def _roles_are_apart(self) -> Self:
        if not self.train:
            raise ValueError("train is []; at least one site must train")
        everyone = [*self.train, *self.heldout]
        twice = sorted({site for site in everyone if everyone.count(site) > 1})
        taken = sorted(RESERVED & set(everyone))
        if taken:
            raise ValueError(f'no site may be called "{taken[0]}"; results use that name')
        if twice:
            raise ValueError(
                f"{', '.join(twice)} is listed twice; a site has one name and one role"
            )
        if self.quorum > len(self.train):
            raise ValueError(f"quorum is {self.quorum} but only {len(self.train)} sites train")
        return self


class Splits(Table):
    """Which participants train, choose and test. Decided by a hash of salt and participant."""

    salt: str = Field("callosum", description="Studies with one salt split a site alike.")
    validation: Share = Field(0.15, description="Share of participants that choose settings.")
    test: Share = Field(0.2, description="Share of participants kept for fine-tuning's test.")

    @model_validator(mode="after")
    def _some_are_left(self) -> Self:
        if self.validation + self.test >= 0.95:
            raise ValueError(
                f"validation is {self.validation:g} and test is {self.test:g}; "
                "they leave fewer than 5 % of participants to train"
            )
        return self


class Comparisons(Table):
    """Models trained beside the federated one, with the same settings, to judge it by."""

    single_site: bool = Field(True, description="Train one model on each training site alone.")
    pooled: bool = Field(
        True, description="Train one model on all training data (local engine only)."
    )


Init = Literal["transfer", "frozen", "scratch", "linear"]


class FineTuning(Table):
    """A task that each site learns for itself, from the shared backbone and from its rivals."""

    name: Name = Field(description="Name of the task.")
    target: str = Field(description="The target that is learnt.")
    inits: tuple[Init, ...] = Field(
        ("transfer", "frozen", "scratch", "linear"), description="What is compared.", min_length=1
    )
    epochs: Annotated[int, Field(ge=1, le=1000)] = Field(8, description="Passes in fine-tuning.")
    learning_rates: tuple[Rate, ...] = Field(
        (3e-4, 1e-3), description="Grid of learning rates; validation chooses.", min_length=1
    )
    weight_decays: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (1e-3,), description="Grid of weight decays; validation chooses.", min_length=1
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(8, description="Scans in a step.")


class Evaluation(Table):
    """How held-out sites judge."""

    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = Field(
        1000, description="Resamplings of participants for an interval."
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        0.95, description="Coverage of intervals."
    )
    statistics: Literal["shared", "reestimated"] = Field(
        "shared",
        description="Normalisation statistics at an unseen site: the average of the training "
        "sites', or its own from unlabelled scans (always so under silobn).",
    )
    head: bool = Field(True, description="Also fit a head on the frozen backbone at the site.")


class Study(Table):
    """The whole agreement."""

    name: Name = Field(description="Name of the study.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="All chance comes from it.")
    data: SerializeAsAny[BaseModel] = Field(description="What a sample is.")
    targets: dict[Name, Target] = Field(description="What is predicted.")
    backbone: SerializeAsAny[BaseModel] = Field(description="The shared network.")
    objective: SerializeAsAny[BaseModel] = Field(description="What pretraining minimises.")
    pretraining: Pretraining = Field(Pretraining(), description="How sites train.")
    aggregation: Aggregation = Field(Aggregation(), description="How reports are combined.")
    sites: Sites = Field(description="Who takes part.")
    splits: Splits = Field(Splits(), description="Who trains, chooses and tests.")
    comparisons: Comparisons = Field(Comparisons(), description="Rival models.")
    finetuning: tuple[FineTuning, ...] = Field((), description="Tasks for each site.")
    evaluation: Evaluation = Field(Evaluation(), description="How held-out sites judge.")

    @model_validator(mode="after")
    def _targets_exist(self) -> Self:
        names = [task.name for task in self.finetuning]
        for number, task in enumerate(self.finetuning):
            if task.target not in self.targets:
                raise ValueError(
                    f'finetuning.{number}.target is "{task.target}"; '
                    f"the study's targets are {', '.join(self.targets)}"
                )
            if task.name in names[:number]:
                raise ValueError(f'finetuning.{number}.name is "{task.name}" as an earlier task is')
        if not self.pretraining_targets and self.learns_from_labels:
            raise ValueError(
                f"targets has {', '.join(self.targets) or 'none'}; one must be left to pretrain "
                "that no fine-tuning task is about, or objective.targets must list it"
            )
        return self

    @property
    def pretraining_targets(self) -> dict[str, Target]:
        """Targets of pretraining: the objective's list, else all that no task is about."""
        listed = getattr(self.objective, "targets", ())
        tasks = {task.target for task in self.finetuning}
        # sorted: the file's order of tables is not part of the digest, so it must change no bit
        names = listed or sorted(name for name in self.targets if name not in tasks)
        unknown = [name for name in names if name not in self.targets]
        if unknown:
            raise ValueError(
                f"objective.targets names {', '.join(unknown)}; "
                f"the study's targets are {', '.join(self.targets)}"
            )
        return {name: self.targets[name] for name in names}

    @property
    def learns_from_labels(self) -> bool:
        """Whether pretraining needs labels; an objective that does has a key `targets`."""
        return hasattr(self.objective, "targets")

    def plugins(self) -> list[tuple[Shelf, str]]:
        """Shelf and name of everything in the catalogue that the study names."""
        return [(shelf, getattr(getattr(self, key), name)) for key, shelf, name in _SHELVES]

    @property
    def kind_name(self) -> str:
        """Name of the data kind."""
        return str(self.data.kind)  # type: ignore[attr-defined]

    @property
    def kind(self) -> Any:
        """The data kind's class."""
        return catalogue.load("kinds", self.kind_name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one prepared sample."""
        return tuple(self.kind.shape(self.data))

    @property
    def layout(self) -> Layout:
        """What the axes of a sample are."""
        found: Layout = self.kind.layout(self.data)
        return found

    @property
    def quorum(self) -> int:
        """Fewest training sites for a round to count."""
        return self.sites.quorum or len(self.sites.train)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the agreed content, whatever the file's layout."""
        return hashlib.sha256(canonical(self.model_dump(mode="json"))).hexdigest()

    def __hash__(self) -> int:
        return hash(self.digest)


def canonical(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def check_name(name: str) -> None:
    """Refuse a name that no study or site file may hold."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise SettingError(
            f'name is "{name}"; lower-case letters, digits, _ and - are needed, at most 63, '
            "a letter or digit first"
        ) from None


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Raises
    ------
    SettingError
        Naming every fault with its key, line and remedy.
    """
    return parse_study(read_toml(path), path)


class Unchecked(BaseModel):
    """A plug-in's table as it was resolved, where nobody needs the plug-in itself."""

    model_config = ConfigDict(extra="allow", frozen=True)


def read_resolved(table: dict[str, Any], path: Path) -> Study:
    """A study that was checked when it was written down; its plug-ins are not loaded.

    What a coordinator's server needs: it has the same digest, but says nothing of a sample's shape.
    """
    plugged = {key: Unchecked.model_validate(table[key]) for key, *_ in _SHELVES if key in table}
    rest = {key: value for key, value in table.items() if key not in plugged}
    return checked(Study, {**rest, **plugged}, file=path)


def with_plugins(study: Study) -> Study:
    """The same study with its plug-ins loaded and their settings checked."""
    return parse_study(study.model_dump(mode="json"), Path(f"{study.name}.json"))


def parse_study(table: dict[str, Any], path: Path) -> Study:
    """Check a study's tables; `path` is named in errors."""
    resolved = dict(table)
    for section, shelf, key in _SHELVES:
        if section in resolved:
            resolved[section] = _plugged(resolved[section], section, shelf, key, path)
    study = checked(Study, resolved, file=path)
    try:
        study.shape, study.layout  # noqa: B018  a kind may refuse its settings only when asked
    except (ValueError, AttributeError) as error:
        raise SettingError(f"data: {error} ({path}{line_of(path, 'data')})") from None
    return study


def _plugged(table: object, section: str, shelf: Shelf, key: str, path: Path) -> BaseModel:
    if not isinstance(table, dict) or not isinstance(table.get(key), str):
        known = ", ".join(catalogue.names(shelf))
        where = f"({path}{line_of(path, section)})"
        raise SettingError(f"{section}.{key} is missing; installed: {known} {where}")
    try:
        found = catalogue.load(shelf, table[key])
    except SettingError as error:
        where = f"({path}{line_of(path, f'{section}.{key}')})"
        raise SettingError(f"{section}.{key}: {error} {where}") from None
    settings = found.Study if shelf == "kinds" else found.Settings
    result: BaseModel = checked(settings, table, file=path, at=section)
    return result
