"""A model of our own: any nn.Module."""

import math
from collections.abc import Callable

from torch import nn


class Net(nn.Sequential):
    """A network with one hidden layer.

    Args:
        input_shape: Shape of one example; comes from the data.
        output_size: Number of classes; comes from the data.
        width: Units of the hidden layer.
        activation: Makes its activation.
    """

    def __init__(
        self, *, input_shape: tuple[int, ...], output_size: int, width: int, activation: Callable[[], nn.Module]
    ) -> None:
        hidden = nn.Linear(math.prod(input_shape), width)
        super().__init__(nn.Flatten(), hidden, activation(), nn.Linear(width, output_size))
