"""Layer-wise relevance propagation: how much each voxel of a sample speaks for one output.

A network is run forward as it is. Backward, each of its layers hands on relevance in place of a
gradient: convolutions, dense layers, batch normalisation with its statistics and means over places
by the epsilon rule, a long short-term memory through its candidates alone, as its gates only decide
how much of them passes. What lies between layers may route values (reshape, select, join) and
rectify them: both hand relevance on unchanged. So does a module that changes each entry on its
own, and says so by `passes_relevance = True`. Anything else, such as a sum of two ways, is refused:
a map made by a wrong rule looks like any other.

Sources: Bach et al. (2015), doi 10.1371/journal.pone.0130140; Arras et al. (2019), "signal takes
all"; Thomas et al. (2019), doi 10.3389/fnins.2019.01321, who read DeepLight so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from common.errors import SettingError
from common.normalisation import GlobalAverage

EPSILON: Final = 1e-3
# the rules below, and where what comes back ends: at the sample
_OURS: Final = ("_Passed", "_Epsilon", "_Memory", "torch::autograd::AccumulateGrad")
_LINEAR: Final = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, GlobalAverage,
)  # fmt: skip
# without weights: what they do in evaluation routes or rectifies
_PASSING: Final = (
    nn.ReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity, nn.Flatten,
    nn.ZeroPad2d, nn.ZeroPad3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
)  # fmt: skip
# what autograd may have noted between layers: each hands every number of what comes back to one
# place, or nowhere where it was rectified, and adds up what comes back from several
_ROUTING: Final = frozenset({
    "Alias", "AsStrided", "Cat", "Clone", "ConstantPadNd", "Expand", "Flip", "Gather", "Index",
    "Max", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "Permute", "Relu", "ReshapeAlias",
    "Select", "Slice", "Split", "SplitWithSizes", "Squeeze", "Stack", "T", "ToCopy", "Transpose",
    "Unbind", "UnsafeView", "Unsqueeze", "View",
})  # fmt: skip


def relevance(network: nn.Module, x: Tensor, output: Callable[[Any], Tensor]) -> Tensor:
    """How much each entry of `x` speaks for one output of its sample, in the output's own unit.

    Parameters
    ----------
    network
        Of layers that a rule is known for; it is used in evaluation mode and left in its own.
    x
        A batch (B, ...).
    output
        Chooses (B,) of what the network says, such as each sample's largest logit.

    Returns
    -------
    Tensor
        Like `x`. Of a network without biases its sum over a sample is the output, but for what
        `EPSILON` takes.

    Raises
    ------
    SettingError
        If no rule is known for a layer, or for what is done between layers.
    """
    with _asked(network, x) as (given, told):
        chosen = output(told)
        _check_between([chosen])
        # the relevance of an output is its value; from there on it replaces gradients
        (found,) = torch.autograd.grad(chosen, given, grad_outputs=chosen.detach())
    return found


def check_rules(network: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse, by a `SettingError`, a network without a rule for all that it does to a sample."""
    _check_layers(network)
    device = next((weight.device for weight in network.parameters()), None)
    with _asked(network, torch.zeros(1, *shape, device=device)) as (_, told):
        _check_between(list(told.values()) if isinstance(told, Mapping) else [told])


@contextmanager
def _asked(network: nn.Module, x: Tensor) -> Iterator[tuple[Tensor, Any]]:
    """A sample and what the network says of it in evaluation mode, while layers hold to rules."""
    trained = [module for module in network.modules() if module.training]
    network.eval()
    given = x.detach().clone().requires_grad_()
    try:
        with torch.enable_grad(), _rules(network):
            yield given, network(given)
    finally:
        for module in trained:
            module.training = True


def _check_between(outputs: list[Tensor]) -> None:
    """Refuse what autograd noted between layers, unless it routes or rectifies."""
    seen, left = set(), [output.grad_fn for output in outputs]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        what = re.sub(r"Backward\d*$", "", node.name())
        if what not in _ROUTING and what not in _OURS:
            raise SettingError(
                f"no rule of relevance is known for {what.lower()}, done between layers; "
                'integrated gradients pass everything: maps = "gradients"'
            )
        left += [before for before, _ in node.next_functions]


def _check_layers(network: nn.Module) -> None:
    """Refuse a layer that no rule is known for."""
    for name, layer in network.named_modules():
        if _rule_of(layer) is None and not isinstance(layer, _PASSING) and _works_itself(layer):
            raise SettingError(
                f"no rule of relevance is known for {name}, {type(layer).__name__}; integrated "
                'gradients pass every layer: maps = "gradients"'
            )


@contextmanager
def _rules(network: nn.Module) -> Iterator[None]:
    """While it lasts, the layers of a network hand on relevance in place of gradients."""
    _check_layers(network)
    with ExitStack() as hooks:
        for layer in network.modules():
            rule = _rule_of(layer)
            if rule is not None:
                hooks.callback(layer.register_forward_hook(rule).remove)
        yield


def _rule_of(layer: nn.Module) -> Callable[..., Any] | None:
    if getattr(layer, "passes_relevance", False):
        return lambda _, given, output: _Passed.apply(  # type: ignore[no-untyped-call]
            given[0], output.detach()
        )
    if isinstance(layer, _LINEAR):
        return lambda layer, given, output: _Epsilon.apply(  # type: ignore[no-untyped-call]
            given[0], output.detach(), layer
        )
    if isinstance(layer, nn.LSTM) and layer.num_layers == 1 and not layer.proj_size:
        return lambda layer, given, _: _through_memory(layer, given[0])
    return None


def _works_itself(layer: nn.Module) -> bool:
    """Whether a module has weights of its own, or nobody in it who does its work."""
    own = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    return bool(own) or not any(layer.children())


def _stable(z: Tensor) -> Tensor:
    """`z`, no closer to 0 than `EPSILON`, on its own side of it."""
    return z + EPSILON * torch.where(z < 0, -1.0, 1.0)


class _Passed(torch.autograd.Function):
    """Each entry hands its relevance to the entry that it was made of."""

    @staticmethod
    def forward(_ctx: Any, _x: Tensor, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(_ctx: Any, *relevances: Tensor) -> tuple[Tensor, None]:
        return relevances[0], None


class _Epsilon(torch.autograd.Function):
    """R_i = x_i sum_j w_ij R_j / (z_j + eps sign z_j); what a bias adds to z goes to nobody."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, layer: nn.Module) -> Tensor:
        ctx.save_for_backward(x, z)
        ctx.layer = layer
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *relevances: Tensor) -> tuple[Tensor, None, None]:
        x, z = ctx.saved_tensors
        forward = type(ctx.layer).forward  # not called: a call would hang the hook on again
        with torch.enable_grad():
            given = x.detach().requires_grad_()
            again = forward(ctx.layer, given)
            (back,) = torch.autograd.grad(again, given, relevances[0] / _stable(z))
        return x * back, None, None


def _through_memory(layer: nn.LSTM, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What nn.LSTM answers to `x` from zeros, each direction by `_Memory`."""
    sequence = x if layer.batch_first else x.transpose(0, 1)
    outputs, cells = [], []
    for suffix in ("", "_reverse")[: 1 + layer.bidirectional]:
        turned = sequence.flip(1) if suffix else sequence
        hidden, cell = _Memory.apply(turned, layer, suffix)  # type: ignore[no-untyped-call]
        outputs.append(hidden.flip(1) if suffix else hidden)
        cells.append(cell)
    # a direction ends where its turned sequence does
    last = torch.stack([out[:, 0 if way else -1] for way, out in enumerate(outputs)])
    joined = torch.cat(outputs, dim=-1)
    return joined if layer.batch_first else joined.transpose(0, 1), (last, torch.stack(cells))


class _Memory(torch.autograd.Function):
    """One direction over (B, T, F): hidden states (B, T, H) and the last cell (B, H)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.LSTM, suffix: str) -> tuple[Tensor, Tensor]:
        of_x, of_h = (getattr(layer, f"weight_{kind}_l0{suffix}") for kind in ("ih", "hh"))
        bias: Any = 0.0
        if layer.bias:
            bias = getattr(layer, f"bias_ih_l0{suffix}") + getattr(layer, f"bias_hh_l0{suffix}")
        hidden = x.new_zeros(len(x), layer.hidden_size)
        cell, hiddens, steps = hidden, [], []
        for entered in x.unbind(1):
            z = entered @ of_x.T + hidden @ of_h.T + bias
            into, kept, candidate, out = z.chunk(4, dim=-1)
            held = torch.sigmoid(kept) * cell
            added = torch.sigmoid(into) * torch.tanh(candidate)
            steps.append((entered, hidden, held, added, candidate))
            cell = held + added
            hidden = torch.sigmoid(out) * torch.tanh(cell)
            hiddens.append(hidden)
        ctx.steps, ctx.weights = steps, [weight.chunk(4)[2] for weight in (of_x, of_h)]
        return torch.stack(hiddens, dim=1), cell

    @staticmethod
    def backward(ctx: Any, *relevances: Tensor) -> tuple[Tensor, None, None]:
        of_outputs, of_cell = relevances
        of_x, of_h = ctx.weights
        of_hidden = torch.zeros_like(of_cell)
        found: list[Tensor] = []
        for entered, before, held, added, candidate in reversed(ctx.steps):
            of_hidden = of_hidden + of_outputs[:, len(ctx.steps) - 1 - len(found)]
            share = (of_cell + of_hidden) / _stable(held + added)
            signal = added * share / _stable(candidate)
            found.append(entered * (signal @ of_x))
            of_hidden, of_cell = before * (signal @ of_h), held * share
        return torch.stack(found[::-1], dim=1), None, None
