"""Residual convolutions for images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from tunelab.errors import ConfigError
from tunelab.models.blocks import StochasticDepth, drop_rates


class ResNet(nn.Sequential):
    """A stem, stages of residual blocks, image mean, dropout, linear head.

    Each stage has twice the channels of the one before it, up to `width`. The first convolution of each but the first
    strides, while the image is larger than 2 pixels. width=512, blocks=[2, 2, 2, 2] and a stem of 7, 2, 3 with its pool
    are the 18 layers of the paper; bottleneck blocks stride in their middle convolution.

    No norm begins at zero, as is customary for the last of a block: its convolutions would get no gradient in the first
    step and look dead, and at these depths nothing is gained.

    Args:
        input_shape: (channels, height, width) of one image.
        output_size: Values per image.
        width: Channels of the last stage.
        depth: Residual blocks, shared out among the stages, the first ones first.
        activation: Makes an activation.
        stages: Most stages; there are no more than blocks.
        blocks: Blocks of each stage, instead of `depth` and `stages`; None to derive them.
        bottleneck: Blocks of three convolutions (1, kernel_size, 1) around a quarter of the channels, not of two.
        kernel_size: Odd edge length of a block's convolutions, in pixels; the padding keeps the image's size.
        stride: Of the first block of each stage but the first, in pixels.
        stem_kernel_size: Edge length of the first convolution, in pixels.
        stem_stride: Of the first convolution, in pixels.
        stem_padding: Pixels of zeros around the image; None for half of the stem's kernel.
        stem_pool: Whether a maximum over 3 x 3 pixels, with stride 2, follows the stem.
        dropout: Share of the units in front of the head zeroed in training, in [0, 1).
        stochastic_depth: Share of the examples that skip the last block in training, in [0, 1).
        normalization: none or batch.

    Reference:
        He et al. 2016, arXiv:1512.03385, section 3.3 and table 1.
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
        stages: int = 4,
        blocks: Sequence[int] | None = None,
        bottleneck: bool = False,
        kernel_size: int = 3,
        stride: int = 2,
        stem_kernel_size: int = 3,
        stem_stride: int = 1,
        stem_padding: int | None = None,
        stem_pool: bool = False,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        normalization: str = "batch",
    ) -> None:
        if normalization == "layer":
            raise ConfigError(
                "`model.normalization` must be none or batch for the resnet, got layer. Try model.normalization=batch."
            )
        norm = normalization == "batch"
        counts = blocks or _shares(depth, min(stages, depth))
        channels = [max(min(4, width), width // 2**left) for left in reversed(range(len(counts)))]
        before = max(1, channels[0] // 4) if bottleneck else channels[0]
        padding = stem_kernel_size // 2 if stem_padding is None else stem_padding
        layers = _convolution("", input_shape[0], before, stem_kernel_size, stem_stride, padding, norm=norm)
        layers["activation"] = activation()
        edge = (min(input_shape[1:]) + 2 * padding - stem_kernel_size) // stem_stride + 1
        if stem_pool:
            layers["pool"] = nn.MaxPool2d(3, stride=2, padding=1)
            edge = (edge + 1) // 2
        layers = OrderedDict(stem=nn.Sequential(layers))
        block = partial(ResidualBlock, bottleneck=bottleneck, norm=norm)
        rates = iter(drop_rates(stochastic_depth, sum(counts)))
        for number, (count, after) in enumerate(zip(counts, channels, strict=True), start=1):
            stage = nn.Sequential()
            for index in range(count):
                here = stride if number > 1 and index == 0 and edge > 2 else 1
                edge = (edge - 1) // here + 1
                stage.append(block(before, after, kernel_size, here, activation, drop_rate=next(rates)))
                before = after
            layers[f"stage{number}"] = stage
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["dropout"] = nn.Dropout(dropout)
        layers["head"] = nn.Linear(width, output_size)
        super().__init__(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Args:
            images: Shape (batch, channels, height, width).

        Returns:
            Shape (batch, output_size).
        """
        outputs: Tensor = super().forward(images)
        return outputs


class ResidualBlock(nn.Module):
    """Convolutions with norms, added to what came in, and an activation over the sum.

    y = activation( drop(branch(x)) + shortcut(x) )

    The shortcut is the identity, or a 1 x 1 convolution where channels or edges change.

    Args:
        before: Channels that come in.
        after: Channels that go out.
        kernel_size: Odd edge length of the convolutions, in pixels.
        stride: Of one of them, and of the shortcut.
        activation: Makes an activation.
        bottleneck: Three convolutions (1, kernel_size, 1) around a quarter of the channels, not two.
        norm: Whether a batch norm follows each convolution.
        drop_rate: See `StochasticDepth`.
    """

    def __init__(
        self,
        before: int,
        after: int,
        kernel_size: int,
        stride: int,
        activation: Callable[[], nn.Module],
        *,
        bottleneck: bool,
        norm: bool,
        drop_rate: float,
    ) -> None:
        super().__init__()
        inner = max(1, after // 4)
        plan = [(before, after, kernel_size, stride), (after, after, kernel_size, 1)]
        if bottleneck:
            plan = [(before, inner, 1, 1), (inner, inner, kernel_size, stride), (inner, after, 1, 1)]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (inputs, outputs, kernel, here) in enumerate(plan, start=1):
            layers |= _convolution(str(number), inputs, outputs, kernel, here, kernel // 2, norm=norm)
            if number < len(plan):
                layers[f"activation{number}"] = activation()
        self.branch = nn.Sequential(layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(_convolution("", before, after, 1, stride, 0, norm=norm))
        self.drop = StochasticDepth(drop_rate)
        self.activation = activation()

    def forward(self, images: Tensor) -> Tensor:
        """Args:
            images: Shape (batch, before, height, width).

        Returns:
            Shape (batch, after, height / stride, width / stride), rounded up.
        """
        outputs: Tensor = self.activation(self.drop(self.branch(images)) + self.shortcut(images))
        return outputs


def _convolution(
    suffix: str, before: int, after: int, kernel_size: int, stride: int, padding: int, *, norm: bool
) -> OrderedDict[str, nn.Module]:
    """A convolution and its norm, if it has one, by name."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers[f"conv{suffix}"] = nn.Conv2d(before, after, kernel_size, stride, padding, bias=not norm)  # the norm has one
    if norm:
        layers[f"norm{suffix}"] = nn.BatchNorm2d(after)
    return layers


def _shares(depth: int, stages: int) -> list[int]:
    """As many blocks for each stage as for the others; what is left over, one each from the first on."""
    return [depth // stages + (number < depth % stages) for number in range(stages)]
