"""Constants of a network that are made of sums over the training sites, before the first round.

A module that has `sums` and `settle` gets its buffers that way: each training site adds up what
`sums` gives for its training samples, the coordinator adds up the sites, `settle` makes buffers of
it, and from then on they are frozen, in every round and for every site that is ever judged.
Standardised columns, the reference of a tangent space and the parameters of ComBat are such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.arrays import Arrays
from common.errors import Refusal
from common.network.plan import Plan, Rule
from common.seams import SHARED
from common.study import Study

_LARGEST: Final = 1e18  # its square fits float32; no column and no pixel comes near


class Settles(Protocol):
    """A `torch.nn.Module` whose buffers are settled before the first round.

    passes: how often sums are asked for; a later pass sees what the earlier ones have settled.

    `sums` adds up over a batch, in float64, and two batches' sums add up to those of both; `x` is
    (B, *shape) as prepared, labels are (B,), NaN where missing. `settle` is given the sums over all
    training samples of all sites and sets the module's own buffers. One site's sums must settle
    finite buffers too: `ValueError` for any that no samples can give, so that nobody spoils it for
    everyone. A sum called ``n`` or ``n_...`` is a number of samples.

    Four things may be left out. With `sees_network` true, sums depend on more of the network than
    its constants, and all of its arrays go to the sites with each order. `settle_by_site` is called
    in place of `settle`, with the sums of each site, which are read as they are looked at.
    `labelled(key)` names the targets of which a sample must have every label to be in the sum of
    that name; without it all samples are. `check_sums(sums, number)` raises `ValueError` for one
    site's sums that no samples can give, where that is cheaper than to settle by them.
    """

    passes: int

    def sums(self, x: Tensor, labels: Mapping[str, Tensor], number: int) -> dict[str, Tensor]: ...

    def settle(self, sums: Mapping[str, Tensor], number: int) -> None: ...


def settling(network: nn.Module) -> dict[str, Any]:
    """The modules that are to be settled, by their place in the network."""
    return {name: module for name, module in network.named_modules() if settles(module)}


def settles(module: nn.Module) -> bool:
    """Whether a module's buffers are made of sums."""
    return hasattr(module, "settle") and hasattr(module, "sums")


def constants(network: nn.Module) -> set[str]:
    """Names of all arrays that are settled."""
    return {
        f"{place}.{name}"
        for place, module in settling(network).items()
        for name, _ in module.named_buffers(recurse=False)
    }


def sent_to_settle(network: nn.Module, names: Iterable[str]) -> set[str]:
    """Which of a network's arrays `names` sites must be sent to add up what it settles on."""
    whole = any(getattr(module, "sees_network", False) for module in settling(network).values())
    return set(names) if whole else constants(network)


def passes(modules: Mapping[str, Any]) -> int:
    """How often sites are asked."""
    return max((int(getattr(module, "passes", 1)) for module in modules.values()), default=0)


def sums_of(
    modules: Mapping[str, Any], x: Tensor, labels: Mapping[str, Tensor], number: int
) -> dict[str, Tensor]:
    """Sums over one batch by ``"PLACE/KEY"``, of the modules that still ask."""
    return {
        f"{place}/{key}": value.double()
        for place, module in modules.items()
        if number < getattr(module, "passes", 1)
        for key, value in module.sums(x, labels, number).items()
    }


def sums_plan(study: Study, modules: Mapping[str, Any], number: int) -> Plan:
    """Names and shapes of the sums that a site's report must hold."""
    x = torch.zeros((2, *study.shape))
    labels = {name: torch.zeros(2) for name in study.targets}
    return {
        name: Rule(
            shape=tuple(value.shape), dtype="float64", group=SHARED, role="statistic", kept=False
        )
        for name, value in sums_of(modules, x, labels, number).items()
    }


def added(parts: Iterable[Mapping[str, NDArray[Any]]]) -> Arrays:
    """The sums of several batches or sites together, added in the order given."""
    total: Arrays = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else np.array(value, np.float64)
    return total


def refuse_unsound(
    modules: Mapping[str, Any], sums: Mapping[str, NDArray[Any]], number: int
) -> None:
    """Raise `Refusal` if one site's sums would settle nothing by themselves.

    Added to other sites' they might divide everybody's samples by zero.
    """
    checked = {place: one for place, one in modules.items() if hasattr(one, "check_sums")}
    alone = {place: deepcopy(one) for place, one in modules.items() if place not in checked}
    try:
        for place, module in checked.items():
            if own := Sums([sums], place)[0]:
                module.check_sums(own, number)
        settle(alone, [sums], number)
    except ValueError as error:
        raise Refusal("REPORT_MALFORMED", str(error)) from None
    for place, module in alone.items():
        for name, buffer in module.named_buffers(recurse=False):
            if not (buffer.abs() <= _LARGEST).all():  # nor are NaN and infinities
                raise Refusal("REPORT_MALFORMED", f"sums settle {place}.{name} on no number")


def settle(
    modules: Mapping[str, Any], parts: Sequence[Mapping[str, NDArray[Any]]], number: int
) -> None:
    """Let each module make its buffers of the sums of all sites, which are `parts`."""
    together = {place: module for place, module in modules.items() if not _by_site(module)}
    total = _of(added(_of_places(part, together) for part in parts))
    for place, module in modules.items():
        if _by_site(module):
            sites = Sums(parts, place)
            if any(_is_below(name, place) for name in parts[0]):
                with torch.no_grad():
                    module.settle_by_site(sites, number)
        elif own := {
            name.removeprefix(f"{place}/"): value
            for name, value in total.items()
            if _is_below(name, place)
        }:
            with torch.no_grad():
                module.settle(own, number)


class Sums(Sequence[Mapping[str, Tensor]]):
    """One module's sums, site by site; each is read from disk whenever it is looked at."""

    def __init__(self, parts: Sequence[Mapping[str, NDArray[Any]]], place: str) -> None:
        self._parts, self._place = parts, place

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: Any) -> Any:
        part = self._parts[number]
        own = {name: part[name] for name in part if _is_below(name, self._place)}
        return {name.removeprefix(f"{self._place}/"): v for name, v in _of(own).items()}


def _by_site(module: Any) -> bool:
    return hasattr(module, "settle_by_site")


def _is_below(name: str, place: str) -> bool:
    return name.startswith(f"{place}/")


def _of_places(part: Mapping[str, NDArray[Any]], places: Iterable[str]) -> dict[str, NDArray[Any]]:
    return {name: part[name] for name in part if any(_is_below(name, one) for one in places)}


def _of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
