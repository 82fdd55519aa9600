"""What a study may name: sizes, data, who goes with whom, whether it can be private, and sources.

Everything is asked of the code itself: a backbone is built without its numbers, an objective around
it, and whoever refuses gives the reason.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Final, get_args

import torch

from common import catalogue
from common.catalogue import Shelf
from common.normalisation import batch_normalisation_arrays
from common.sections import Aggregation, Target

_AGE: Final = {"age": Target(kind="regression", unit="years", centre=50.0, scale=18.0)}
_GENERIC: Final = ("full", "frozen", "last-blocks", "lora", "adapters")
_PUBLISHED: Final = {
    "fedavg": "McMahan et al. 2017",
    "fedavgm": "Hsu et al. 2019",
    "fedadam": "Reddi et al. 2021",
    "fedyogi": "Reddi et al. 2021",
    "fedadagrad": "Reddi et al. 2021",
    "average": "every array is averaged",
    "silobn": "Andreux et al. 2020: running statistics stay at their site",
    "fedbn": "Li et al. 2021: batch normalisation stays whole at its site",
    "groupnorm": "Wu and He 2018: no statistics at all",
    "full": "everything is trained",
    "frozen": "a penalised linear head on what the backbone says",
    "last-blocks": "the last stages are trained",
    "lora": "Hu et al. 2022: low-rank additions",
    "adapters": "Houlsby et al. 2019: narrow residual layers",
    "prompts": "Jia et al. 2022: learnt tokens in every block",
    "tokens": "Wei et al.: the tokens of targets and classes, of objective lcm alone",
    "semi-supervised": "Wei et al.: everything, old targets stay in the loss; objective lcm alone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One name of the catalogue.

    parameters, small: of a backbone as published and in its small size, at samples of `shape`.
    methods: of fine-tuning, beside those that every network has.
    private: "yes", or the reason why a participant has no gradient of her own to clip.
    refuses: for an objective, the reason by backbone that cannot learn by it.
    """

    sort: str
    name: str
    what: str
    layouts: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    parameters: int | None = None
    small: int | None = None
    private: str = ""
    methods: tuple[str, ...] = ()
    refuses: dict[str, str] = field(default_factory=dict)


def entries() -> list[Entry]:
    """Every backbone, objective, data kind, augmentation, aggregation rule and method."""
    backbones = {name: catalogue.load("backbones", name) for name in catalogue.names("backbones")}
    return [
        *(_backbone(name, kind) for name, kind in backbones.items()),
        *(_objective(name, backbones) for name in catalogue.names("objectives")),
        *(_kind(name) for name in catalogue.names("kinds")),
        *(
            _told("augmentation", name, "augmentations")
            for name in catalogue.names("augmentations")
        ),
        *_choices("server optimiser", Aggregation, "server_optimiser"),
        *_choices("normalisation", Aggregation, "normalisation"),
        *(
            Entry(sort="fine-tuning method", name=name, what=_PUBLISHED[name])
            for name in (*_GENERIC, "prompts", "tokens", "semi-supervised")
        ),
    ]


def _backbone(name: str, kind: Any) -> Entry:
    plain = _told("backbone", name, "backbones")
    shape = tuple(getattr(kind, "usual", ()))
    if not shape:  # from outside, and it does not say
        return plain
    whole, keys = _outline(name, kind, shape, {}), getattr(kind, "small", None)
    normalised, _ = batch_normalisation_arrays(whole)
    parameters = _parameters(whole)  # counted before a method adds any
    own = [method for method in ("prompts",) if _offers(whole, method)]
    return replace(
        plain,
        layouts=tuple(getattr(kind, "layouts", ())),
        shape=shape,
        parameters=parameters,
        small=None if keys is None else _parameters(_outline(name, kind, shape, dict(keys))),
        private="with groupnorm" if normalised else "yes",
        methods=tuple(own),
    )


def _outline(name: str, kind: Any, shape: tuple[int, ...], keys: dict[str, Any]) -> Any:
    with torch.device("meta"):
        network = kind(kind.Settings(name=name, **keys), shape, "average")
    network.shape = shape
    return network


def _parameters(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _offers(network: Any, method: str) -> bool:
    tune = getattr(network, "tune", None)
    task = SimpleNamespace(settings=SimpleNamespace(prompts=1))
    return tune is not None and tune(method, task) is not NotImplemented


def _objective(name: str, backbones: dict[str, Any]) -> Entry:
    kind = catalogue.load("objectives", name)
    coupled = bool(getattr(kind, "coupled", False))
    refuses: dict[str, str] = {}
    for backbone, made in backbones.items():
        if not getattr(made, "usual", ()):
            continue
        reasons = [_refusal(kind, name, backbone, made, n) for n in range(_ways(kind))]
        if all(reasons):
            refuses[backbone] = reasons[0]
    labels = "targets" in kind.Settings.model_fields
    reason = "no: samples of a batch depend on each other" if coupled else "yes"
    return Entry(
        sort="objective", name=name, what=_sentence("objectives", name),
        layouts=("labels",) if labels else ("no labels",), private=reason, refuses=refuses,
    )  # fmt: skip


def _refusal(kind: Any, name: str, backbone: str, made: Any, way: int) -> str:
    """Why this objective cannot learn through that backbone; or nothing."""
    try:
        with torch.device("meta"):
            small = _outline(backbone, made, made.usual, dict(getattr(made, "small", {})))
            kind(_settings(kind, name, way), small, _AGE)
    except ValueError as error:
        return str(error)
    return ""


def _needed(kind: Any) -> dict[str, list[Any]]:
    """Examples of each key without a default."""
    fields = kind.Settings.model_fields.items()
    return {k: i.examples or [None] for k, i in fields if i.is_required() and k != "name"}


def _ways(kind: Any) -> int:
    return max((len(examples) for examples in _needed(kind).values()), default=1)


def _settings(kind: Any, name: str, way: int) -> Any:
    """The least that an objective must be told, by one of the examples."""
    told = {key: examples[way % len(examples)] for key, examples in _needed(kind).items()}
    return kind.Settings(name=name, **told)


def _kind(name: str) -> Entry:
    kind = catalogue.load("kinds", name)
    return Entry(sort="data kind", name=name, what=_sentence("kinds", name), layouts=(kind.dtype,))


def _told(sort: str, name: str, shelf: Shelf) -> Entry:
    return Entry(sort=sort, name=name, what=_sentence(shelf, name))


def _choices(sort: str, model: Any, key: str) -> list[Entry]:
    names = get_args(model.model_fields[key].annotation)
    return [Entry(sort=sort, name=name, what=_PUBLISHED[name]) for name in names]


def _sentence(shelf: Shelf, name: str) -> str:
    """The first line of a plug-in's file: house rule is that it says what the file is for."""
    module = importlib.import_module(catalogue.module_of(shelf, name))
    return (inspect.getdoc(module) or "").partition("\n")[0]
