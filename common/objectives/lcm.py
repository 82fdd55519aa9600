"""Every class of every target is a token that asks the brain for itself (Large Connectome Model).

One token a class, one for a regression target, each a row of a table that is addressed by the
target's name: sites with other targets share the decoder, and a target's rows are averaged over
those that hold its labels. One linear layer turns every token behind every layer into a logit.

Wei et al. read the layers in two stages. First the loss is of the mean over layers. Later it is of
that layer, for each sample, whose logit of the true class is largest. That choice needs the label:
it is made in training alone. Whoever judges takes the maximum over layers of each class by itself.
What is measured on a scale is read from the mean over layers throughout.

Letters in shapes: B samples, L layers, K tokens of a target, P of all targets, E features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from common.objectives import regression
from common.seams import LABELS, SHARED, Terms
from common.sections import Target
from common.settings import Table


class Lcm(nn.Module):
    """Tokens by target, on a backbone that decodes them."""

    supervised: ClassVar[bool] = True
    finetunes: ClassVar[bool] = True

    class Settings(Table):
        """Keys of `[objective]`."""

        name: Literal["lcm"] = Field(description="This objective.")
        targets: tuple[str, ...] = Field(
            (), description="Targets to learn; empty: all that no fine-tuning task is about."
        )
        mean_epochs: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
            5,
            description="Epochs, of all rounds together and again of each task, in which the loss "
            "is of the mean over layers; later it is of the layer that is surest of the true "
            "class.",
            examples=[5],
        )

    def __init__(self, settings: Settings, backbone: Any, targets: Mapping[str, Target]) -> None:
        super().__init__()
        if not hasattr(backbone, "decode"):
            raise ValueError('lcm asks a backbone that decodes tokens; backbone.name = "lcm" does')
        self.settings, self.backbone, self.targets = settings, backbone, dict(targets)
        self.weights = {name: target.weight for name, target in targets.items()}
        self.tokens = nn.ModuleDict(
            {name: nn.Embedding(_count(t), backbone.features) for name, t in targets.items()}
        )
        self.score = nn.Linear(backbone.features, 1)
        self.sure = False
        self.taught = frozenset(targets)

    def owner(self, name: str) -> str:
        """Tokens go by who holds their labels, the rest by what entered a loss."""
        return LABELS + name.split(".")[1] if name.startswith("tokens.") else SHARED

    def begin(self, epoch: int, of: int) -> None:
        """Which stage this epoch is of."""
        self.sure = epoch >= self.settings.mean_epochs

    def tune(self, method: str, task: Any) -> Any:
        """What is trained: the table of `tokens` alone, or, `semi-supervised`, everything.

        Only the latter keeps old groups in the loss, wherever the site knows their labels: what
        was acquired (everyone rests), age or sex. By any other method the task alone is in it, and
        old tokens are there to be looked at.
        """
        if method == "semi-supervised":
            return [""]
        self.taught = frozenset({task.target_name})
        return ["tokens."] if method == "tokens" else NotImplemented

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (B, L, K) of each target's tokens behind every layer."""
        logits_BLP = self.score(self._decoded(x))[..., 0].transpose(0, 1)
        counts = [_count(target) for target in self.targets.values()]
        return dict(zip(self.targets, logits_BLP.split(counts, 2), strict=True))

    def features(self, x: Tensor) -> Tensor:
        """(B, E): what all tokens together have gathered behind the last layer."""
        return self._decoded(x)[-1].mean(1)

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        """Loss of every sample for every target; labels are (B,), NaN where missing."""
        return self.terms_of(self(x), labels)

    def terms_of(
        self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]
    ) -> dict[str, Terms]:
        """The same of what `forward` gave: mixed samples have two people's labels."""
        return {
            name: self._terms(self.targets[name], logits.float(), labels[name])
            for name, logits in outputs.items()
            if name in self.taught
        }

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Values in the target's unit (B,), probability of the positive class (B,), or (B, K)."""
        return {
            name: _prediction(self.targets[name], logits.float())
            for name, logits in self(x).items()
        }

    def _decoded(self, x: Tensor) -> Tensor:
        table_PE = torch.cat([group.weight for group in self.tokens.values()])  # type: ignore[misc]
        return self.backbone.decode(self.backbone.memory(x), table_PE)  # type: ignore[no-any-return]

    def _terms(self, target: Target, logits_BLK: Tensor, label_B: Tensor) -> Terms:
        counted = ~torch.isnan(label_B)
        known = torch.where(counted, label_B, torch.zeros_like(label_B))
        if target.kind == "regression":
            wanted = regression.wanted(target, torch.where(counted, label_B, target.centre))
            output = logits_BLK.mean(1)[:, 0]
            # the paper's squared error is not halved
            times = 1 if target.loss else 2
            values = times * regression.loss(target, output, wanted, "squared")
            return Terms(values=values, counted=counted)
        read_BK = self._read(logits_BLK, known.long())
        values = functional.cross_entropy(read_BK, known.long(), reduction="none")
        if target.kind == "binary":
            values = values * (1 + (target.positive_weight - 1) * known)
        return Terms(values=values, counted=counted)

    def _read(self, logits_BLK: Tensor, true_B: Tensor) -> Tensor:
        """(B, K) of (B, L, K); the true class decides in the second stage of training alone."""
        if not self.training:
            return logits_BLK.amax(1)
        if not self.sure:
            return logits_BLK.mean(1)
        samples = torch.arange(len(true_B), device=true_B.device)
        return logits_BLK[samples, logits_BLK[samples, :, true_B].argmax(1)]


def _count(target: Target) -> int:
    """Tokens of a target: one a class, also of the two of a binary one."""
    return 1 if target.kind == "regression" else len(target.classes)


def _prediction(target: Target, logits_BLK: Tensor) -> Tensor:
    if target.kind == "regression":
        return regression.value(target, logits_BLK.mean(1)[:, 0])
    chances = torch.softmax(logits_BLK.amax(1), 1)
    return chances[:, 1] if target.kind == "binary" else chances
