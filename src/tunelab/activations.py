"""Activations that torch lacks."""

import torch
from torch import Tensor, nn


class FeatureSoftmax(nn.Module):
    """Softmax over the features of each example, or over the channels of each pixel.

    y_i = exp(x_i) / sum_j exp(x_j)
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Args:
        inputs: Shape (batch, features), (batch, tokens, features) or (batch, channels, height, width).

        Returns:
            The same shape; sums to one over the features or channels.
        """
        return torch.softmax(inputs, dim=1 if inputs.ndim == 4 else -1)
