"""What a consortium agreed to do: one TOML file becomes one frozen, checked value with a digest.

A site approves the digest, so whatever changes what a site would be asked to do changes the digest;
layout and comments of the file do not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from common import catalogue
from common.catalogue import Shelf
from common.comparisons import (
    ENSEMBLE,
    POOLED,
    Comparisons,
    check_cross,
    check_starts,
    check_targets,
)
from common.errors import LineageError, SettingError
from common.privacy.settings import Privacy
from common.privacy.site_level import check_site_level
from common.schemes import Protocol, check_grid, check_place
from common.seams import Layout
from common.sections import (
    Aggregation,
    Evaluation,
    FineTuning,
    Name,
    Pretraining,
    Sites,
    Splits,
    Start,
    Steps,
    Target,
)
from common.secure_sums.settings import SecureSums
from common.secure_sums.suitability import check_secure
from common.seeding import seed_of
from common.settings import Table, checked, line_of, read_toml

# the tables that a plug-in describes: section, shelf of the catalogue, and the key with its name
_SHELVES: Final[tuple[tuple[str, Shelf, str], ...]] = (
    ("data", "kinds", "kind"),
    ("backbone", "backbones", "name"),
    ("objective", "objectives", "name"),
)
_LISTS: Final[tuple[tuple[str, Shelf, str], ...]] = (("augmentation", "augmentations", "name"),)


class Study(Table):
    """The whole agreement."""

    name: Name = Field(description="Name of the study.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="All chance comes from it.")
    data: SerializeAsAny[BaseModel] = Field(description="What a sample is.")
    targets: dict[Name, Target] = Field(description="What is predicted.", max_length=1000)
    backbone: SerializeAsAny[BaseModel] = Field(description="The shared network.")
    objective: SerializeAsAny[BaseModel] = Field(description="What pretraining minimises.")
    start: Start | None = Field(None, description="An earlier checkpoint to begin from.")
    augmentation: tuple[SerializeAsAny[BaseModel], ...] = Field(
        (),
        description="What is done to a sample before it is trained on, in this order.",
        max_length=100,
    )
    pretraining: Pretraining = Field(Pretraining(), description="How sites train.")
    privacy: Privacy = Field(Privacy(), description="How much of one person may show.")
    secure_sums: SecureSums = Field(
        SecureSums(), description="Whether single updates are seen, or their sums alone."
    )
    aggregation: Aggregation = Field(Aggregation(), description="How reports are combined.")
    sites: Sites = Field(description="Who takes part.")
    splits: Splits = Field(Splits(), description="Who trains, chooses and tests.")
    comparisons: Comparisons = Field(Comparisons(), description="Rival models.")
    finetuning: tuple[FineTuning, ...] = Field(
        (), description="Tasks for each site.", max_length=100
    )
    protocols: tuple[Protocol, ...] = Field(
        (), description="Comparisons of a task's ways over many draws.", max_length=100
    )
    evaluation: Evaluation = Field(Evaluation(), description="How held-out sites judge.")

    @model_validator(mode="after")
    def _targets_exist(self) -> Self:
        names: set[str] = set()
        for number, task in enumerate(self.finetuning):
            if task.target not in self.targets:
                raise ValueError(
                    f'finetuning.{number}.target is "{task.target}"; '
                    f"the study's targets are {', '.join(self.targets)}"
                )
            if task.name in names:
                raise ValueError(f'finetuning.{number}.name is "{task.name}" as an earlier task is')
            check_starts(f"finetuning.{number}", task, self.comparisons, self.sites.train)
            check_cross(f"finetuning.{number}", task)
            names.add(task.name)
        self._protocols_exist(names)
        for place, steps in self._steps():
            self._can_sample(place, steps.sampling)
        self._can_protect()
        if self.comparisons.ensemble and not self.pretraining.rounds:
            raise ValueError(
                f"comparisons.ensemble is {self.comparisons.ensemble} and pretraining.rounds is 0; "
                "models that are settled by sums are the same by every seed"
            )
        if not self.pretraining_targets and self.learns_from_labels:
            raise ValueError(
                f"targets has {', '.join(self.targets) or 'none'}; one must be left to pretrain "
                "that no fine-tuning task is about, or objective.targets must list it"
            )
        self._can_compare()
        if self.secure_sums.on:
            check_secure(self)
        if self.privacy.hides_sites:
            check_site_level(self)
        return self

    def _can_compare(self) -> None:
        """Models of some targets are trained in rounds, by labels, and end up where they can go."""
        compared, rounds = self.comparisons, self.pretraining.rounds
        if compared.targets and not (rounds and self.learns_from_labels):
            why = "the objective learns from no labels" if rounds else "pretraining.rounds is 0"
            raise ValueError(f"comparisons.targets is not empty, and {why}; leave it out")
        check_targets(compared, self.pretraining_targets, self.pretraining.sampling)
        starts = {way.rpartition("/")[0] for task in self.finetuning for way in task.methods}
        if POOLED in starts and self.aggregation.normalisation == "silobn":
            raise ValueError(
                'finetuning.methods has a way of pooled and aggregation.normalisation is "silobn", '
                "which keeps statistics with the pooled data; leave one of the two"
            )

    def _protocols_exist(self, names: set[str]) -> None:
        """Each is about a task of the study, under a name that neither task nor protocol has."""
        for number, protocol in enumerate(self.protocols):
            place = f"protocols.{number}"
            if protocol.name in names:
                raise ValueError(
                    f'{place}.name is "{protocol.name}" as an earlier task or protocol is'
                )
            task = self.task_of(protocol, place)
            check_grid(place, task)
            check_place(place, protocol, task, self.targets[task.target])
            if protocol.at == "heldout":
                self._can_learn_where_held_out(place)
            names.add(protocol.name)

    def _can_learn_where_held_out(self, place: str) -> None:
        """A held-out site gets all of a network: nothing of it is each site's own."""
        own = {
            "sites.heldout is []": not self.sites.heldout,
            'aggregation.normalisation is "silobn", whose statistics are each training site\'s own':
                self.aggregation.normalisation == "silobn",
            "backbone.harmonisation takes each site's own location and scale off": self.harmonises,
        }  # fmt: skip
        if why := next((text for text, holds in own.items() if holds), ""):
            raise ValueError(f'{place}.at is "heldout", and {why}; leave one of the two')

    def task_of(self, protocol: Protocol, place: str = "protocols") -> FineTuning:
        """The task whose ways a protocol compares."""
        for task in self.finetuning:
            if task.name == protocol.task:
                return task
        tasks = ", ".join(task.name for task in self.finetuning) or "none"
        raise ValueError(f'{place}.task is "{protocol.task}"; the study\'s tasks are {tasks}')

    def protocol(self, name: str) -> Protocol | None:
        """The protocol of that name."""
        return next((protocol for protocol in self.protocols if protocol.name == name), None)

    def protocols_at(self, role: str) -> tuple[Protocol, ...]:
        """The protocols that sites of a role run."""
        return tuple(protocol for protocol in self.protocols if protocol.at == role)

    def _steps(self) -> list[tuple[str, Steps]]:
        tasks = ((f"finetuning.{number}", task) for number, task in enumerate(self.finetuning))
        return [("pretraining", self.pretraining), *tasks]

    def _can_sample(self, place: str, sampling: str) -> None:
        kind, _, name = sampling.partition(":")
        if kind != "classes":
            return
        if name not in self.targets or self.targets[name].kind == "regression":
            classes = [n for n, target in self.targets.items() if target.kind != "regression"]
            raise ValueError(
                f'{place}.sampling is "{sampling}"; targets with classes are '
                f"{', '.join(classes) or 'none'}"
            )

    def _can_protect(self) -> None:
        """Covariates are columns of numbers, so of more than two classes there is none."""
        able = [name for name, target in self.targets.items() if target.kind != "categorical"]
        covariates = getattr(self.backbone, "covariates", ())
        unfit = [name for name in covariates if name not in able]
        if unfit:
            raise ValueError(
                f"backbone.covariates names {', '.join(unfit)}; targets that are numbers or have "
                f"two classes are {', '.join(able) or 'none'}"
            )
        binary = any(target.kind == "binary" for target in self.pretraining_targets.values())
        if self.evaluation.calibration and not (self.harmonises or binary):
            raise ValueError(
                f"evaluation.calibration is {list(self.evaluation.calibration)}, and nothing of "
                'the study can be calibrated; backbone.harmonisation = "combat" can, and scores of '
                "targets with two classes"
            )

    @property
    def harmonises(self) -> bool:
        """Whether sites take their own location and scale off their columns."""
        return getattr(self.backbone, "harmonisation", "none") == "combat"

    @property
    def pretraining_targets(self) -> dict[str, Target]:
        """Targets of pretraining: the objective's list, else all that no task is about."""
        listed = getattr(self.objective, "targets", ())
        tasks = {task.target for task in self.finetuning}
        # sorted: the file's order of tables is not part of the digest, so it must change no bit
        names = listed or sorted(name for name in self.targets if name not in tasks)
        # a resolved study's objective is not checked again
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError("objective.targets must be a list of names")
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

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that a run of the study may have."""
        singles = self.sites.train if self.comparisons.single_site else ()
        pooled = ("pooled", "pooled-linear") if self.comparisons.pooled else ()
        constants = ("training-mean", "training-median") if self.evaluation.baselines else ()
        singly = (f"single-{site}" for site in singles)
        together = (ENSEMBLE,) if self.comparisons.ensemble else ()
        some = self.comparisons.targets
        members = self.comparisons.members
        return frozenset({*members, *singly, *pooled, *some, *constants, *together})

    def as_trained(self, model: str) -> Study:
        """The study as a model of it is drawn and trained: further members by other seeds."""
        if model not in self.comparisons.members[1:]:
            return self
        seed = seed_of(self.seed, ENSEMBLE, model) % 2**31
        return Study.model_construct(**{**dict(self), "seed": seed})  # a copy has the old digest

    def learnt_by(self, model: str) -> dict[str, Target]:
        """The pretraining targets that a model of the run learns: all, but where the study says."""
        targets = self.pretraining_targets
        return {name: targets[name] for name in self.comparisons.targets.get(model, targets)}

    def plugins(self) -> list[tuple[Shelf, str]]:
        """Shelf and name of everything in the catalogue that the study names."""
        single = [(shelf, getattr(self, key), name) for key, shelf, name in _SHELVES]
        listed = [(shelf, one, name) for key, shelf, name in _LISTS for one in getattr(self, key)]
        return [(shelf, str(getattr(table, name))) for shelf, table, name in (*single, *listed)]

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
    plugged = {
        key: checked(Unchecked, table[key], file=path, at=key)
        for key, *_ in _SHELVES
        if key in table
    }
    listed = {
        key: tuple(checked(Unchecked, one, file=path, at=key) for one in _tables(table, key, path))
        for key, *_ in _LISTS
    }
    _held_out_sites_took_no_part(table, path)
    study = checked(Study, {**table, **plugged, **listed}, file=path)
    try:
        study.digest  # noqa: B018  JSON can name characters that are none
    except ValueError as error:
        raise SettingError(f"{path} holds text that cannot be written: {error}") from None
    return study


def with_plugins(study: Study) -> Study:
    """The same study with its plug-ins loaded and their settings checked."""
    return parse_study(study.model_dump(mode="json"), Path(f"{study.name}.json"))


def parse_study(table: dict[str, Any], path: Path) -> Study:
    """Check a study's tables; `path` is named in errors."""
    _held_out_sites_took_no_part(table, path)
    resolved = dict(table)
    for section, shelf, key in _SHELVES:
        if section in resolved:
            resolved[section] = _plugged(resolved[section], section, shelf, key, path)
    for section, shelf, key in _LISTS:
        resolved[section] = tuple(
            _plugged(table, f"{section}.{number}", shelf, key, path)
            for number, table in enumerate(_tables(resolved, section, path))
        )
    _add_defaults_of_kind(resolved)
    study = checked(Study, resolved, file=path)
    try:
        study.shape, study.layout  # noqa: B018  a kind may refuse its settings only when asked
    except (ValueError, AttributeError) as error:
        raise SettingError(f"data: {error} ({path}{line_of(path, 'data')})") from None
    return study


def _add_defaults_of_kind(resolved: dict[str, Any]) -> None:
    """Add what a kind's samples ask of the aggregation, where the study does not say otherwise."""
    given = resolved.get("aggregation", {})
    kind = resolved.get("data")
    if kind is None or not isinstance(given, dict):
        return  # told by whoever checks them
    wanted = getattr(catalogue.load("kinds", kind.kind), "aggregation", {})
    if wanted:
        resolved["aggregation"] = {**wanted, **given}


def _tables(table: Mapping[str, Any], section: str, path: Path) -> list[Any] | tuple[Any, ...]:
    """The entries of [[section]]."""
    tables = table.get(section, [])
    if not isinstance(tables, list | tuple):
        where = f"({path}{line_of(path, section)})"
        raise SettingError(f"{section} is a list of tables, [[{section}]] {where}")
    return tables


def _held_out_sites_took_no_part(table: Mapping[str, Any], path: Path) -> None:
    """Refuse a study that begins from the work of a site that is to judge it, or was chosen on it.

    Looked at before anything is loaded: it must not take longer than reading the file.
    """
    took_part, judges, chose = (_names(table, *place) for place in _LINEAGE)
    both = ", ".join(sorted(chose & judges))
    if both:
        where = f"({path}{line_of(path, 'sites.chosen_on')})"
        raise LineageError(
            f"{table.get('name')} was chosen by figures of {both}, which cannot judge it then; "
            f"take {both} from sites.heldout {where}"
        )
    both = ", ".join(sorted(took_part & judges))
    if both:
        where = f"({path}{line_of(path, 'start.contributors')})"
        raise LineageError(
            f"{both} contributed to the checkpoint that {table.get('name')} begins from, and "
            f"cannot judge what comes of it; take {both} from sites.heldout {where}"
        )


_LINEAGE: Final = (
    ("start", "contributors"), ("sites", "heldout"), ("sites", "chosen_on")
)  # fmt: skip


def _names(table: Mapping[str, Any], section: str, key: str) -> set[str]:
    """A list of names in a table that nobody has checked yet."""
    found = table.get(section)
    names = found.get(key) if isinstance(found, dict) else None
    listed = names if isinstance(names, list | tuple) else ()
    return {name for name in listed if isinstance(name, str)}


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
