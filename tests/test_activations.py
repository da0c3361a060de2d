"""Every activation equals its formula, and every model can be trained with it."""

import math

import pytest
import torch
from conftest import options
from torch import nn

from tunelab.activations import FeatureSoftmax
from tunelab.fitting import build

FORMULAS = {
    "elu": lambda x: x if x > 0 else math.exp(x) - 1,
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "mish": lambda x: x * math.tanh(math.log(1 + math.exp(x))),
    "prelu": lambda x: x if x > 0 else 0.25 * x,
    "relu": lambda x: max(0.0, x),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "swish": lambda x: x / (1 + math.exp(-x)),
    "tanh": lambda x: (math.exp(2 * x) - 1) / (math.exp(2 * x) + 1),
}
"""Elementwise, in plain Python; softmax, which mixes features, has tests of its own."""


def test_every_activation_file_has_a_formula_here():
    assert sorted([*FORMULAS, "softmax"]) == options("activation")


@pytest.mark.parametrize("option", sorted(FORMULAS))
def test_activation_equals_its_formula(option, compose):
    activation = build(compose(f"activation={option}").activation)().double()
    inputs = torch.linspace(-8, 8, 161, dtype=torch.float64)
    expected = torch.tensor([FORMULAS[option](x) for x in inputs.tolist()], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(activation(inputs), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 7), 1), ((5, 3, 7), 2), ((5, 7, 4, 4), 1)], ids=["features", "tokens", "channels"]
)
def test_softmax_sums_to_one_over_features_or_channels(shape, axis, compose):
    activation = build(compose("activation=softmax").activation)()
    inputs = torch.randn(shape, dtype=torch.float64)
    outputs = activation(inputs)
    ones = torch.ones(outputs.sum(dim=axis).shape, dtype=torch.float64)
    torch.testing.assert_close(outputs.sum(dim=axis), ones, rtol=0, atol=1e-12)
    exponentials = inputs.exp()
    torch.testing.assert_close(outputs, exponentials / exponentials.sum(dim=axis, keepdim=True))


def test_softmax_does_not_change_when_a_constant_is_added():
    inputs = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(FeatureSoftmax()(inputs + 1000), FeatureSoftmax()(inputs))


def test_activations_do_not_change_their_input(compose):
    for option in options("activation"):
        inputs = torch.randn(4, 6)
        before = inputs.clone()
        build(compose(f"activation={option}").activation)()(inputs)
        assert torch.equal(inputs, before), option


@pytest.mark.parametrize("option", options("activation"))
@pytest.mark.parametrize("model", options("model"))
def test_every_model_learns_with_every_activation(model, option, compose):
    cfg = compose(f"model={model}", "size=small")
    cfg.activation = compose(f"activation={option}").activation
    shape = (13,) if model == "transformer" else (1, 8, 8)
    network: nn.Module = build(cfg.model)(input_shape=shape, output_size=10)
    inputs, labels = torch.randn(16, *shape), torch.arange(16) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    loss = nn.functional.cross_entropy(network(inputs), labels)
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.norm() > 0, name
    optimizer.step()
    # so small a step along the gradient must go downhill, in training mode, where the loss was measured
    assert nn.functional.cross_entropy(network(inputs), labels) < loss


@pytest.mark.parametrize("model", options("model"))
@pytest.mark.parametrize("option", options("activation"))
def test_every_layer_has_an_activation_of_its_own(model, option, compose):
    cfg = compose(f"model={model}", "size.depth=3", "size.width=16")
    cfg.activation = compose(f"activation={option}").activation
    shape = (13,) if model == "transformer" else (1, 8, 8)
    network = build(cfg.model)(input_shape=shape, output_size=10)
    kind = type(build(cfg.activation)())
    found = [module for module in network.modules() if type(module) is kind]
    # one object each: a shared PReLU would share its slope
    residual = {"resnet": 1 + 2 * 3, "resnet18": 1 + 2 * 8, "vit": 3, "transformer": 3}
    assert len({id(module) for module in found}) == {"mlp": 3, "cnn": 3 + 1, **residual}[model]
