"""Fully connected layers."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

NORMALIZATIONS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class MLP(nn.Sequential):
    """Hidden layers of equal width, each followed by normalization, activation and dropout; then a linear head.

    Args:
        input_shape: Shape of one example; it is flattened.
        output_size: Values per example.
        width: Units of each hidden layer.
        depth: Hidden layers.
        activation: Makes an activation.
        dropout: Share of the units zeroed in training, in [0, 1).
        normalization: none, batch or layer.
    """

    kinds = ("table", "image", "sequence")

    def __init__(
        self,
        input_shape: tuple[int, ...],
        output_size: int,
        *,
        width: int,
        depth: int,
        activation: Callable[[], nn.Module],
        dropout: float = 0.0,
        normalization: str = "none",
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if len(input_shape) > 1:
            layers["flatten"] = nn.Flatten()
        inputs = math.prod(input_shape)
        for number in range(1, depth + 1):
            layers[f"hidden{number}"] = nn.Linear(inputs, width)
            if normalization != "none":
                layers[f"norm{number}"] = NORMALIZATIONS[normalization](width)
            layers[f"activation{number}"] = activation()
            if dropout:
                layers[f"dropout{number}"] = nn.Dropout(dropout)
            inputs = width
        layers["head"] = nn.Linear(inputs, output_size)
        super().__init__(layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Args:
            inputs: Shape (batch, *input_shape).

        Returns:
            Shape (batch, output_size).
        """
        outputs: Tensor = super().forward(inputs)
        return outputs
