"""Convolutions for images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from tunelab.errors import ConfigError


class CNN(nn.Sequential):
    """A stem and stages, each a convolution with normalization, activation and dropout; image mean; linear head.

    Each stage doubles the channels, up to `width`, and strides while the image is larger than 2 pixels.

    Args:
        input_shape: (channels, height, width) of one image.
        output_size: Values per image.
        width: Channels of the last stage.
        depth: Stages after the stem.
        activation: Makes an activation.
        kernel_size: Odd edge length of each convolution, in pixels.
        stride: Of each stage after the stem, in pixels.
        padding: Pixels of zeros around the image in front of each convolution; None for half of the kernel, which
            keeps the image's size.
        dropout: Share of the channels zeroed in training, in [0, 1).
        normalization: none or batch.
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
        kernel_size: int = 3,
        stride: int = 2,
        padding: int | None = None,
        dropout: float = 0.0,
        normalization: str = "batch",
    ) -> None:
        if normalization == "layer":
            raise ConfigError(
                "`model.normalization` must be none or batch for the cnn, got layer. Try model.normalization=batch."
            )
        padding = kernel_size // 2 if padding is None else padding
        inputs, edge = input_shape[0], min(input_shape[1:])
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number in range(depth + 1):
            channels = max(min(4, width), width // 2 ** (depth - number))
            here = stride if number > 0 and edge > 2 else 1
            edge = (edge + 2 * padding - kernel_size) // here + 1
            if edge < 1:
                raise ConfigError(
                    f"`model.padding` must leave some of the image at each of the {depth} stages, got {padding} with "
                    f"kernel_size={kernel_size}, stride={stride}. Try model.padding={kernel_size // 2}."
                )
            layers[f"conv{number}"] = nn.Conv2d(
                inputs,
                channels,
                kernel_size,
                stride=here,
                padding=padding,
                bias=normalization == "none",  # the norm has one
            )
            if normalization == "batch":
                layers[f"norm{number}"] = nn.BatchNorm2d(channels)
            layers[f"activation{number}"] = activation()
            if dropout:
                layers[f"dropout{number}"] = nn.Dropout2d(dropout)
            inputs = channels
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["head"] = nn.Linear(inputs, output_size)
        super().__init__(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Args:
            images: Shape (batch, channels, height, width).

        Returns:
            Shape (batch, output_size).
        """
        outputs: Tensor = super().forward(images)
        return outputs
