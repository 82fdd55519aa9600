"""NiT, the neuroimage transformer (singlaayush/MINIT): a small ViT that reads a class token.

The widths are those of its tuned configuration; `dim` is 256 where the code reads it (1.80 million
parameters with one head of two classes), 128 where the configuration file says so (0.64 million).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from common.backbones.vit import TransformerSettings, Vit

Share = Annotated[float, Field(ge=0, lt=1)]


class Nit(Vit):
    """Volumes (B, X, Y, Z) to features (B, width)."""

    usual: ClassVar[tuple[int, ...]] = (64, 64, 64)
    small: ClassVar[dict[str, Any]] = {"width": 64, "depth": 2, "heads": 4, "feed_forward": 64}

    class Settings(TransformerSettings):
        """Keys of `[backbone]`."""

        name: Literal["nit"] = Field(description="This backbone.")
        patch: Annotated[int, Field(ge=1, le=64)] = Field(
            8, description="Edge of a patch in voxels.", examples=[8]
        )
        width: Annotated[int, Field(ge=1, le=8192)] = Field(
            256, description="Features of a token.", examples=[256]
        )
        depth: Annotated[int, Field(ge=1, le=100)] = Field(4, description="Blocks.", examples=[4])
        heads: Annotated[int, Field(ge=1, le=256)] = Field(
            8, description="Heads of each attention; they divide the width.", examples=[8]
        )
        feed_forward: Annotated[int, Field(ge=1, le=65536)] = Field(
            234, description="Width inside a block's feed-forward part.", examples=[234]
        )
        dropout: Share = Field(0.315, description="Dropout in every block.")
        embedding_dropout: Share = Field(0.086, description="Dropout of embedded patches.")
        readout: Literal["class"] = Field("class", description="Features: the class token.")
        attention_bias: Literal[False] = Field(
            False,
            description="Biases of queries, keys and values.",
        )

    def __init__(self, settings: Any, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__(settings, shape, normalisation)
