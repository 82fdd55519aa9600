"""ResNet18 over volumes (He et al. 2016), by MONAI, as 3D-Neuro-SimCLR pretrains it.

With the published widths it holds 33.2 million parameters. The first convolution, 7^3, keeps its
volume's size in MONAI; `first_stride = 2` is the one of the paper and takes an eighth of the time.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from common.normalisation import GlobalAverage, renormalised
from common.seams import Layout
from common.settings import Table

Width = Annotated[int, Field(ge=1, le=4096)]


class ResNet(nn.Module):
    """Volumes (B, X, Y, Z) to features (B, widths[-1])."""

    layouts: ClassVar[tuple[Layout, ...]] = ("volume",)
    usual: ClassVar[tuple[int, ...]] = (96, 96, 96)
    small: ClassVar[dict[str, Any]] = {
        "widths": (8, 16, 32, 64),
        "layers": (1, 1, 1, 1),
        "first_stride": 2,
    }

    class Settings(Table):
        """Keys of `[backbone]`."""

        name: Literal["resnet"] = Field(description="This backbone.")
        widths: tuple[Width, Width, Width, Width] = Field(
            (64, 128, 256, 512),
            description="Channels of the four stages.",
            examples=[(64, 128, 256, 512)],
        )
        layers: tuple[Width, Width, Width, Width] = Field(
            (2, 2, 2, 2), description="Residual blocks of each stage.", examples=[(2, 2, 2, 2)]
        )
        first_stride: Literal[1, 2] = Field(
            1, description="Stride of the first convolution.", examples=[1]
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        self.stride = 16 * settings.first_stride
        if len(shape) != 3 or min(shape) < self.stride:
            raise ValueError(
                f"resnet needs volumes of at least {self.stride} voxels a side; "
                f"data.shape gives {list(shape)}"
            )
        from monai.networks.nets.resnet import ResNet as Published

        whole = Published(
            "basic", list(settings.layers), list(settings.widths), n_input_channels=1,
            conv1_t_stride=settings.first_stride, feed_forward=False,
        )  # fmt: skip
        first = nn.Sequential(whole.conv1, whole.bn1, whole.act, whole.maxpool)
        parts = (first, whole.layer1, whole.layer2, whole.layer3, whole.layer4)
        self.layers = nn.ModuleList(renormalised(part, normalisation) for part in parts)
        self.average = GlobalAverage()
        self.features = settings.widths[-1]

    def stages(self) -> list[nn.Module]:
        """The first convolution, then each stage of residual blocks."""
        return list(self.layers)

    def feature_map(self, x_BXYZ: Tensor) -> Tensor:
        """(B, F, x, y, z): one place for every `stride` voxels."""
        x_BCXYZ = x_BXYZ.unsqueeze(1)
        for layer in self.layers:
            x_BCXYZ = layer(x_BCXYZ)
        return x_BCXYZ

    def forward(self, x_BXYZ: Tensor) -> Tensor:
        return self.average(self.feature_map(x_BXYZ))  # type: ignore[no-any-return]
