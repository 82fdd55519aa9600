"""Gradients by person of dense, convolutional and normalising layers, hardly one of them made.

One pass forward and one back over all people give, of each layer, what came in (x) and how the
loss changes with what went out (g). From these follows the length of each person's gradient: over
T places |sum_t g_t x_t'|^2 = sum_tu (g_t . g_u) (x_t . x_u), which costs T^2 numbers in place of a
gradient as large as the layer (Goodfellow 2015; Li et al. 2022). Once it is known by how much each
person is cut down, the sum is a usual gradient of g times that (Bu et al. 2023). Where T^2 is the
larger, as in the first convolutions of a volume, her gradient is made.

It listens to functions, not to modules: whatever reaches a trained parameter by another way than
these has a gradient of the whole batch, and is refused (`NotByPersonError`). On the CPU alone, in
float32; elsewhere `of_many` does the same.

Letters in shapes: P people, S samples of each, B = P S, T places, I and O channels, C either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from common.network.loss import counted
from common.privacy.person_gradients import NotByPersonError, trained

_aten: Final = torch.ops.aten
_CONVOLUTIONS: Final = (torch.conv1d, torch.conv2d, torch.conv3d)


class Layered:
    """The gradients of P people, by what each layer noted of them."""

    def __init__(self, noted: Mapping[str, _Noted], people: int) -> None:
        self._noted, self._people = noted, people

    @torch.no_grad()
    def lengths(self, names: Sequence[str]) -> Tensor:
        """(P,): the length of each person's gradient over these parameters."""
        squares = torch.zeros(self._people, dtype=torch.float64)
        for name in names:
            squares += self._noted[name].squares()
        return squares.clamp(min=0).sqrt().float()

    @torch.no_grad()
    def add_to(self, sums: Mapping[str, Tensor], names: Sequence[str], factors_P: Tensor) -> None:
        """Add, to the sum of each of these parameters, everyone's gradient times her factor."""
        for name in names:
            sums[name].add_(self._noted[name].weighted(factors_P.to(sums[name])))


def of_layers(network: Any, x_PS: Tensor, labels_PS: Mapping[str, Tensor]) -> Layered:
    """The gradients of people with equally many samples, x (P, S, *shape).

    Raises
    ------
    NotByPersonError
        If a trained parameter is used otherwise than once, by a layer that is known here.
    """
    named = dict(trained(network))
    people, samples = x_PS.shape[:2]
    with _Listening(named.values(), people, samples) as heard:
        labels = {name: label.flatten() for name, label in labels_PS.items()}
        terms = network.terms(x_PS.flatten(0, 1), labels)
    parts = []
    for name, term in terms.items():
        hers = term.counted.view(people, samples).sum(1).clamp(min=1)
        lost = (counted(term).view(people, samples).sum(1) / hers).sum()
        parts.append(network.weights[name] * lost)
    loss = torch.stack(parts).sum()
    if not loss.requires_grad:
        raise NotByPersonError("no loss reaches any parameter")
    plain: Sequence[Tensor | None] = torch.autograd.grad(
        loss, list(named.values()), allow_unused=True
    )
    noted: dict[str, _Noted] = {}
    for (name, parameter), gradient in zip(named.items(), plain, strict=True):
        uses = heard.noted.get(id(parameter), [])
        if gradient is not None or len(uses) != 1:
            raise NotByPersonError(f"{name} is used by {len(uses)} known layers, one is needed")
        noted[name] = uses[0]
    return Layered(noted, people)


class _Noted:
    """What is known of one parameter's gradients: how long, and their weighted sum."""

    def __init__(self) -> None:
        self.squares: Callable[[], Tensor] = lambda: torch.zeros(())  # until the loss reaches it
        self.weighted: Callable[[Tensor], Tensor] = lambda _: torch.zeros(())

    def made(self, gradients: Tensor) -> None:
        """(P, *shape) gradients, since they are small or cannot be avoided."""
        self.squares = lambda: gradients.flatten(1).square().sum(1)
        self.weighted = lambda factors: torch.tensordot(factors, _without(gradients, factors), 1)

    def short(self, squares: Tensor, weighted: Callable[[Tensor], Tensor]) -> None:
        """Only their squared lengths (P,), and how their sum is made."""
        self.squares, self.weighted = lambda: squares, weighted


class _Listening(TorchFunctionMode):
    """Puts layers that note what passes in the place of those on trained parameters."""

    def __init__(self, parameters: Any, people: int, samples: int) -> None:
        super().__init__()
        self.noted: dict[int, list[_Noted]] = {}
        self._trained = {id(parameter) for parameter in parameters}
        self.people, self.samples = people, samples

    def note(self, parameter: Tensor | None) -> _Noted | None:
        """Where to note a parameter's gradients; None if it is not trained."""
        if parameter is None or id(parameter) not in self._trained:
            return None
        noted = _Noted()
        self.noted.setdefault(id(parameter), []).append(noted)
        return noted

    def by_person(self, tensor: Tensor) -> Tensor:
        """(B, ...) as (P, S, ...)."""
        if len(tensor) != self.people * self.samples:
            raise NotByPersonError(f"a layer sees {len(tensor)} rows that are not the samples")
        found: Tensor = tensor.unflatten(0, (self.people, self.samples))
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        layer = _LAYERS.get(func)
        if layer is None or not any(id(one) in self._trained for one in (*args, *given.values())):
            return func(*args, **given)
        return layer(self, *args, **given)


def _without(tensor: Tensor, factors_P: Tensor) -> Tensor:
    """(P, ...) with 0 in the place of people whose factor is 0: theirs may be infinite."""
    kept = factors_P != 0
    return tensor if kept.all() else tensor.where(_beside(kept, tensor), 0.0)


def _beside(factors_P: Tensor, tensor: Tensor) -> Tensor:
    return factors_P.view(-1, *(1,) * (tensor.dim() - 1))


def _gram(x_PTI: Tensor, g_PTO: Tensor) -> Tensor:
    """(P,) squared lengths of sum_t g_t x_t'."""
    if x_PTI.shape[1] == 1:
        return x_PTI.square().sum((1, 2)) * g_PTO.square().sum((1, 2))
    return ((x_PTI @ x_PTI.mT) * (g_PTO @ g_PTO.mT)).sum((1, 2))


class _Dense(torch.autograd.Function):
    """(B, ..., I) to (B, ..., O)."""

    @staticmethod
    def forward(ctx: Any, heard: _Listening, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        ctx.heard, ctx.notes = heard, (heard.note(weight), heard.note(bias))
        ctx.save_for_backward(x, weight)
        heard.by_person(x)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, *given: Any) -> Any:
        (g,), (x, weight) = given, ctx.saved_tensors  # type: ignore[attr-defined]
        heard, (of_weight, of_bias) = ctx.heard, ctx.notes  # type: ignore[attr-defined]
        x_PTI, g_PTO = (heard.by_person(t).flatten(1, -2) for t in (x, g))
        if of_weight is not None and x_PTI.shape[1] ** 2 > weight.numel():
            of_weight.made(g_PTO.mT @ x_PTI)
        elif of_weight is not None:

            def weighted(factors_P: Tensor) -> Tensor:
                g_BO = (_without(g_PTO, factors_P) * _beside(factors_P, g_PTO)).flatten(0, 1)
                return g_BO.T @ _without(x_PTI, factors_P).flatten(0, 1)

            of_weight.short(_gram(x_PTI, g_PTO), weighted)
        if of_bias is not None:
            of_bias.made(g_PTO.sum(1))
        return None, (g @ weight if ctx.needs_input_grad[1] else None), None, None  # type: ignore[attr-defined]


class _Convolution(torch.autograd.Function):
    """(B, I, ...) to (B, O, ...)."""

    @staticmethod
    def forward(
        ctx: Any, heard: _Listening, x: Tensor, weight: Tensor, bias: Any, how: Any
    ) -> Tensor:
        ctx.heard, ctx.how, ctx.notes = heard, how, (heard.note(weight), heard.note(bias))
        ctx.save_for_backward(x, weight)
        heard.by_person(x)
        stride, padding, dilation, groups = how
        none = [0] * len(stride)
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, none, groups)

    @staticmethod
    def backward(ctx: FunctionCtx, *given: Any) -> Any:
        (g,), (x, weight) = given, ctx.saved_tensors  # type: ignore[attr-defined]
        heard, how, notes = ctx.heard, ctx.how, ctx.notes  # type: ignore[attr-defined]
        of_weight, of_bias = notes
        g_PS, x_PS = heard.by_person(g), heard.by_person(x)
        if of_weight is not None and _is_short(g_PS, weight, how):
            g_PTO = g_PS.flatten(3).transpose(2, 3).flatten(1, 2)

            def weighted(factors_P: Tensor) -> Tensor:
                many = (_without(t, factors_P) for t in (g_PS, x_PS))
                g, x = (t.flatten(0, 1) for t in many)
                each = factors_P.repeat_interleave(heard.samples)
                return _back(g * _beside(each, g), x, weight, how, wanted=1)

            of_weight.short(_gram(_seen(x_PS, weight, how), g_PTO), weighted)
        elif of_weight is not None:
            pairs = zip(*(t.split(heard.samples) for t in (g, x)), strict=True)
            of_weight.made(torch.stack([_back(g, x, weight, how, wanted=1) for g, x in pairs]))
        if of_bias is not None:
            of_bias.made(g_PS.flatten(3).sum((1, 3)))
        grad = _back(g, x, weight, how, wanted=0) if ctx.needs_input_grad[1] else None  # type: ignore[attr-defined]
        return None, grad, None, None, None


def _is_short(g_PS: Tensor, weight: Tensor, how: Any) -> bool:
    """Whether a person's length is told with fewer numbers than her gradient has."""
    places = g_PS.shape[1] * prod(g_PS.shape[3:])
    plain = how[3] == 1 and set(how[2]) == {1}
    return plain and places**2 <= weight.numel()


def _seen(x_PS: Tensor, weight: Tensor, how: Any) -> Tensor:
    """(P, T, I k): what the kernel sees at each place."""
    stride, padding, *_ = how
    around = [edge for edge in reversed(padding) for _ in (0, 1)]
    seen = functional.pad(x_PS.flatten(0, 1), around)
    edges = weight.shape[2:]
    for axis, (edge, step) in enumerate(zip(edges, stride, strict=True), start=2):
        seen = seen.unfold(axis, edge, step)
    places = range(2, 2 + len(edges))
    seen = seen.permute(0, *places, 1, *range(2 + len(edges), seen.dim()))
    people, samples = x_PS.shape[:2]
    return seen.reshape(people, samples * prod(seen.shape[1 : 1 + len(edges)]), -1)


def _back(g: Tensor, x: Tensor, weight: Tensor, how: Any, *, wanted: int) -> Tensor:
    """A convolution's gradient by its input (0) or by its weight (1)."""
    stride, padding, dilation, groups = how
    mask, none = [wanted == 0, wanted == 1, False], [0] * len(stride)
    found = _aten.convolution_backward(
        g,
        x,
        weight,
        None,
        stride,
        padding,
        dilation,
        False,
        none,
        groups,
        mask,
    )
    return found[wanted]  # type: ignore[no-any-return]


class _Normalisation(torch.autograd.Function):
    """Group or layer normalisation: each person's own pass back gives her gradients."""

    @staticmethod
    def forward(ctx: Any, heard: _Listening, x: Tensor, weight: Any, bias: Any, how: Any) -> Tensor:
        ctx.heard, ctx.how, ctx.notes = heard, how, (heard.note(weight), heard.note(bias))
        heard.by_person(x)
        x = x.contiguous(memory_format=_layout(x))
        name, places, steady = how
        if name == "group":
            one = (len(x), x.shape[1], prod(x.shape[2:]), places)
            made, mean, deviation = torch.native_group_norm(x, weight, bias, *one, steady)
        else:
            made, mean, deviation = torch.native_layer_norm(x, places, weight, bias, steady)
        ctx.save_for_backward(x, weight, bias, mean, deviation)
        return made

    @staticmethod
    def backward(ctx: FunctionCtx, *given: Any) -> Any:
        (g,), (x, weight, bias, mean, deviation) = given, ctx.saved_tensors  # type: ignore[attr-defined]
        heard, (name, places, _) = ctx.heard, ctx.how  # type: ignore[attr-defined]
        # split, not indexed: of one sample, strides would be such as torch's kernels misread
        parts = [t.split(heard.samples) for t in (g, x, mean, deviation)]
        everything = [True, True, True]
        behind: list[Tensor] = []
        of_weight: list[Tensor] = []
        of_bias: list[Tensor] = []
        for g_S, x_S, mean_S, deviation_S in zip(*parts, strict=True):
            if name == "group":
                shape = (len(x_S), x_S.shape[1], prod(x_S.shape[2:]), places)
                found = _aten.native_group_norm_backward(
                    g_S.contiguous(memory_format=_layout(x_S)), x_S, mean_S, deviation_S, weight,
                    *shape, everything,
                )  # fmt: skip
            else:
                found = _aten.native_layer_norm_backward(
                    g_S, x_S, places, mean_S, deviation_S, weight, bias, everything
                )
            for kept, one in zip((behind, of_weight, of_bias), found, strict=True):
                kept.append(one)
        for note, made in zip(ctx.notes, (of_weight, of_bias), strict=True):  # type: ignore[attr-defined]
            if note is not None:
                note.made(torch.stack(made))
        return None, torch.cat(behind), None, None, None


def _layout(x: Tensor) -> torch.memory_format:
    wide = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if wide is not None and x.is_contiguous(memory_format=wide):
        return wide
    return torch.contiguous_format


def _dense(heard: _Listening, input: Tensor, weight: Tensor, bias: Any = None) -> Any:  # noqa: A002  torch's names
    return _Dense.apply(heard, input, weight, bias)  # type: ignore[no-untyped-call]


def _convolution(
    heard: _Listening,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    axes = weight.dim() - 2
    if isinstance(padding, str) or input.dim() != weight.dim():
        raise NotByPersonError(f"a convolution pads by {padding}")
    how = [(one,) * axes if isinstance(one, int) else tuple(one) for one in
           (stride, padding, dilation)]  # fmt: skip
    return _Convolution.apply(  # type: ignore[no-untyped-call]
        heard, input, weight, bias, (*how, groups)
    )


def _group_norm(
    heard: _Listening,
    input: Tensor,  # noqa: A002
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    how = ("group", num_groups, eps)
    return _Normalisation.apply(heard, input, weight, bias, how)  # type: ignore[no-untyped-call]


def _layer_norm(
    heard: _Listening,
    input: Tensor,  # noqa: A002
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    how = ("layer", list(normalized_shape), eps)
    return _Normalisation.apply(heard, input, weight, bias, how)  # type: ignore[no-untyped-call]


_LAYERS: Final[dict[Any, Callable[..., Any]]] = {
    functional.linear: _dense,
    functional.group_norm: _group_norm,
    functional.layer_norm: _layer_norm,
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
}
