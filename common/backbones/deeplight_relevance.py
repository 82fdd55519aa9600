"""Which voxels spoke for a state: layer-wise relevance propagation through DeepLight's slices.

A state's score is handed back layer by layer, to each input by its share in what the layer made of
it (Bach et al. 2015, the epsilon rule with its sign). In the LSTM the signal takes all (Arras et
al. 2017): what a gate lets through has the relevance, the gate itself none. Tensor letters: B
samples, X Y Z voxels along R, A, S, F features of a slice, H hidden units, K states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from common.backbones.deeplight import Climb, DeepLight

EPSILON: Final = 1e-3  # the published one


def relevance(
    network: DeepLight,
    head: nn.Linear,
    x_BXYZ: Tensor,
    chosen_B: Tensor | None = None,
    *,
    epsilon: float = EPSILON,
) -> tuple[Tensor, Tensor]:
    """Relevance of each voxel (B, X, Y, Z) for one score of each sample, and all scores (B, K).

    `chosen_B` are the states whose scores are explained, by default the highest of each sample;
    scores are what the head gives, before any softmax. Without biases, and as `epsilon` goes to 0,
    a sample's relevances add up to its score. Dropout plays no part, whatever the mode.

    Raises
    ------
    ValueError
        If the network reads no slices.
    """
    if network.climb is None:
        raise ValueError("relevance goes through 2d-12 and 2d-8; the network is 3d")
    with torch.no_grad():
        slices = x_BXYZ.permute(0, 3, 2, 1).flatten(0, 1).unsqueeze(1)
        inputs: list[Tensor] = [slices]
        for block in network.blocks:
            inputs.append(torch.relu(_convolved(block)(inputs[-1])))
        seen_BZF = inputs[-1].flatten(1).unflatten(0, (len(x_BXYZ), -1))
        features = network.climb(seen_BZF)
        scores = head(features)
        chosen = scores.argmax(1) if chosen_B is None else chosen_B
        told = torch.zeros_like(scores).scatter(1, chosen[:, None], 1.0) * scores
        handed = _shared(head, features, told, epsilon)
        handed = climb_relevance(network.climb, seen_BZF, handed, epsilon=epsilon)
        handed = handed.flatten(0, 1).view_as(inputs[-1])
        for block, given in zip(reversed(network.blocks), reversed(inputs[:-1]), strict=True):
            handed = _shared(_convolved(block), given, handed, epsilon)
        whole_BZYX = handed.squeeze(1).unflatten(0, (len(x_BXYZ), -1))
        return whole_BZYX.permute(0, 3, 2, 1), scores


def climb_relevance(
    climb: Climb, seen_BZF: Tensor, told_BH: Tensor, *, epsilon: float = EPSILON
) -> Tensor:
    """Relevance (B, Z, F) of each slice's features for the last states (B, 2 H) of both ways."""
    hidden = climb.lstm.hidden_size
    up = _one_way(_weights(climb, ""), seen_BZF, told_BH[:, :hidden], epsilon)
    down = _one_way(_weights(climb, "_reverse"), seen_BZF.flip(1), told_BH[:, hidden:], epsilon)
    return up + down.flip(1)


class _Weights(NamedTuple):
    """Of one direction: (4 H, F), (4 H, H) and both biases' sum (4 H,), gates in torch's order."""

    given: Tensor
    before: Tensor
    bias: Tensor


class _Step(NamedTuple):
    """What one slice made: x (B, F), the last state (B, H), and its cell's parts (B, H)."""

    x: Tensor
    before: Tensor
    candidate: Tensor  # before its tanh
    kept: Tensor  # forget gate times the last cell
    new: Tensor  # input gate times the candidate


def _weights(climb: Climb, way: str) -> _Weights:
    lstm: Any = climb.lstm
    bias = getattr(lstm, f"bias_ih_l0{way}") + getattr(lstm, f"bias_hh_l0{way}")
    return _Weights(getattr(lstm, f"weight_ih_l0{way}"), getattr(lstm, f"weight_hh_l0{way}"), bias)


def _one_way(weights: _Weights, x_BZF: Tensor, told_BH: Tensor, epsilon: float) -> Tensor:
    steps = _steps(weights, x_BZF)
    given, before = weights.given.chunk(4)[2], weights.before.chunk(4)[2]
    of_state, of_cell = told_BH, torch.zeros_like(told_BH)
    found: list[Tensor] = []
    for step in reversed(steps):
        of_cell = of_cell + of_state  # the output gate takes none
        share = of_cell / _away_from_0(step.kept + step.new, epsilon)
        of_candidate, of_cell = step.new * share, step.kept * share
        share = of_candidate / _away_from_0(step.candidate, epsilon)
        found.append(step.x * (share @ given))
        of_state = step.before * (share @ before)
    return torch.stack(found[::-1], 1)


def _steps(weights: _Weights, x_BZF: Tensor) -> list[_Step]:
    """The LSTM slice by slice, with what it otherwise keeps to itself."""
    state = cell = x_BZF.new_zeros(len(x_BZF), weights.before.shape[1])
    steps: list[_Step] = []
    for x in x_BZF.unbind(1):
        parts = x @ weights.given.T + state @ weights.before.T + weights.bias
        inside, forget, candidate, outside = parts.chunk(4, 1)
        kept, new = torch.sigmoid(forget) * cell, torch.sigmoid(inside) * torch.tanh(candidate)
        steps.append(_Step(x, state, candidate, kept, new))
        cell = kept + new
        state = torch.sigmoid(outside) * torch.tanh(cell)
    return steps


def _convolved(block: nn.Module) -> Callable[[Tensor], Tensor]:
    """A block's padding and convolution, as one linear layer."""
    padding, convolution, *_ = block.children()
    return lambda x: convolution(padding(x))


def _shared(layer: Callable[[Tensor], Tensor], x: Tensor, told: Tensor, epsilon: float) -> Tensor:
    """R_i = x_i sum_j w_ij R_j / (z_j + epsilon sign(z_j)), for any linear layer."""
    with torch.enable_grad():
        given = x.detach().requires_grad_()
        made = layer(given)
        share = told / _away_from_0(made.detach(), epsilon)
        (gradient,) = torch.autograd.grad(made, given, share)
    return x * gradient


def _away_from_0(z: Tensor, epsilon: float) -> Tensor:
    return z + torch.where(z >= 0, epsilon, -epsilon)
