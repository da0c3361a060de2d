"""Weights of linear and convolutional layers that are drawn at random, and may be scaled by data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

Activation = Callable[[], nn.Module]


def default(model: nn.Module) -> None:
    """Leaves every layer as it was built: PyTorch's own choice."""


def xavier_uniform(model: nn.Module, activation: Activation, gain: float | None = None) -> None:
    """Uniform weights whose variance is even between the forward and the backward pass.

    w ~ U(-a, a),  a = gain * sqrt(6 / (fan_in + fan_out))

    Args:
        model: The module whose layers are set.
        activation: Makes the activation in use, which decides the gain of the layers that it feeds.
        gain: Of every layer, instead; 1 is the paper's own, under which tanh and ReLU lose variance with depth.

    Reference:
        Glorot and Bengio 2010, equation 16.
    """
    for weight, own in _weights(model, activation):
        nn.init.xavier_uniform_(weight, gain=own if gain is None else gain)


def xavier_normal(model: nn.Module, activation: Activation, gain: float | None = None) -> None:
    """Normal weights whose variance is even between the forward and the backward pass.

    w ~ N(0, std^2),  std = gain * sqrt(2 / (fan_in + fan_out))

    Args:
        model: The module whose layers are set.
        activation: Makes the activation in use, which decides the gain of the layers that it feeds.
        gain: Of every layer, instead; 1 is the paper's own, under which tanh and ReLU lose variance with depth.

    Reference:
        Glorot and Bengio 2010, equation 12.
    """
    for weight, own in _weights(model, activation):
        nn.init.xavier_normal_(weight, gain=own if gain is None else gain)


def kaiming_uniform(model: nn.Module, activation: Activation) -> None:
    """Uniform weights that keep the variance of what the layers put out, from layer to layer.

    w ~ U(-a, a),  a = gain * sqrt(3 / fan_in)

    Args:
        model: The module whose layers are set.
        activation: Makes the activation in use, which decides the gain of the layers that it feeds.

    Reference:
        He et al. 2015, arXiv:1502.01852, section 2.2.
    """
    for weight, own in _weights(model, activation):
        bound = own * math.sqrt(3 / _fan_in(weight))
        nn.init.uniform_(weight, -bound, bound)


def kaiming_normal(model: nn.Module, activation: Activation) -> None:
    """Normal weights that keep the variance of what the layers put out, from layer to layer.

    w ~ N(0, std^2),  std = gain / sqrt(fan_in)

    Args:
        model: The module whose layers are set.
        activation: Makes the activation in use, which decides the gain of the layers that it feeds.

    Reference:
        He et al. 2015, arXiv:1502.01852, equation 10.
    """
    for weight, own in _weights(model, activation):
        nn.init.normal_(weight, 0.0, own / math.sqrt(_fan_in(weight)))


def orthogonal(model: nn.Module, activation: Activation, gain: float | None = None) -> None:
    """Weights whose rows, or columns where these are fewer, stand at right angles and have length `gain`.

    W W^T = gain^2 I,  W of shape (fan_out, fan_in), fan_out <= fan_in

    Args:
        model: The module whose layers are set.
        activation: Makes the activation in use, which decides the gain of the layers that it feeds.
        gain: Of every layer, instead.

    Reference:
        Saxe et al. 2014, arXiv:1312.6120, section 3.
    """
    for weight, own in _weights(model, activation):
        nn.init.orthogonal_(weight, gain=own if gain is None else gain)


def normal(model: nn.Module, std: float = 0.01) -> None:
    """Normal weights of one spread in all layers and embeddings, whatever their fans: w ~ N(0, std^2)."""
    for weight in _weights_and_embeddings(model):
        nn.init.normal_(weight, 0.0, std)


def truncated_normal(model: nn.Module, std: float = 0.02) -> None:
    """Normal weights without those beyond two standard deviations, in all layers and embeddings.

    w ~ N(0, std^2) given |w| <= 2 std;  their own standard deviation is 0.880 std
    """
    for weight in _weights_and_embeddings(model):
        nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std)


def zeros(model: nn.Module) -> None:
    """Zero weights in all layers and embeddings, which shows why weights are drawn: all units of a layer stay alike.

    Each gets the same gradient as its neighbours, or none, so that a layer of a hundred learns no more than one.
    """
    for weight in _weights_and_embeddings(model):
        nn.init.zeros_(weight)


@torch.no_grad()
def lsuv(model: nn.Module, inputs: Tensor) -> None:
    """Orthonormal weights, each layer then scaled so that what it puts out on real data has variance 1.

    w <- w / std( layer(x) ),  layer after layer, in the order in which they are called

    One pass is enough: without a bias a layer's output is proportional to its weights, so that it can be divided on
    its way to the next layer. Dropout is off in that pass, and batch norms use the batch.

    Args:
        model: The module whose layers are set.
        inputs: A batch of training inputs, shape (batch, *input_shape).

    Reference:
        Mishkin and Matas 2016, arXiv:1511.06422, algorithm 1.
    """
    twin = copy.deepcopy(model)  # its modes and the statistics of its norms may change
    for module in twin.modules():
        module.train(isinstance(module, _BatchNorm))
    scaled: set[nn.Module] = set()

    def scale(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        std = output.std(correction=0)
        if layer in scaled or std < 1e-6:  # called again with the same weights, or constant
            return output
        scaled.add(layer)
        assert isinstance(layer.weight, Tensor)
        layer.weight /= std
        return output / std

    for weight, _ in _weights(twin, nn.Identity):
        nn.init.orthogonal_(weight)
    for layer in _layers(twin):
        layer.register_forward_hook(scale)
    twin(inputs)
    for (weight, _), (found, _) in zip(_weights(model, nn.Identity), _weights(twin, nn.Identity), strict=True):
        weight.copy_(found)


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


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    yield from (module for module in model.modules() if isinstance(module, WEIGHTED))


def _weights(model: nn.Module, activation: Activation) -> Iterator[tuple[Tensor, float]]:
    """The weight of each layer, whose bias, if it has one, becomes zero; and the gain of what feeds the layer.

    That is the activation's where one stands between the layer and the one before it. Others, such as the first,
    receive standardised inputs or what a norm put out: their gain is 1. (With the activation's there too, variance
    begins above 1, and grows with each layer under SiLU, GELU and Mish.) In a model that has no such module, since it
    calls a function instead, every layer but the first is taken to be fed by it.
    """
    made = activation()
    fed_gain = gain(made)
    by_function = not any(type(module) is type(made) for module in model.modules())
    fed = False
    for module in model.modules():
        if type(module) is type(made):
            fed = True
        elif isinstance(module, WEIGHTED):
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            yield module.weight, fed_gain if fed else 1.0
            fed = by_function


def _weights_and_embeddings(model: nn.Module) -> Iterator[Tensor]:
    yield from (weight for weight, _ in _weights(model, nn.Identity))
    yield from (module.weight for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag)))


def _fan_in(weight: Tensor) -> int:
    return weight[0].numel()  # (out, in, *kernel)
