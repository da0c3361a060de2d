"""A transformer for images, which reads them as a sequence of patches."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tunelab.errors import ConfigError
from tunelab.models.blocks import Encoder


class ViT(nn.Module):
    """Patches as tokens, an encoder over them, and a linear head.

    Args:
        input_shape: (channels, height, width) of one image.
        output_size: Values per image.
        width: Values of a token, the hidden size.
        depth: Blocks, the layers.
        activation: Makes an activation.
        patch_size: Edge length of a patch, in pixels; None for the largest one that divides the image, up to a
            quarter of its shorter edge and 16 pixels.
        heads: Of each attention; None for the largest of 8, 4, 2 and 1 that divide the width into at least 8 values.
        mlp_ratio: Hidden units of a block, as a multiple of the width.
        dropout: Share of the units zeroed in training, in [0, 1).
        attention_dropout: Share of the attention weights zeroed in training, in [0, 1).
        stochastic_depth: Share of the examples that skip the last block in training, in [0, 1).
        pooling: class_token or mean.

    Reference:
        Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1.
    """

    kinds = ("image",)

    def __init__(
        self,
        input_shape: tuple[int, ...],
        output_size: int,
        *,
        width: int,
        depth: int,
        activation: Callable[[], nn.Module],
        patch_size: int | None = None,
        heads: int | None = None,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        pooling: str = "class_token",
    ) -> None:
        super().__init__()
        channels, height, across = input_shape
        sizes = [size for size in range(1, min(height, across) + 1) if height % size == 0 and across % size == 0]
        if patch_size is None:
            patch_size = max(size for size in sizes if size == 1 or size <= min(16, min(height, across) // 4))
        if patch_size not in sizes:
            raise ConfigError(
                f"`model.patch_size` must divide the image's height and width, got {patch_size} for {height} x "
                f"{across} pixels. Try model.patch_size={min(sizes, key=lambda size: abs(size - patch_size))}."
            )
        self.embedding = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.encoder = Encoder(
            (height // patch_size) * (across // patch_size),
            width=width,
            depth=depth,
            activation=activation,
            heads=heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
            stochastic_depth=stochastic_depth,
            pooling=pooling,
            positions=True,
        )
        self.head = nn.Linear(width, output_size)

    def forward(self, images: Tensor) -> Tensor:
        """Args:
            images: Shape (batch, channels, height, width).

        Returns:
            Shape (batch, output_size).
        """
        tokens = self.embedding(images).flatten(2).transpose(1, 2)  # (batch, patches, width)
        outputs: Tensor = self.head(self.encoder(tokens))
        return outputs
