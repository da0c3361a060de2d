"""Every model in every size: shapes, gradients in each layer, parameter counts, and what each dial adds."""

import itertools

import pytest
import torch
from conftest import options
from omegaconf import OmegaConf
from torch import nn

from tunelab import conf_folder
from tunelab.config import ConfigError
from tunelab.models import CNN, MLP
from tunelab.run import build

MODELS = options("model")
STEM = {"mlp": 0, "cnn": 1}
"""Hidden layers of each model beside `size.depth`."""


def _sized(size):
    """A parameter of pytest; the largest are marked slow."""
    values = OmegaConf.load(conf_folder() / "size" / f"{size}.yaml")
    return pytest.param(size, marks=[pytest.mark.slow] if values.width * values.depth >= 3000 else [])


def _network(compose, model, *overrides, shape=(1, 8, 8), classes=10):
    return build(compose(f"model={model}", *overrides).model)(input_shape=shape, output_size=classes)


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("size", [_sized(size) for size in options("size")])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_in_every_size_makes_a_step_with_gradients_in_each_layer(model, size, compose):
    network = _network(compose, model, f"size={size}")
    inputs, labels = torch.randn(32, 1, 8, 8), torch.randint(10, (32,))
    outputs = network(inputs)
    assert outputs.shape == (32, 10)
    nn.functional.cross_entropy(outputs, labels).backward()
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.norm() > 0, name
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_the_width_and_the_depth_of_the_command_line(model, compose):
    network = _network(compose, model, "size.width=48", "size.depth=5")
    assert network.head.in_features == 48
    # a layer with a matrix or kernel for each of the five, and the head
    assert len([m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]) == STEM[model] + 5 + 1


@pytest.mark.parametrize("width", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("model", MODELS)
def test_the_last_hidden_layer_is_as_wide_as_asked(model, width, compose):
    assert _network(compose, model, f"size.width={width}", "size.depth=2").head.in_features == width


@pytest.mark.parametrize("model", MODELS)
def test_more_width_and_more_depth_give_more_parameters(model, compose):
    for key, values in (("width", (8, 16, 32)), ("depth", (1, 2, 3))):
        counts = [_count(_network(compose, model, "size=tiny", f"size.{key}={value}")) for value in values]
        assert counts == sorted(set(counts)), key


@pytest.mark.parametrize("model", MODELS)
def test_evaluation_is_deterministic_and_free_of_dropout(model, compose):
    network = _network(compose, model, "dropout=0.5").eval()
    inputs = torch.randn(16, 1, 8, 8)
    assert torch.equal(network(inputs), network(inputs))
    # one example at a time gives the same: nothing depends on the rest of the batch
    alone = torch.cat([network(inputs[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(network(inputs), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_training_with_dropout_differs_from_draw_to_draw(model, compose):
    network = _network(compose, model, "dropout=0.5").train()
    inputs = torch.randn(16, 1, 8, 8)
    assert (network(inputs) - network(inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_the_dropout_dial_puts_one_layer_behind_each_activation(model, compose):
    def rates(*overrides):
        network = _network(compose, model, "size.depth=3", *overrides)
        return [m.p for m in network.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))]

    assert rates("dropout=0.3") == [0.3] * (STEM[model] + 3)
    assert rates() == []


@pytest.mark.parametrize("model", MODELS)
def test_dropout_keeps_the_expected_value(model, compose):
    # E[mask x / (1 - p)] = x
    network = _network(compose, model, "dropout=0.4").train()
    dropout = next(m for m in network.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d)))
    outputs = dropout(torch.ones((4000, 32, 2, 2) if model == "cnn" else (4000, 32)))
    assert outputs.mean().item() == pytest.approx(1, abs=0.02)  # five standard errors
    assert outputs.unique().tolist() == pytest.approx([0, 1 / 0.6])


def test_dropout_in_a_cnn_leaves_out_whole_channels(compose):
    dropout = _network(compose, "cnn", "dropout=0.4").dropout1.train()
    shares = dropout(torch.ones(50, 8, 3, 3)).mean(dim=(2, 3))
    assert shares.unique().tolist() == pytest.approx([0, 1 / 0.6])


# ---- counts


def test_the_first_layer_from_784_to_128_has_100480_parameters():
    assert _count(MLP((784,), 10, width=128, depth=1, activation=nn.ReLU).hidden1) == 784 * 128 + 128 == 100_480


def test_a_convolution_from_3_to_64_channels_has_1792_parameters():
    network = CNN((3, 32, 32), 10, width=128, depth=1, activation=nn.ReLU, normalization="none")
    assert _count(network.conv0) == 3 * 64 * 9 + 64 == 1_792


@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
@pytest.mark.parametrize(("width", "depth"), [(5, 1), (7, 2), (16, 4)])
def test_the_parameters_of_an_mlp_are_the_sum_over_its_layers(width, depth, normalization):
    network = MLP((3, 4), 6, width=width, depth=depth, activation=nn.ReLU, normalization=normalization)
    norms = 0 if normalization == "none" else depth * 2 * width
    assert _count(network) == (12 + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * 6 + norms


@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("width", "depth"), [(16, 1), (16, 2), (64, 4)])
def test_the_parameters_of_a_cnn_are_the_sum_over_its_stages(width, depth, kernel, normalization):
    network = CNN(
        (3, 16, 16), 6, width=width, depth=depth, activation=nn.ReLU, kernel_size=kernel, normalization=normalization
    )
    channels = [3, *(width // 2**k for k in reversed(range(depth + 1)))]
    kernels = sum(before * after * kernel**2 for before, after in itertools.pairwise(channels))
    extra = sum(channels[1:]) * (1 if normalization == "none" else 2)  # a bias, or a scale and a shift
    assert _count(network) == kernels + extra + (width + 1) * 6


# ---- shapes


def test_an_mlp_flattens_whatever_it_is_given():
    network = MLP((2, 3, 4), 5, width=8, depth=1, activation=nn.ReLU)
    inputs = torch.randn(6, 2, 3, 4)
    flat = inputs.reshape(6, 24)
    expected = network.head(network.hidden1(flat).relu())
    assert torch.equal(network(inputs), expected)


@pytest.mark.parametrize(("edge", "edges"), [(8, [8, 4, 2, 2, 2]), (7, [7, 4, 2, 2, 2]), (28, [28, 14, 7, 4, 2])])
def test_each_stage_of_a_cnn_behind_its_stem_halves_the_image_down_to_two_pixels(edge, edges):
    network = CNN((1, edge, edge), 3, width=64, depth=4, activation=nn.ReLU)
    seen = []
    for number in range(5):
        convolution = getattr(network, f"conv{number}")
        convolution.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    assert network(torch.randn(2, 1, edge, edge)).shape == (2, 3)
    assert seen == [(4 * 2**k, e, e) for k, e in enumerate(edges)]


def test_a_cnn_takes_images_of_other_sizes_and_shapes():
    network = CNN((3, 8, 12), 4, width=16, depth=3, activation=nn.ReLU).eval()
    assert network(torch.randn(2, 3, 8, 12)).shape == (2, 4)
    assert network(torch.randn(2, 3, 40, 20)).shape == (2, 4)


# ---- normalization


@pytest.mark.parametrize(
    ("model", "normalization", "kind"),
    [
        ("mlp", "batch", nn.BatchNorm1d),
        ("mlp", "layer", nn.LayerNorm),
        ("cnn", "batch", nn.BatchNorm2d),
        ("mlp", "none", ()),
        ("cnn", "none", ()),
    ],
)
def test_normalization_puts_its_norm_in_front_of_each_activation(model, normalization, kind, compose):
    network = _network(compose, model, f"model.normalization={normalization}", "size.depth=3")
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
    children = list(network.children())
    found = [index for index, child in enumerate(children) if isinstance(child, norms)]
    assert all(isinstance(children[index], kind) for index in found)
    assert all(isinstance(children[index + 1], nn.ReLU) for index in found)
    assert len(found) == (STEM[model] + 3 if kind else 0)


def test_a_convolution_has_a_bias_only_without_a_norm_behind_it():
    for normalization, biased in (("batch", False), ("none", True)):
        network = CNN((1, 8, 8), 3, width=8, depth=2, activation=nn.ReLU, normalization=normalization)
        assert [(m.bias is not None) for m in network.modules() if isinstance(m, nn.Conv2d)] == [biased] * 3


def test_a_cnn_refuses_layer_normalization_with_what_to_type(compose):
    with pytest.raises(ConfigError) as caught:
        _network(compose, "cnn", "model.normalization=layer")
    assert str(caught.value) == (
        "`model.normalization` must be none or batch for the cnn, got layer. Try model.normalization=batch."
    )


def test_a_cnn_refuses_a_table_with_what_to_type(fit):
    with pytest.raises(ConfigError) as caught:
        fit("model=cnn", "data=breast_cancer", "epochs=1")
    assert str(caught.value) == (
        "`model` must take the data's kind, got CNN for a table: it takes image. Try model=mlp."
    )


@pytest.mark.parametrize("data", options("data"))
@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_on_every_data_set_of_its_kinds(model, data, compose, fit):
    kinds = {"mlp": MLP, "cnn": CNN}[model].kinds
    source = build(compose(f"data={data}").data)
    source.setup("fit")
    if source.spec.kind not in kinds:
        with pytest.raises(ConfigError, match=f"for a {source.spec.kind}: it takes {' or '.join(kinds)}"):
            fit(f"model={model}", f"data={data}", "debug=one_batch")
        return
    result, _ = fit(f"model={model}", f"data={data}", "size=tiny", "debug=one_batch")
    assert (result["status"], result["steps"]) == ("finished", 1)
    network = _network(compose, model, "size=tiny", shape=source.spec.input_shape, classes=source.spec.output_size)
    assert result["parameters"] == _count(network)
