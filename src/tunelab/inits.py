"""How the weights of linear and convolutional layers begin; biases begin at zero, norms as they are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor, nn

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def default(model: nn.Module) -> None:
    """Leaves every layer as PyTorch made it."""


def xavier_uniform(model: nn.Module, gain: float = 1.0) -> None:
    """Uniform weights whose variance is even between the forward and the backward pass.

    w ~ U(-a, a),  a = gain * sqrt(6 / (fan_in + fan_out))

    Reference:
        Glorot and Bengio 2010, equation 16.
    """
    for weight in _weights(model):
        nn.init.xavier_uniform_(weight, gain=gain)


def xavier_normal(model: nn.Module, gain: float = 1.0) -> None:
    """Normal weights whose variance is even between the forward and the backward pass.

    w ~ N(0, std^2),  std = gain * sqrt(2 / (fan_in + fan_out))

    Reference:
        Glorot and Bengio 2010, equation 12.
    """
    for weight in _weights(model):
        nn.init.xavier_normal_(weight, gain=gain)


def kaiming_uniform(model: nn.Module, activation: Callable[[], nn.Module]) -> None:
    """Uniform weights that keep the variance of the activations from layer to layer.

    w ~ U(-a, a),  a = gain * sqrt(3 / fan_in)

    Args:
        model: The module whose layers are set.
        activation: Makes the activation in use, which decides the gain.

    Reference:
        He et al. 2015, arXiv:1502.01852, section 2.2.
    """
    for weight in _weights(model):
        bound = gain(activation()) * math.sqrt(3 / _fan_in(weight))
        nn.init.uniform_(weight, -bound, bound)


def kaiming_normal(model: nn.Module, activation: Callable[[], nn.Module]) -> None:
    """Normal weights that keep the variance of the activations from layer to layer.

    w ~ N(0, std^2),  std = gain / sqrt(fan_in)

    Args:
        model: The module whose layers are set.
        activation: Makes the activation in use, which decides the gain.

    Reference:
        He et al. 2015, arXiv:1502.01852, equation 10.
    """
    for weight in _weights(model):
        nn.init.normal_(weight, 0.0, gain(activation()) / math.sqrt(_fan_in(weight)))


def gain(activation: nn.Module) -> float:
    """What an activation's output must be multiplied by to have mean square 1 for a standard normal input.

    gain = 1 / sqrt( E[f(z)^2] ),  z ~ N(0, 1):  sqrt(2) for ReLU

    Args:
        activation: Any elementwise activation; one that mixes features (softmax) has gain 1.
    """
    activation = copy.deepcopy(activation).double().cpu()  # the caller's stays as it is
    if not _is_elementwise(activation):
        return 1.0
    z, density = _normal_grid()
    with torch.no_grad():
        mean_square = (activation(z) ** 2 * density).sum() / density.sum()
    return 1 / math.sqrt(float(mean_square))


@cache
def _normal_grid() -> tuple[Tensor, Tensor]:
    z = torch.linspace(-10, 10, 20_001, dtype=torch.float64, device="cpu")
    return z, torch.exp(-(z**2) / 2)


def _is_elementwise(activation: nn.Module) -> bool:
    probe = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64, device="cpu")
    with torch.no_grad():
        whole = activation(probe)
        parts = torch.cat([activation(probe[:, i : i + 1]) for i in range(3)], dim=1)
    return torch.allclose(whole, parts)


def _weights(model: nn.Module) -> Iterator[Tensor]:
    """The weight of each linear or convolutional layer, whose bias, if it has one, becomes zero."""
    for module in model.modules():
        if isinstance(module, WEIGHTED):
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            yield module.weight


def _fan_in(weight: Tensor) -> int:
    return weight[0].numel()  # (out, in, *kernel)
