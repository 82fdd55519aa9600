"""Which way a study's gradients by person are made; whoever checks the study is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from logging import getLogger
from math import prod
from typing import Any, Final

import torch
from torch import Tensor, nn

from common.network.building import build, rest_frozen_layers, views_of
from common.network.layout import lay_out_kernels
from common.privacy.by_layer import of_layers
from common.privacy.person_gradients import PersonGradients, of_many, of_one, trained
from common.study import Study

Make = Callable[[Any, Tensor, Mapping[str, Tensor]], PersonGradients]

# measured on SFCN, one thread: at once is faster at 32^3, one at a time at 64^3
LARGEST_SAMPLE: Final = 40**3
_MOST: Final = 64  # samples
_MOST_NUMBERS: Final = 2**20  # of them together; what layers hold of each is many times that
_LARGEST_NETWORK: Final = 4_000_000  # of gradients that are made: beyond it memory is the limit
_AT_ONCE: Final = 2**25  # numbers of all of them together, 128 MB
_NEAR: Final = 1e-4  # of a gradient's length: what float32 leaves between two ways to it
_log = getLogger("callosum.privacy")


@dataclass(frozen=True, slots=True)
class Way:
    """How gradients by person are made.

    samples: of people at once, 1 for one person after another. make: of several. told: in words.
    """

    samples: int
    make: Make
    told: str


def _alone(why: str) -> Way:
    return Way(1, of_many, f"one person at a time, since {why}")


@lru_cache(maxsize=8)
def way_of(study: Study, device: str = "cpu") -> Way:
    """How a study's gradients by person are made on a kind of device."""
    if (sample := prod(study.shape)) > LARGEST_SAMPLE:
        return _alone(f"a sample has {sample:,} numbers")
    network = build(study, seed=0)
    lay_out_kernels(network)  # as in training: which of torch's kernels runs hangs on it
    most = samples_at_once(study)
    if device == "cpu" and _bears(study, network, of_layers):
        return Way(most, of_layers, f"several people at once, up to {most} samples, by layer")
    numbers = sum(parameter.numel() for _, parameter in trained(network))
    if numbers > _LARGEST_NETWORK:
        return _alone(f"{numbers:,} numbers are trained")
    if any(isinstance(module, nn.RNNBase) for module in network.modules()):
        return _alone("recurrent layers are faster so")
    if not _bears(study, network, of_many):
        return _alone("the network does not bear several at once")
    most = max(1, min(most, _AT_ONCE // max(1, numbers)))
    return Way(most, of_many, f"several people at once, up to {most} samples")


def samples_at_once(study: Study) -> int:
    """How many samples of several people are held at once, at most; 1 for one person's."""
    sample = prod(study.shape)
    return min(_MOST, _MOST_NUMBERS // sample) if sample <= LARGEST_SAMPLE else 1


def _bears(study: Study, network: Any, make: Make) -> bool:
    """Whether several people are differentiated at once to the same gradients as one by one.

    Two numbers of people, so that no layer's rows are taken for samples because they are as many.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        with torch.no_grad():
            for _, parameter in trained(network):  # heads begin at 0, and hide what is behind
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        try:
            return all(
                _alike(network, *_people(study, network, *shape), make)
                for shape in ((2, 2), (3, 1))
            )
        except Exception as error:  # noqa: BLE001  whatever an operation does not bear
            _log.debug("%s: %s: %s", study.name, make.__name__, error)
            return False


def _people(
    study: Study, network: Any, people: int, samples: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Made-up people, all of whose labels are known."""
    views = (views_of(network),) if views_of(network) > 1 else ()
    labels = {
        name: torch.full((people, samples), target.centre if target.kind == "regression" else 0.0)
        for name, target in study.pretraining_targets.items()
    }
    return torch.randn(people, samples, *views, *study.shape), labels


def _alike(network: Any, x_PS: Tensor, labels_PS: Mapping[str, Tensor], make: Make) -> bool:
    network.train()
    rest_frozen_layers(network)
    make(network, x_PS, labels_PS)  # dropout must be borne as well
    names = [name for name, _ in trained(network.eval())]
    one, other = ({n: torch.zeros_like(p) for n, p in trained(network)} for _ in (0, 1))
    once = torch.arange(1.0, 1 + len(x_PS))  # whose is whose
    found = make(network, x_PS, labels_PS)
    found.add_to(one, names, once)
    lengths = []
    for person, factor in enumerate(once):
        hers = {name: label[person] for name, label in labels_PS.items()}
        gradient = of_one(network, x_PS[person], hers)
        gradient.add_to(other, names, factor[None])
        lengths.append(gradient.lengths(names))
    if _is_chance(network, x_PS, labels_PS):
        return make is of_many  # torch.func is the same by construction, masks are others
    wrong = nn.utils.get_total_norm([one[name] - other[name] for name in names])
    near = wrong <= _NEAR * nn.utils.get_total_norm(list(other.values()))
    return bool(near) and torch.allclose(found.lengths(names), torch.cat(lengths), rtol=_NEAR)


def _is_chance(network: Any, x_PS: Tensor, labels_PS: Mapping[str, Tensor]) -> bool:
    """Whether the objective draws something, so that two looks differ."""
    hers = {name: label[0] for name, label in labels_PS.items()}
    with torch.no_grad():
        first, again = (network.terms(x_PS[0], hers) for _ in (0, 1))
    return any(not torch.equal(first[name].values, again[name].values) for name in first)
