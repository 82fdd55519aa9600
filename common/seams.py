"""Where the science grows: what a backbone, an objective and a data kind must offer.

Tensor letters: B samples in a batch, F features of a sample, C channels, X Y Z voxels along
R(ight), A(nterior), S(uperior). `common/README.md` works one example of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from common.settings import Table

if TYPE_CHECKING:
    from torch import Tensor

Sample = NDArray[np.float32]  # (*shape), one sample

# what the axes of a sample are: (F,) numbers of a row; (X, Y, Z) voxels along R, A, S; (R, R)
# regions by regions, symmetric; (T, R) time by regions; or what only the backbone knows
Layout = Literal["table", "volume", "matrix", "series", "other"]

SHARED = "shared"  # group of arrays that are averaged by what entered a loss at each site
LABELS = "labels/"  # "labels/sex": averaged by the labels of `sex` that a site holds
TERM = "term/"  # "term/reconstruction": averaged by what entered that term of the loss
SITE = "site"  # arrays that never leave their site
FROZEN = "frozen"  # arrays that nobody trains: sent, never returned


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """One term of a loss, kept apart by sample so that any reduction stays possible.

    Averaging over the counted samples gives the ordinary loss; differentiating sample by sample
    gives the per-participant gradients that private training clips.

    values: (B,) float32, the loss of each sample; anything finite where `counted` is false.
    counted: (B,) bool, true where the sample contributes; the loop divides by how many do.
    """

    values: Tensor
    counted: Tensor


class Backbone(Protocol):
    """A `torch.nn.Module` from prepared samples (B, *shape) to features (B, F).

    features: F, what heads are sized by.
    shape: of one sample; `common.network.building.build` sets it, for objectives that reconstruct
        samples.

    Three facts tell a newcomer of it, and may be left out: `layouts`, what it takes; `usual`, the
    shape of a sample that its size is told for; `small`, settings for machines without a GPU.
    `needs_warmup`: training breaks off unless the rate rises from nothing.

    A backbone may have `owner(name)`, the group of each of its own arrays; without it the objective
    decides. Adapters on a frozen base say there which is which. With `needs_warmup` true on the
    class, a study must let the rate rise at first.
    """

    Settings: ClassVar[type[Table]]
    layouts: ClassVar[tuple[Layout, ...]]
    usual: ClassVar[tuple[int, ...]]
    small: ClassVar[Mapping[str, Any]]
    features: int
    shape: tuple[int, ...]

    def __init__(self, settings: Any, shape: tuple[int, ...], normalisation: str) -> None: ...

    def forward(self, x: Tensor) -> Tensor: ...


class Objective(Protocol):
    """A `torch.nn.Module` that holds a backbone as `backbone`, and what it is trained by.

    `owner(name)` says what an array of `state_dict()` is averaged by: `SHARED`, `LABELS + target`,
    `TERM + term`, or that it is `SITE`'s own or `FROZEN`. `weights` weighs the terms against each
    other. `predict` answers for targets alone; without heads it answers nothing. An objective that
    learns from labels has a key `targets` in its `Settings`.

    Five things may be left out, and are then false. `by_sums`: nothing is trained in rounds, all is
    settled by sums (`common.network.settling`). `coupled`: a sample's loss depends on the rest
    of its batch, so batches are whole and no participant has a gradient of her own. `finetunes`:
    a site's own task is learnt by this objective too, its target beside the pretraining targets.
    `supervised`: a sample without a label of any target enters no loss, so none is trained on.
    `apart`: samples without labels may enter terms of their own, so fewer people than a site's
    minimum are not trained on for it.
    `views` may be left out and is then 1; with V > 1, `terms` is given V augmented views of each
    sample, x of (B, V, *shape). With `terms_of(outputs, labels)`, the terms of what `forward` gave,
    samples may be mixed.
    """

    Settings: ClassVar[type[Table]]
    by_sums: ClassVar[bool]
    coupled: ClassVar[bool]
    finetunes: ClassVar[bool]
    supervised: ClassVar[bool]
    apart: ClassVar[bool]
    views: ClassVar[int]
    weights: Mapping[str, float]

    def __init__(self, settings: Any, backbone: Any, targets: Mapping[str, Any]) -> None: ...

    def owner(self, name: str) -> str: ...

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]: ...

    def predict(self, x: Tensor) -> dict[str, Tensor]: ...


class Augmentation(Protocol):
    """Changes one sample in a loader's thread before it is trained on; without torch's kernels.

    The sample is float32 and must not be changed in place; what is drawn comes from `generator`,
    which is seeded for this sample, in this epoch, at this site.
    """

    Settings: ClassVar[type[Table]]

    def __init__(self, settings: Any, shape: tuple[int, ...]) -> None: ...

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample: ...


class Kind(Protocol):
    """The agreement's half of a data kind: what both ends must know of a sample.

    `Study` are the keys of the study's `[data]`, `Site` those of the site file's `[data]`. How
    files become samples is the reader's half, at the sites (`client.data.reader`).
    """

    Study: ClassVar[type[Table]]
    Site: ClassVar[type[Table]]
    dtype: ClassVar[str]

    @staticmethod
    def shape(study: Any) -> tuple[int, ...]: ...

    @staticmethod
    def layout(study: Any) -> Layout: ...
