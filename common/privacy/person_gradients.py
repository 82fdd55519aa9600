"""Gradients of single people: of one at a time, or of many at once, to the same numbers.

A person's gradient is that of her own loss: each term is the mean over those of her samples that
count in it, so nothing of it depends on who else is in a step. One at a time needs no hook and no
rule for any layer, and the memory of one person. Many at once (`torch.func`, or layer by layer in
`by_layer`) save what small samples lose to the start of each operation.

Letters in shapes: P people, S samples of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from common.network.loss import autocast, total_loss


class NotByPersonError(RuntimeError):
    """Some parameter has no gradient for each person: it would leave as it is, or not at all."""


class PersonGradients(Protocol):
    """The gradients of P people, perhaps never made one by one."""

    def lengths(self, names: Sequence[str]) -> Tensor:
        """(P,) on the CPU: the length of each person's gradient over these parameters."""

    def add_to(self, sums: Mapping[str, Tensor], names: Sequence[str], factors_P: Tensor) -> None:
        """Add, to the sum of each of these parameters, everyone's gradient times her factor.

        Whoever has factor 0 adds nothing, be her gradient infinite.
        """


class Made:
    """Gradients that were made, (P, *shape) of each parameter; None where no loss of hers reaches.

    Raises
    ------
    NotByPersonError
        If some parameter's gradients are not by person.
    """

    def __init__(
        self,
        gradients: Mapping[str, Tensor | None],
        named: Mapping[str, nn.Parameter],
        people: int,
    ) -> None:
        for name, parameter in named.items():
            gradient = gradients.get(name)
            if gradient is None and name in gradients and people == 1:
                continue
            if gradient is None or gradient.shape != (people, *parameter.shape):
                found = None if gradient is None else tuple(gradient.shape)
                raise NotByPersonError(
                    f"the gradient of {name} is {found}; {(people, *parameter.shape)} is needed"
                )
        self._people = people
        self._made = {name: g for name, g in gradients.items() if g is not None}

    def lengths(self, names: Sequence[str]) -> Tensor:
        """(P,) on the CPU: the length of each person's gradient over these parameters."""
        held = [self._made[name] for name in names if name in self._made]
        if not held:
            return torch.zeros(self._people)
        if self._people == 1:
            return nn.utils.get_total_norm([gradient[0] for gradient in held])[None].cpu()
        parts = torch.stack([g.flatten(1).norm(dim=1) for g in held])
        found: Tensor = torch.linalg.vector_norm(parts, dim=0).cpu()
        return found

    def add_to(self, sums: Mapping[str, Tensor], names: Sequence[str], factors_P: Tensor) -> None:
        """Add, to the sum of each of these parameters, everyone's gradient times her factor."""
        held = {name: self._made[name] for name in names if name in self._made}
        if not factors_P.all():
            held = {name: torch.nan_to_num(g, 0.0, 0.0, 0.0) for name, g in held.items()}
        for name, gradient in held.items():
            if self._people == 1:
                sums[name].add_(gradient[0], alpha=float(factors_P))
            else:
                sums[name].add_(torch.tensordot(factors_P.to(gradient), gradient, 1))


class Loss(nn.Module):
    """The weighted loss of one person's samples, as a module that `functional_call` can call."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_S: Tensor, labels_S: Mapping[str, Tensor]) -> Tensor:
        with autocast(x_S.device):
            terms = self.network.terms(x_S, labels_S)
        return total_loss(terms, self.network.weights)


def of_one(network: nn.Module, x_S: Tensor, labels_S: Mapping[str, Tensor]) -> PersonGradients:
    """The gradient of the person whose samples are x (S, *shape), with P = 1."""
    named = dict(trained(network))
    loss = Loss(network)(x_S, labels_S)
    if not loss.requires_grad:  # no loss of hers reaches any parameter
        return Made(dict.fromkeys(named), named, 1)
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    hers = {
        name: None if gradient is None else gradient[None]
        for name, gradient in zip(named, found, strict=True)
    }
    return Made(hers, named, 1)


def of_many(network: nn.Module, x_PS: Tensor, labels_PS: Mapping[str, Tensor]) -> PersonGradients:
    """The gradients of people with equally many samples, x (P, S, *shape)."""
    loss = Loss(network)
    arrays = {name: p.detach() for name, p in trained(loss)}

    def of_her(arrays: Mapping[str, Tensor], x_S: Tensor, labels_S: Mapping[str, Tensor]) -> Tensor:
        found: Tensor = functional_call(loss, arrays, (x_S, labels_S))  # type: ignore[arg-type]
        return found

    by_person = vmap(grad(of_her), in_dims=(None, 0, 0), randomness="different")
    found = by_person(arrays, x_PS, dict(labels_PS))
    made = {name.removeprefix("network."): gradient for name, gradient in found.items()}
    return Made(made, dict(trained(network)), len(x_PS))


def trained(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that are trained."""
    return ((name, p) for name, p in network.named_parameters() if p.requires_grad)
