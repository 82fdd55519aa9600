"""The training loop at a site: steps over its own scans, and counts instead of averages.

The loop knows no network and no objective; both come through `common.seams`. A loss arrives as
values by sample, so the reduction is this file's choice: the mean over counted samples, unless the
objective makes gradients of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.data.cohort import Cohort
from client.data.loading import PLAIN, Batch, Loader, batches, person_codes
from client.learning.mixing import Mixture, mixed
from client.learning.optimisers import Stepper, trained
from client.learning.sampling import epoch as epoch_of
from client.learning.sharpness import MOVING, sharpened
from client.learning.weight_averaging import WeightAverage
from common.arrays import Arrays
from common.errors import SettingError
from common.metrics import figures
from common.network.building import rest_frozen_layers, views_of
from common.network.layout import lay_out_kernels
from common.network.loss import autocast, counted, total_loss
from common.seams import Terms
from common.sections import Steps

Indices = NDArray[np.int64]
Anchors = list[tuple[nn.Parameter, Tensor]]  # a parameter, and what it was before training


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training: which epochs of how many, by which rules, from which chance.

    first, epochs, of: it goes from epoch `first` over `epochs` of them, of `of` in the whole
        training; rates and objectives go by that.
    seed: all chance, order, dropout and augmentation alike, comes from it.
    moments: the optimiser's, from where an earlier training left off.
    """

    steps: Steps
    rate: float
    weight_decay: float
    epochs: int
    first: int = 0
    of: int
    seed: int
    proximal_mu: float = 0.0
    loader: Loader = PLAIN
    moments: Mapping[str, NDArray[Any]] | None = None


class Tally:
    """Sums and counts of each term, and which samples entered it; on the device until read."""

    def __init__(self, cohort: Cohort) -> None:
        self._cohort = cohort
        self._names: list[str] = []
        self._totals: Tensor | None = None  # (terms, 2): sum of the loss, samples counted
        self._entered: Tensor | None = None  # (terms, N): how often a sample counted

    def add(self, terms: Mapping[str, Terms], indices: Tensor, *partners: Tensor) -> None:
        """Count a batch in, without waiting for the device; `partners` were mixed into it."""
        if self._totals is None or self._entered is None:
            self._names = list(terms)
            shape = (len(terms), len(self._cohort))
            self._totals = torch.zeros((len(terms), 2), dtype=torch.float64, device=indices.device)
            self._entered = torch.zeros(shape, dtype=torch.int32, device=indices.device)
        both = [torch.stack([counted(term).sum(), term.counted.sum()]) for term in terms.values()]
        self._totals += torch.stack(both).detach().double()
        for row, term in enumerate(terms.values()):
            for whose in (indices, *partners):  # a sample may stand there twice
                self._entered[row].index_add_(0, whose, term.counted.int())

    def counts(self, prefix: str) -> dict[str, tuple[float, ...]]:
        """(sum, count) by ``"PREFIX/TERM"``; the sum in the figures that may leave."""
        if self._totals is None:
            return {}
        rows = zip(self._names, self._totals.tolist(), strict=True)
        return {f"{prefix}/{name}": (figures(total), n) for name, (total, n) in rows}

    def participants(self, prefix: str) -> dict[str, int]:
        """How many people stand behind each of `counts`."""
        if self._entered is None:
            return {}
        people = person_codes(self._cohort.participants)
        rows = self._entered.cpu().numpy() > 0
        return {
            f"{prefix}/{name}": len(np.unique(people[row]))
            for name, row in zip(self._names, rows, strict=True)
        }

    def mean(self) -> float:
        """Mean of the terms' means, unweighted; NaN where nothing counted."""
        if self._totals is None:
            return float("nan")
        means = [total / n for total, n in self._totals.tolist() if n]
        return float(np.mean(means)) if means else float("nan")

    def entered(self, term: str = "") -> Indices:
        """The samples that counted in a term, or in any, ascending."""
        if self._entered is None:
            return np.empty(0, dtype=np.int64)
        rows = self._entered[self._names.index(term)] if term else self._entered.any(0)
        return np.flatnonzero(rows.cpu().numpy())


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training leaves behind beside the network's arrays."""

    tally: Tally
    moments: Arrays


def choose_device(kind: str) -> torch.device:
    """The site's device; `auto` takes a GPU if there is one."""
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(kind)


def train(
    network: Any,
    cohort: Cohort,
    indices: Indices,
    recipe: Recipe,
    device: torch.device,
    *,
    go_on: Callable[[int, Tally], bool] | None = None,
) -> Trained:
    """Train `network` in place on the samples `indices`.

    `go_on` is told after each epoch which one it was and what it lost, and may look at the network;
    False ends the training.

    Raises
    ------
    SettingError
        If the objective changes a buffer in `terms`; what would count as learnt there is not.
    """
    lay_out(network, device)
    anchors = anchors_of(network) if recipe.proximal_mu else []
    stepper = Stepper(
        network,
        recipe.steps,
        rate=recipe.rate,
        weight_decay=recipe.weight_decay,
        moments=recipe.moments,
    )
    generator = np.random.default_rng(recipe.seed)
    # of mixing alone: what is drawn for it changes no order of samples
    partners = np.random.default_rng(np.random.SeedSequence(recipe.seed, spawn_key=(1,)))
    decay = recipe.steps.weight_averaging
    average = WeightAverage(network, decay) if decay else None
    whole = Tally(cohort)
    with seeded(recipe.seed, device):
        for number in range(recipe.first, recipe.first + recipe.epochs):
            tell(network, number, recipe.of)
            network.train()
            rest_frozen_layers(network)
            order = epoch_of(network, cohort, indices, recipe.steps, generator)
            tally = Tally(cohort)
            loader = _loader(network, recipe.loader, number)
            for step, batch in enumerate(batches(cohort, order, device, loader), start=1):
                share = (number + step / len(order)) / recipe.of
                mixture = mixed(batch.x, recipe.steps, partners)
                terms = _step(network, batch, mixture, stepper, recipe, anchors, share)
                if average is not None:
                    average.add()
                entered = [batch.indices] if mixture is None else mixture.both(batch.indices)
                whole.add(terms, *entered)
                if go_on is not None:
                    tally.add(terms, *entered)
            if go_on is not None:
                with average.shown() if average is not None else nullcontext():
                    goes_on = go_on(number, tally)
                if not goes_on:
                    break
    if average is not None:
        average.settle()
    return Trained(whole, stepper.moments())


def tell(network: Any, epoch: int, of: int) -> None:
    """Tell an objective that asks for it where training stands: `epoch` of `of` are done."""
    begin = getattr(network, "begin", None)
    if begin is not None:
        begin(epoch, of)


def lay_out(network: nn.Module, device: torch.device) -> None:
    """Move a network to its device, kernels of convolutions channels-last."""
    network.to(device)
    lay_out_kernels(network)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let torch's chance come from `seed` inside the block, and be as it was after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def labels_for(network: Any, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The labels of the network's own targets: what else a site holds is not its business."""
    return {name: labels[name] for name in network.target_names if name in labels}


def _loader(network: Any, loader: Loader, epoch: int) -> Loader:
    """The loader of one epoch, whose augmentation is another one's in none."""
    seed = loader.seed
    if loader.augment:
        seed = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])
    return replace(loader, seed=seed, views=views_of(network))


def _step(
    network: Any,
    batch: Batch,
    mixture: Mixture | None,
    stepper: Stepper,
    recipe: Recipe,
    anchors: Anchors,
    share: float,
) -> dict[str, Terms]:
    def gradients() -> dict[str, Terms]:
        return _gradients(network, batch, mixture)

    stepper.clear()
    rho = recipe.steps.sharpness
    terms = sharpened(network, rho, batch.x.device, gradients) if rho else gradients()
    advance(network, stepper, recipe, anchors, share)
    return terms


def advance(network: Any, stepper: Stepper, recipe: Recipe, anchors: Anchors, share: float) -> None:
    """Move along the gradients that are set, after `share` of the whole training."""
    for parameter, start in anchors:  # FedProx: mu / 2 |w - w0|^2, added as its gradient
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=recipe.proximal_mu)
    if recipe.steps.gradient_clip:
        parameters = [parameter for _, parameter in trained(network)]
        nn.utils.clip_grad_norm_(parameters, recipe.steps.gradient_clip)
    stepper.step(share)
    after = getattr(network, "after_step", None)
    if after is not None:
        with torch.no_grad():
            after()


def _gradients(network: Any, batch: Batch, mixture: Mixture | None) -> dict[str, Terms]:
    """Set gradients in the objective's own way, or by one pass back over its terms."""
    labels = labels_for(network, batch.labels)
    own = getattr(network, "gradients", None)
    if own is not None:
        made: dict[str, Terms] = own(batch.x, labels, batch.participants)
        return made
    with unchanged(network), autocast(batch.x.device):
        if mixture is None:
            terms: dict[str, Terms] = network.terms(batch.x, labels)
        else:
            terms = mixture.terms(network, labels)
    total_loss(terms, network.weights).backward()
    return terms


def _versions(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Identity and version of every buffer but those that a forward pass is to move."""
    return {
        f"{place}.{name}": (id(buffer), buffer._version)  # noqa: SLF001  torch's count of writes
        for place, module in network.named_modules()
        if not isinstance(module, MOVING)
        for name, buffer in module.named_buffers(recurse=False)
    }


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Refuse with `SettingError` that a buffer is changed inside the block."""
    before = _versions(network)
    yield
    changed = [name for name, now in _versions(network).items() if before.get(name) != now]
    if changed:
        raise SettingError(
            f"{type(network).__name__}.terms changed the buffer {changed[0].strip('.')}; that is "
            "for after_step or begin, since terms is also asked where nothing may be learnt"
        )


def anchors_of(network: nn.Module) -> Anchors:
    """What is trained, and where it begins."""
    return [(parameter, parameter.detach().clone()) for _, parameter in trained(network)]
