"""Gradient inversion: what one person looks like, made again from what left of her.

The attacker knows the network, the arrays that it began from and her labels, and looks for the
sample whose gradient is the one that he holds (Zhu et al. 2019; Geiping et al. 2020): by distance
in tables, by angle in images, no further from the mean of the data than need be; from that mean and
from some draws, by L-BFGS; the closest wins. He gets her gradient as it is; the same as a private
step releases it, cut down and noised, where he knows how and takes the likeliest sample, people
being normal around their mean; and, by angle, the update of a whole round of her site, which holds
everybody.

Errors are distances to her over the distance of the mean of the data, so that 1 is what whoever
guesses the mean gets without any gradient. Nothing but these numbers is kept, and nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from client.data.cohort import Cohort
from client.learning.privacy.chance import Chance
from client.learning.privacy.clipping import ClippedSum
from client.learning.privacy.training import train_privately
from client.learning.training import Recipe, lay_out, train
from common.errors import SettingError
from common.network.building import arrays_of, build, load_arrays
from common.network.loss import total_loss
from common.privacy.person_gradients import of_one, trained
from common.privacy.settings import Privacy
from common.privacy.way import way_of
from common.study import Study

CPU: Final = torch.device("cpu")
STARTS: Final = 3  # the mean of the data, and draws around it
STEPS: Final = 150  # of L-BFGS, from each
_HISTORY: Final = 20
_STEADY: Final = 1e-12
_PRIOR: Final = 0.01  # weight of the mean square deviation beside an angle

Gradient = dict[str, Tensor]
Apart = Callable[[Tensor, Tensor, Tensor], Tensor]  # made and held gradient, deviations


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A site, the arrays that came to it, and what people there look like on average.

    mean, spread: (*shape), of the samples; what an attacker is taken to know.
    """

    study: Study
    cohort: Cohort
    arrays: Mapping[str, NDArray[Any]]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]


def scene(study: Study, cohort: Cohort, arrays: Mapping[str, NDArray[Any]]) -> Scene:
    """The scene of one site's cohort."""
    total, squares = np.zeros(study.shape), np.zeros(study.shape)
    for n in range(len(cohort)):
        sample = np.asarray(cohort.samples[np.array([n])][0], dtype=np.float64)
        total, squares = total + sample, squares + sample**2
    mean = total / len(cohort)
    spread = np.sqrt(np.maximum(squares / len(cohort) - mean**2, 0.0))
    usual = float(spread.mean()) or 1.0
    return Scene(
        study=study, cohort=cohort, arrays=arrays, mean=mean,
        spread=np.where(spread > 1e-6 * usual, spread, 1e-6 * usual),
    )  # fmt: skip


def inverted(scene: Scene, index: int, privacy: Privacy | None, seed: int) -> float:
    """The error of one person's sample, made again from her own gradient in one step.

    Raises
    ------
    SettingError
        If the network cannot be differentiated twice.
    """
    network = _network(scene)
    apart: Apart
    if privacy is None:
        is_table = len(scene.mean.shape) == 1
        held = _gradient(network, scene, index)
        apart = _by_distance if is_table else _by_angle_and_prior
    else:
        held, apart = _released(network, scene, index, privacy), _by_likelihood(privacy)
    return _error(scene, _closest(network, scene, held, index, seed, apart), [index])


def inverted_round(
    scene: Scene, index: int, privacy: Privacy | None, recipe: Recipe, seed: int
) -> float:
    """The same from the update of a whole round, beside whichever of its people is nearest."""
    study, cohort = scene.study, scene.cohort
    everyone, network = np.arange(len(cohort)), _network(scene)
    if privacy is None:
        train(network, cohort, everyone, recipe, CPU)
    else:
        train_privately(network, cohort, everyone, recipe, CPU, privacy, way_of(study))
    after = arrays_of(network)
    network = _network(scene)
    held = {
        name: torch.from_numpy(scene.arrays[name] - after[name]).float()
        for name, _ in trained(network)
    }
    found = _closest(network, scene, held, index, seed, _by_angle_and_prior)
    return _error(scene, found, list(range(len(cohort))))


def _by_distance(made: Tensor, held: Tensor, _: Tensor) -> Tensor:
    off: Tensor = (made - held).square().sum()
    return off / held.square().sum().clamp(min=_STEADY)


def _by_angle(made: Tensor, held: Tensor, _: Tensor) -> Tensor:
    lengths: Tensor = (made.norm() * held.norm()).clamp(min=_STEADY)
    return 1 - made @ held / lengths


def _by_angle_and_prior(made: Tensor, held: Tensor, z: Tensor) -> Tensor:
    return _by_angle(made, held, z) + _PRIOR * z.square().mean()


def _by_likelihood(privacy: Privacy) -> Apart:
    """Minus the logarithm of the chance of the sample, cutting down and noise being known."""

    def apart(made: Tensor, held: Tensor, z: Tensor) -> Tensor:
        length = made.norm().clamp(min=_STEADY)
        cut = made * (privacy.clip / length).clamp(max=1.0)
        if privacy.clipping == "automatic":
            cut = made * privacy.clip / length
        noise = max(privacy.noise * privacy.clip, 1e-3)
        misfit: Tensor = (cut - held).square().sum() / (2 * noise**2)
        return misfit + z.square().sum() / 2

    return apart


def _network(scene: Scene) -> Any:
    """As a site gets it; what rounds do by chance (dropout) is off, which helps the attacker."""
    network = build(scene.study, seed=0)
    load_arrays(network, scene.arrays)
    lay_out(network, CPU)
    network.eval()
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False  # what is differentiated twice
    return network


def _labels(network: Any, scene: Scene, index: int) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(scene.cohort.labels[name][[index]]) for name in network.target_names
    }


def _sample(scene: Scene, index: int) -> Tensor:
    return torch.from_numpy(np.asarray(scene.cohort.samples[np.array([index])], dtype=np.float32))


def _gradient(network: Any, scene: Scene, index: int) -> Gradient:
    """Her gradient, in one step over her alone."""
    sums = {name: torch.zeros_like(p) for name, p in trained(network)}
    hers = of_one(network, _sample(scene, index), _labels(network, scene, index))
    hers.add_to(sums, list(sums), torch.ones(1))
    return sums


def _released(network: Any, scene: Scene, index: int, privacy: Privacy) -> Gradient:
    """The same as a private step over her alone lets it out."""
    total = ClippedSum(dict(trained(network)), privacy)
    total.add(of_one(network, _sample(scene, index), _labels(network, scene, index)))
    total.release(Chance(CPU), 1)
    return {name: p.grad.clone() for name, p in trained(network) if p.grad is not None}


def _closest(
    network: Any, scene: Scene, held: Gradient, index: int, seed: int, apart: Apart
) -> NDArray[np.float64]:
    """The sample whose gradient lies closest to the one that is held, of all starts."""
    labels = _labels(network, scene, index)
    chance = np.random.default_rng(seed)
    found: list[tuple[float, NDArray[np.float64]]] = []
    for start in range(STARTS):
        z = chance.normal(size=scene.mean.shape) if start else np.zeros(scene.mean.shape)
        found.append(_descended(network, scene, held, labels, z, apart))
    return min(found, key=lambda one: one[0])[1]


def _descended(
    network: Any, scene: Scene, held: Gradient, labels: Mapping[str, Tensor],
    z: NDArray[np.float64], apart: Apart,
) -> tuple[float, NDArray[np.float64]]:  # fmt: skip
    """Where L-BFGS ends, in deviations `z` from the mean, and how far its gradient is then."""
    mean, spread = (torch.from_numpy(part).float() for part in (scene.mean, scene.spread))
    parameters = dict(trained(network))
    wanted = torch.cat([held[name].flatten() for name in parameters])
    guess = torch.from_numpy(z).float().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [guess], max_iter=STEPS, history_size=_HISTORY, line_search_fn="strong_wolfe"
    )

    def distance() -> Tensor:
        terms = network.terms((mean + spread * guess)[None], labels)
        loss = total_loss(terms, network.weights)
        made = torch.autograd.grad(
            loss, list(parameters.values()), create_graph=True, allow_unused=True
        )
        parts = zip(parameters.values(), made, strict=True)
        flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in parts])
        return apart(flat, wanted, guess)

    def closure() -> Tensor:
        optimiser.zero_grad()
        found = distance()
        if found.requires_grad:
            found.backward(inputs=[guess])
        return found

    with sdpa_kernel(SDPBackend.MATH):  # torch's others have no second derivative
        try:
            optimiser.step(closure)
        except RuntimeError as error:
            if "derivative" not in str(error) and "not implemented" not in str(error):
                raise
            raise SettingError(f"the network has no second derivative: {error}") from None
        last, ended = float(distance().detach()), guess.detach().double().numpy()
    if not np.isfinite(ended).all() or not np.isfinite(last):  # it ran away: what it began from
        return float("inf"), scene.mean.copy()
    return last, scene.mean + scene.spread * ended


def _error(scene: Scene, found: NDArray[np.float64], among: list[int]) -> float:
    """Distance to the nearest of the samples over the mean's own distance to it, in deviations."""
    errors = []
    for index in among:
        truth = np.asarray(scene.cohort.samples[np.array([index])][0], dtype=np.float64)
        away = float(np.linalg.norm((found - truth) / scene.spread))
        trivial = float(np.linalg.norm((scene.mean - truth) / scene.spread))
        errors.append(away / max(trivial, _STEADY))
    return min(errors)
