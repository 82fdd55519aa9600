"""Linear heads fitted exactly from sums: ridge for numbers, penalised logistic models for classes.

Nothing is trained in rounds. Each site adds up the products of its features (Gram matrix, cross
products with the labels), and the coordinator solves: the same numbers as if all rows lay in one
table. Classes go on by Newton steps (iteratively reweighted least squares), one exchange a step.

Penalty and the weight of sites are chosen by leaving sites out, on sums alone
(`common.least_squares`, which states the problem). Numbers are learnt as
z = (t(y) - t(centre)) / scale (`regression.py`). A class's head minimises the logistic loss with a
quarter of the penalty over two, for which its first Newton step from nothing is the ridge
solution. Letters: B samples, F features, K outputs.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from common.least_squares import Path, Products, chosen, packed, unpacked
from common.objectives import regression
from common.seams import FROZEN, Terms
from common.sections import Positive, Target
from common.settings import Table

_MOST: Final = 4096  # features; their products are then 8 million numbers
_STILL: Final = 1e-9  # of standardised coefficients: a shorter step moves no prediction
_ROUNDING: Final = 1 + 1e-9
_SLACK: Final = 1e-8  # of products of columns of length 1, whose sums round
_PENALTIES: Final = tuple(float(f"{10.0 ** (power / 4):.3g}") for power in range(-12, 5))


class Ridge(nn.Module):
    """A backbone that rests, and heads that are settled before the first round.

    With `random_features` D, heads see sqrt(2F / D) cos(W'u + b) beside the F features u: ridge on
    both approaches that of the kernel u'v + F exp(-|u - v|^2 / 4 F width^2), whose halves weigh
    alike (Rahimi and Recht 2007). Standardised one by one, D cosines would drown F columns.
    """

    supervised: ClassVar[bool] = True
    by_sums: ClassVar[bool] = True

    class Settings(Table):
        """Keys of `[objective]`."""

        name: Literal["ridge"] = Field(description="This objective.")
        targets: tuple[str, ...] = Field(
            (), description="Targets to learn; empty: all that no fine-tuning task is about."
        )
        penalties: tuple[Positive, ...] = Field(
            _PENALTIES,
            description="Penalties, for each unit of the samples' weight; leaving sites out "
            "chooses.",
            min_length=1,
            max_length=100,
        )
        site_weights: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
            (0.0, 0.5),
            description="Exponents e of the weight n^-e of a sample at a site of n: 0 counts "
            "samples alike, 1 sites; the first holds unless leaving sites out finds another better "
            "by more than a standard error over sites.",
            min_length=1,
            max_length=10,
        )
        steps: Annotated[int, Field(ge=1, le=50)] = Field(
            8, description="Newton steps of targets with classes, each an exchange with all sites."
        )
        random_features: Annotated[int, Field(ge=0, le=_MOST)] = Field(
            0, description="Random cosine features beside the columns, for curvature; 0: none."
        )
        width: Positive = Field(
            1.0, description="Width of their kernel, in typical distances of two samples."
        )

    def __init__(self, settings: Settings, backbone: Any, targets: Mapping[str, Target]) -> None:
        super().__init__()
        self.settings = settings
        self.targets = dict(targets)
        self.weights = {name: target.weight for name, target in targets.items()}
        self.backbone = backbone
        self.curvature = _curvature(settings, backbone)
        self.heads = Heads(self, backbone.features + settings.random_features)

    def owner(self, name: str) -> str:
        """All rests: heads are settled."""
        return FROZEN

    def features(self, x: Tensor) -> Tensor:
        """(B, F) float64 of samples as prepared."""
        seen: Tensor = self.backbone(x)
        return (seen if self.curvature is None else self.curvature(seen)).double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Raw outputs (B, K) of each head."""
        features = self.features(x)
        return {name: self.heads.output(name, features) for name in self.targets}

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        """Loss of every sample for every target; labels are (B,), NaN where missing."""
        return {
            name: _terms(self.targets[name], output.float(), labels[name])
            for name, output in self(x).items()
        }

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Values in the target's unit (B,), probability of the positive class (B,), or (B, K)."""
        return {name: _prediction(self.targets[name], out) for name, out in self(x).items()}


class RandomFeatures(nn.Module):
    """Standardised columns (B, F) to (B, F + D): themselves, and D random cosines of them."""

    def __init__(self, columns: int, number: int, width: float) -> None:
        super().__init__()
        # two samples of F independent columns lie sqrt(2 F) apart
        drawn = torch.randn(columns, number) / (width * math.sqrt(2 * columns))
        self.directions = nn.Parameter(drawn, requires_grad=False)
        self.phases = nn.Parameter(2 * math.pi * torch.rand(number), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        waves = (x @ self.directions + self.phases).cos()
        return torch.cat([x, waves * math.sqrt(2 * x.shape[1] / len(self.phases))], 1)


class Heads(nn.Module):
    """The settled part: for each target a standardisation, coefficients and intercepts.

    Sums are of what the whole network makes of a sample, so all its arrays come with the order.

    Buffers of target t: `centre_t`, `deviation_t` (F,), `coefficients_t` (F, K), `intercepts_t`
    (K,), `chosen_t` (penalty, exponent); while Newton steps go on, `point_t` (F + 1, K) is where
    the next sums are taken and `loss_t` the best loss so far. All float64.
    """

    sees_network: ClassVar[bool] = True

    def __init__(self, network: Ridge, features: int) -> None:
        super().__init__()
        self._still = {name for name, t in network.targets.items() if t.kind == "regression"}
        self._whole = weakref.ref(network)  # whose part this is; a copy of it speaks to the same
        self._before = passes_of(network.backbone)
        if features > _MOST:
            raise ValueError(
                f"name is ridge and a sample has {features:,} features; sums of their products are "
                f"made for at most {_MOST:,}. Take a backbone with fewer, such as an encoder by "
                "[start]"
            )
        for name, target in network.targets.items():
            outputs = target.outputs
            for part, shape in (
                ("centre", (features,)),
                ("deviation", (features,)),
                ("coefficients", (features, outputs)),
                ("intercepts", (outputs,)),
                ("chosen", (2,)),
            ):
                self._keep(part, name, torch.zeros(shape))
            self._part("deviation", name).fill_(1.0)
            if target.kind != "regression":
                self._keep("point", name, torch.zeros(features + 1, outputs))
                self._keep("loss", name, torch.tensor(1e9))

    @property
    def _network(self) -> Ridge:
        network = self._whole()
        if network is None:
            raise RuntimeError("heads have outlived their network")
        return network

    @property
    def passes(self) -> int:
        """Exchanges: what the backbone asks for, one of products, and one a Newton step.

        Once no step moves anything any more, none are left.
        """
        steps = 0 if self._still == set(self._network.targets) else self._network.settings.steps
        return self._before + 1 + steps

    def labelled(self, key: str) -> tuple[str, ...]:
        """The target whose labelled samples alone are in a sum."""
        return (key.partition("_")[2],)

    def output(self, name: str, features: Tensor) -> Tensor:
        """(B, K): standardised values of a number, logits of a binary target or of classes."""
        u = (features - self._part("centre", name)) / self._part("deviation", name)
        scores = u @ self._part("coefficients", name) + self._part("intercepts", name)
        if self._network.targets[name].kind == "categorical":  # one against the rest
            chances = torch.sigmoid(scores)
            return (chances / chances.sum(1, keepdim=True).clamp(min=1e-300)).clamp(1e-300).log()
        return scores

    def sums(self, x: Tensor, labels: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Products of all labelled samples first; then what a Newton step is made of."""
        if number < self._before:
            return {}
        network = self._network
        features = network.features(x)
        found: dict[str, Tensor] = {}
        for name, target in network.targets.items():
            if number > self._before and target.kind == "regression":
                continue
            known = ~torch.isnan(labels[name])
            z = _wanted(target, labels[name][known].double())
            one = torch.ones((int(known.sum()), 1), dtype=torch.float64, device=x.device)
            if number == self._before:
                u = torch.cat([one, features[known]], 1)
                told = {
                    "n": _number_of(u),
                    "gram": packed(u.T @ u),
                    "cross": u.T @ z,
                    "squares": z.square().sum(0),
                }
            else:
                scaled = (features[known] - self._part("centre", name)) / self._part(
                    "deviation", name
                )
                told = _newton_sums(torch.cat([one, scaled], 1), z, self._part("point", name))
            found |= {f"{part}_{name}": value for part, value in told.items()}
        return found

    def settle(self, sums: Mapping[str, Tensor], number: int) -> None:
        """The same of one site, or of sums that were added up before."""
        self.settle_by_site([sums], number)

    def settle_by_site(self, sites: Sequence[Mapping[str, Tensor]], number: int) -> None:
        """Solve, once all sites' products are there; or make one Newton step."""
        for name, target in self._network.targets.items():
            try:
                if number == self._before:
                    self._solve(name, target, sites)
                elif target.kind != "regression":
                    self._step(name, sites)
            except RuntimeError as error:  # of torch.linalg
                raise ValueError("no samples have such sums") from error

    def check_sums(self, sums: Mapping[str, Tensor], number: int) -> None:
        """Raise `ValueError` for sums of one site that no samples have; nothing is solved."""
        for name, target in self._network.targets.items():
            if number == self._before:
                products = _ProductsOf([sums], name)[0]
                bound = torch.outer(products.gram.diagonal(), products.squares).sqrt()
                sound = (products.cross.abs() <= bound * _ROUNDING).all() and _is_of_rows(
                    products.gram
                )
            elif target.kind != "regression":
                sound = (sums[f"loss_{name}"] >= 0).all() and all(
                    _is_of_rows(one) for one in unpacked(sums[f"hessian_{name}"])
                )
            else:
                continue
            if not sound:
                raise ValueError("no samples have such sums")

    def _solve(self, name: str, target: Target, sites: Sequence[Mapping[str, Tensor]]) -> None:
        settings, products = self._network.settings, _ProductsOf(sites, name)
        if not any(one.n for one in products):
            return  # nobody has labels: a head that says the centre
        penalty, exponent = chosen(
            products, settings.penalties, settings.site_weights, settings.random_features
        )
        total = None
        for one in products:
            if one.n:
                total = one.times(one.n**-exponent).plus(total)
        if total is None:
            return
        path = Path.of(total, [penalty], settings.random_features)
        a = path.coefficients[0]
        self._put("chosen", name, torch.tensor([penalty, exponent], dtype=torch.float64))
        self._put("centre", name, path.centre)
        self._put("deviation", name, path.deviation.clamp(max=1e18))
        self._put("coefficients", name, a)
        self._put("intercepts", name, path.intercepts)
        if target.kind != "regression":
            share = path.intercepts.clamp(1e-6, 1 - 1e-6)
            self._put("point", name, torch.cat([share.logit()[None], 4 * a]))
            self._put("coefficients", name, torch.zeros_like(a))  # until a point was tried
            self._put("intercepts", name, share.logit())

    def _step(self, name: str, sites: Sequence[Mapping[str, Tensor]]) -> None:
        """Newton's step where the loss fell, half the way back where it rose."""
        penalty, exponent = (float(one) for one in self._part("chosen", name))
        point = self._part("point", name).clone()
        sums, weight = None, 0.0
        for site in sites:
            n = float(site[f"n_{name}"])
            if n:
                w = n**-exponent
                own = {part: site[f"{part}_{name}"] * w for part in ("loss", "gradient", "hessian")}
                sums = own if sums is None else {part: sums[part] + own[part] for part in own}
                weight += w * n
        if sums is None:
            return
        ridge = torch.full_like(point, penalty / 4)
        ridge[0] = 0  # the intercept is free
        loss = float(sums["loss"].sum() / weight + (ridge * point.square()).sum() / 2)
        best = torch.cat([self._part("intercepts", name)[None], self._part("coefficients", name)])
        if not loss <= float(self._part("loss", name)):
            self._put("point", name, (point + best) / 2)
            return
        self._put("loss", name, torch.tensor(loss, dtype=torch.float64))
        self._put("intercepts", name, point[0])
        self._put("coefficients", name, point[1:])
        gradient = sums["gradient"] / weight + ridge * point
        hessian = unpacked(sums["hessian"]) / weight + torch.diag_embed(ridge.T)
        # a class that nobody is unsure of leaves its intercept without curvature
        hessian += 1e-9 * torch.eye(len(point), dtype=hessian.dtype)
        step = torch.linalg.solve(hessian, gradient.T[:, :, None])[:, :, 0].T
        self._put("point", name, point - step)
        if float(step.abs().max()) < _STILL:
            self._still.add(name)

    def _keep(self, part: str, name: str, value: Tensor) -> None:
        self.register_buffer(f"{part}_{name}", value.double())

    def _part(self, part: str, name: str) -> Tensor:
        found: Tensor = getattr(self, f"{part}_{name}")
        return found

    def _put(self, part: str, name: str, value: Tensor) -> None:
        if not torch.isfinite(value).all():
            raise ValueError("no samples have such sums")
        self._part(part, name).copy_(value)


class _ProductsOf(Sequence[Products]):
    """The products of one target, site by site; unpacked as they are looked at."""

    def __init__(self, sites: Sequence[Mapping[str, Tensor]], name: str) -> None:
        self._sites, self._name = sites, name

    def __len__(self) -> int:
        return len(self._sites)

    def __getitem__(self, number: Any) -> Any:
        site, name = self._sites[number], self._name
        found = Products(
            gram=unpacked(site[f"gram_{name}"]),
            cross=site[f"cross_{name}"],
            squares=site[f"squares_{name}"],
        )
        sound = found.n == float(site[f"n_{name}"]) >= 0 and (found.squares >= 0).all()
        lengths = found.gram.diagonal().clamp(min=0).sqrt()
        bound = torch.outer(lengths, lengths) * _ROUNDING  # of any two columns' product
        if not sound or not (found.gram.abs() <= bound).all():
            raise ValueError("no samples have such sums")
        return found


def _is_of_rows(square: Tensor) -> bool:
    """Whether a matrix (M, M) can be the products of the columns of any rows."""
    lengths = square.diagonal().clamp(min=0).sqrt()
    scale = torch.where(lengths > 0, 1 / lengths, 0.0)
    scaled = square * torch.outer(scale, scale) + _SLACK * torch.eye(
        len(square), dtype=square.dtype
    )
    return int(torch.linalg.cholesky_ex(scaled).info) == 0


def passes_of(backbone: nn.Module) -> int:
    """Exchanges that a backbone's own constants take."""
    return max((int(getattr(m, "passes", 0)) for m in backbone.modules()), default=0)


def _curvature(settings: Ridge.Settings, backbone: Any) -> RandomFeatures | None:
    if not settings.random_features:
        return None
    if not getattr(backbone, "standardised", False):
        raise ValueError(
            f"random_features is {settings.random_features}; they are made of standardised "
            "columns: backbone.name = linear"
        )
    return RandomFeatures(backbone.features, settings.random_features, settings.width)


def _wanted(target: Target, label_B: Tensor) -> Tensor:
    """(B, K) what a head should say: standardised numbers, or 1 for the class."""
    if target.kind == "regression":
        return regression.wanted(target, label_B)[:, None]
    if target.kind == "binary":
        return label_B[:, None]
    return functional.one_hot(label_B.long(), len(target.classes)).double()


def _number_of(u: Tensor) -> Tensor:
    return torch.tensor(float(len(u)), dtype=torch.float64, device=u.device)


def _newton_sums(u: Tensor, z: Tensor, point: Tensor) -> dict[str, Tensor]:
    """n, loss (K,), gradient (F + 1, K) and packed curvature (K, ...) of logistic losses."""
    logits = u @ point
    chances = torch.sigmoid(logits)
    curvature = chances * (1 - chances)
    losses = functional.binary_cross_entropy_with_logits(logits, z, reduction="none")
    hessian = [packed(u.T @ (u * one[:, None])) for one in curvature.T]
    return {
        "n": _number_of(u),
        "loss": losses.sum(0),
        "gradient": u.T @ (chances - z),
        "hessian": torch.stack(hessian),
    }


def _prediction(target: Target, output: Tensor) -> Tensor:
    if target.kind == "regression":
        return regression.value(target, output[:, 0])
    return torch.sigmoid(output[:, 0]) if target.kind == "binary" else torch.softmax(output, 1)


def _terms(target: Target, output: Tensor, label_B: Tensor) -> Terms:
    counted = ~torch.isnan(label_B)
    missing = target.centre if target.kind == "regression" else 0.0
    known = torch.where(counted, label_B, torch.full_like(label_B, missing))
    if target.kind == "regression":
        values = regression.loss(target, output[:, 0], regression.wanted(target, known), "squared")
    elif target.kind == "binary":
        values = functional.binary_cross_entropy_with_logits(output[:, 0], known, reduction="none")
    else:
        values = functional.cross_entropy(output, known.long(), reduction="none")
    return Terms(values=values, counted=counted)
