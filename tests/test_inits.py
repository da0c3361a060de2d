"""Initial weights have the variance that the closed forms promise, and gains the value of their integral."""

import math
from itertools import pairwise

import pytest
import torch
from conftest import options
from scipy.integrate import quad
from torch import nn

from tunelab.activations import FeatureSoftmax
from tunelab.inits import gain, kaiming_normal, xavier_uniform
from tunelab.models import MLP
from tunelab.run import build

FAN_IN, FAN_OUT = 600, 400  # 240,000 weights: their sample std is within 0.6 % of the true one (4 sigma)
SPREAD = {
    # std from (fan_in, fan_out, gain of the activation)
    "xavier_normal": lambda fan_in, fan_out, _: math.sqrt(2 / (fan_in + fan_out)),
    "xavier_uniform": lambda fan_in, fan_out, _: math.sqrt(2 / (fan_in + fan_out)),
    "kaiming_normal": lambda fan_in, _, gained: gained / math.sqrt(fan_in),
    "kaiming_uniform": lambda fan_in, _, gained: gained / math.sqrt(fan_in),
}
ACTIVATION_GAINS = {"relu": math.sqrt(2), "leaky_relu": math.sqrt(2 / (1 + 0.01**2))}


def test_every_init_file_has_a_closed_form_here():
    assert sorted([*SPREAD, "default"]) == options("init")


@pytest.mark.parametrize("activation", sorted(ACTIVATION_GAINS))
@pytest.mark.parametrize("option", sorted(SPREAD))
def test_weights_of_a_linear_layer_have_the_promised_spread_and_biases_are_zero(option, activation, compose):
    init = build(compose(f"init={option}", f"activation={activation}").init)
    layer = nn.Linear(FAN_IN, FAN_OUT)
    init(layer)
    std = SPREAD[option](FAN_IN, FAN_OUT, ACTIVATION_GAINS[activation])
    _check_distribution(layer.weight, std, option)
    assert torch.equal(layer.bias, torch.zeros(FAN_OUT))


@pytest.mark.parametrize("option", sorted(SPREAD))
def test_the_fan_of_a_convolution_counts_its_kernel(option, compose):
    init = build(compose(f"init={option}").init)
    layer = nn.Conv2d(64, 128, 5)
    init(layer)
    std = SPREAD[option](64 * 25, 128 * 25, math.sqrt(2))
    _check_distribution(layer.weight, std, option)
    assert torch.equal(layer.bias, torch.zeros(128))


def _check_distribution(weight, std, option):
    """Mean, standard deviation and the shape: a uniform one ends at sqrt(3) std, a normal one has 4.55 % beyond 2."""
    assert weight.std().item() == pytest.approx(std, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=4 * std / math.sqrt(weight.numel()))
    if option.endswith("uniform"):
        assert std * math.sqrt(3) * 0.999 < weight.abs().max().item() <= std * math.sqrt(3) * (1 + 1e-6)
    else:
        assert (weight.abs() > 2 * std).float().mean().item() == pytest.approx(math.erfc(math.sqrt(2)), abs=0.003)


@pytest.mark.parametrize("option", options("init"))
def test_layers_without_a_bias_are_initialised_too(option, compose):
    model = nn.Sequential(
        nn.Linear(8, 16, bias=False), nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
    )
    before = [parameter.clone() for parameter in model.parameters()]
    build(compose(f"init={option}").init)(model)
    changed = [not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True)]
    # the two weights, and not the norm's scale and shift
    assert changed == ([False] * 4 if option == "default" else [True, True, False, False])


def test_default_leaves_every_layer_as_torch_made_it(compose):
    cfg = compose("init=default")
    model = build(cfg.model)(input_shape=(64,), output_size=10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    build(cfg.init)(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("option", sorted(SPREAD))
@pytest.mark.parametrize("model", options("model"))
def test_every_init_sets_every_weight_of_every_model(model, option, compose):
    cfg = compose(f"model={model}")
    cfg.init = compose(f"init={option}").init
    network = build(cfg.model)(input_shape=(1, 8, 8), output_size=10)
    weights = [m.weight for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    with torch.no_grad():
        for weight in weights:
            weight.fill_(123)
    build(cfg.init)(network)
    assert max(weight.abs().max().item() for weight in weights) < 123
    biases = [m.bias for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and m.bias is not None]
    assert sum(bias.abs().sum().item() for bias in biases) == 0


def test_the_same_seed_gives_the_same_weights(compose):
    for option in options("init"):
        weights = []
        for _ in range(2):
            torch.manual_seed(5)
            layer = nn.Linear(10, 10)
            build(compose(f"init={option}").init)(layer)
            weights.append(layer.weight)
        assert torch.equal(*weights), option


def test_gain_of_relu_is_the_square_root_of_two():
    assert gain(nn.ReLU()) == pytest.approx(math.sqrt(2), rel=1e-4)


def test_gain_of_leaky_relu_is_that_of_he_et_al():
    for slope in (0.0, 0.01, 0.25, 1.0):
        assert gain(nn.LeakyReLU(slope)) == pytest.approx(math.sqrt(2 / (1 + slope**2)), rel=1e-4)


@pytest.mark.parametrize("option", [name for name in options("activation") if name != "softmax"])
def test_gain_makes_the_mean_square_one_by_adaptive_quadrature(option, compose):
    activation = build(compose(f"activation={option}").activation)().double()

    def integrand(z):
        with torch.no_grad():
            value = activation(torch.tensor([z], dtype=torch.float64)).item()
        return value**2 * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    mean_square = sum(quad(integrand, *half, limit=200)[0] for half in ((-12, 0), (0, 12)))
    assert gain(build(compose(f"activation={option}").activation)()) == pytest.approx(mean_square**-0.5, rel=1e-4)


def test_gain_of_tanh_agrees_with_a_million_random_numbers():
    z = torch.randn(1_000_000, dtype=torch.float64)
    assert gain(nn.Tanh()) == pytest.approx(z.tanh().square().mean().item() ** -0.5, rel=5e-3)


def test_gain_of_the_identity_and_of_softmax_is_one():
    assert gain(nn.Identity()) == pytest.approx(1, rel=1e-6)
    assert gain(FeatureSoftmax()) == 1
    assert gain(nn.Softmax(dim=-1)) == 1


def test_gain_leaves_the_activation_that_it_is_given_usable_in_float32():
    activation = nn.PReLU()
    gain(activation)
    assert activation(torch.ones(2)).dtype == torch.float32


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("option", ["kaiming_normal", "kaiming_uniform"])
def test_kaiming_keeps_the_activations_of_a_deep_network_at_mean_square_one(option, activation, compose):
    cfg = compose(f"init={option}", f"activation={activation}", "size.width=512", "size.depth=10")
    model = build(cfg.model)(input_shape=(512,), output_size=10)
    build(cfg.init)(model)
    squares = _mean_squares(model, torch.randn(256, 512))
    assert squares == pytest.approx([1.0] * 10, rel=0.35)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_kaiming_under_a_saturating_activation_settles_where_layers_receive_variance_one(activation, compose):
    # tanh(a z) is not a tanh(z): the fixed point is a standard normal input to each activation, so that E[f(z)^2]
    # = 1 / gain^2 comes out of it
    cfg = compose("init=kaiming_normal", f"activation={activation}", "size.width=512", "size.depth=10")
    model = build(cfg.model)(input_shape=(512,), output_size=10)
    build(cfg.init)(model)
    squares = _mean_squares(model, torch.randn(256, 512))
    assert squares[5:] == pytest.approx([gain(build(cfg.activation)()) ** -2] * 5, rel=0.1)


def test_xavier_under_relu_halves_the_mean_square_at_each_layer():
    # the contrast: its gain of 1 leaves E[relu(z)^2] = 1/2 of it
    model = MLP((512,), 10, width=512, depth=6, activation=nn.ReLU)
    xavier_uniform(model)
    squares = _mean_squares(model, torch.randn(256, 512))
    ratios = [after / before for before, after in pairwise(squares)]
    assert ratios == pytest.approx([0.5] * 5, rel=0.2)


def test_xavier_gain_scales_the_weights():
    torch.manual_seed(0)
    once, thrice = nn.Linear(20, 30), nn.Linear(20, 30)
    for layer, factor in ((once, 1.0), (thrice, 3.0)):
        torch.manual_seed(1)
        xavier_uniform(layer, gain=factor)
    torch.testing.assert_close(thrice.weight, 3 * once.weight)


def test_kaiming_equals_torchs_own_for_relu():
    ours, theirs = nn.Linear(300, 200), nn.Linear(300, 200)
    torch.manual_seed(3)
    kaiming_normal(ours, nn.ReLU)
    torch.manual_seed(3)
    nn.init.kaiming_normal_(theirs.weight, nonlinearity="relu")
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=0)


@torch.no_grad()
def _mean_squares(model, inputs):
    """Of what leaves each activation, from the first hidden layer to the last."""
    squares = []
    for name, module in model.named_children():
        inputs = module(inputs)
        if name.startswith("activation"):
            squares.append(inputs.square().mean().item())
    return squares
