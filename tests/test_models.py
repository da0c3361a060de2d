"""Every model in every size: living layers, parameter counts, shapes by hand, and what each key changes."""

import itertools
import math

import pytest
import torch
from conftest import options
from omegaconf import OmegaConf
from torch import nn

from tunelab import conf_folder
from tunelab.config import ConfigError, validate
from tunelab.fitting import build
from tunelab.models import CNN, MLP, ResNet, Transformer, ViT
from tunelab.models.blocks import Attention, EncoderBlock, StochasticDepth, default_heads, drop_rates
from tunelab.models.transformer import FeatureTokens

MODELS = options("model")
SHAPES = {"image": (1, 8, 8), "table": (13,), "sequence": (7, 5)}
KINDS = [
    (model, kind)
    for model in MODELS
    for kind in {"mlp": MLP, "cnn": CNN, "vit": ViT, "transformer": Transformer}.get(model, ResNet).kinds
]
LAYERS = {"mlp": (0, 1), "cnn": (1, 1), "resnet": (1, 2), "vit": (1, 6), "transformer": (1, 6)}
"""Layers with a matrix or kernel that a row is told by: in front of the blocks, and in each."""
DROPOUTS = {"mlp": (0, 1), "cnn": (1, 1), "resnet": (1, 0), "resnet18": (1, 0), "vit": (1, 3), "transformer": (1, 3)}
"""Dropouts apart from blocks, and in each."""
RESIDUAL = ["resnet", "resnet18", "transformer", "vit"]

every_model = pytest.mark.parametrize(("model", "kind"), KINDS, ids=["-".join(pair) for pair in KINDS])


def _sized(size):
    """A parameter of pytest; the largest are marked slow."""
    values = OmegaConf.load(conf_folder() / "size" / f"{size}.yaml")
    return pytest.param(size, marks=[pytest.mark.slow] if values.width * values.depth >= 3000 else [])


def _network(compose, model, *overrides, kind=None, shape=None, classes=10):
    """Small, unless the overrides say otherwise; for the first kind of data that the model takes."""
    kind = kind or next(taken for name, taken in KINDS if name == model)
    size = () if any(o.startswith("size=") for o in overrides) else ("size=small",)
    cfg = compose(f"model={model}", *size, *overrides)
    return build(cfg.model)(input_shape=shape or SHAPES[kind], output_size=classes)


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def _shape_of_each(network, names, inputs):
    """The shape, without the batch, of what each named module puts out."""
    shapes = {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    with torch.no_grad():
        network.eval()(inputs)
    return [shapes[name] for name in names]


def _check_alive(network, inputs):
    """No layer puts out next to nothing or very much, examples stay apart, and each parameter gets a gradient."""
    spreads = {}
    for name, module in network.named_modules():
        if not list(module.children()) and not isinstance(module, (nn.Dropout, nn.Identity, StochasticDepth)):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: spreads.update({name: output.std().item()})
            )
    outputs = network(inputs)
    assert min(spreads.values()) > 1e-3, min(spreads, key=spreads.get)
    assert max(spreads.values()) < 1e3, max(spreads, key=spreads.get)
    assert outputs.std(dim=0).mean() > 1e-3
    nn.functional.cross_entropy(outputs, torch.arange(len(inputs)) % outputs.shape[1]).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.norm() > 0, name


# ---- at initialisation


@pytest.mark.parametrize("size", [_sized(size) for size in options("size")])
@every_model
def test_no_layer_of_any_model_in_any_size_begins_dead_or_exploding(model, kind, size, compose):
    network = _network(compose, model, f"size={size}", kind=kind)
    _check_alive(network, torch.randn(32, *SHAPES[kind]))


@pytest.mark.parametrize("activation", ["tanh", "gelu", "leaky_relu"])
@every_model
def test_nor_under_other_activations(model, kind, activation, compose):
    network = _network(compose, model, f"activation={activation}", kind=kind)
    _check_alive(network, torch.randn(32, *SHAPES[kind]))


@pytest.mark.parametrize("init", ["xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal", "lsuv"])
@every_model
def test_nor_under_other_inits(model, kind, init, compose):
    network = _network(compose, model, kind=kind)
    inputs = torch.randn(32, *SHAPES[kind])
    cfg = compose(f"init={init}")
    build(cfg.init)(network, **({"inputs": inputs} if init == "lsuv" else {}))
    _check_alive(network, inputs)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 24, 40), (1, 13, 13)], ids=str)
@pytest.mark.parametrize("model", [model for model, kind in KINDS if kind == "image"])
def test_nor_on_images_of_other_shapes(model, shape, compose):
    _check_alive(_network(compose, model, "size=tiny", shape=shape), torch.randn(8, *shape))


@pytest.mark.parametrize("model", RESIDUAL)
def test_a_residual_model_without_batch_norm_is_alive_too_at_twenty_blocks(model, compose):
    overrides = ["model.normalization=none"] if "resnet" in model else []
    blocks = ["model.blocks=[5,5,5,5]"] if model == "resnet18" else []
    network = _network(compose, model, "size.depth=20", "size.width=64", *overrides, *blocks)
    kind = "table" if model == "transformer" else "image"
    _check_alive(network, torch.randn(16, *SHAPES[kind]))


# ---- size


@pytest.mark.parametrize("model", sorted(LAYERS))
def test_every_model_takes_the_width_and_the_depth_of_the_command_line(model, compose):
    network = _network(compose, model, "size.width=48", "size.depth=5")
    assert network.head.in_features == 48
    layers = [
        name
        for name, m in network.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d, FeatureTokens)) and "shortcut" not in name
    ]
    before, each = LAYERS[model]
    assert len(layers) == before + 5 * each + 1


@pytest.mark.parametrize("width", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("model", MODELS)
def test_the_last_hidden_layer_is_as_wide_as_asked(model, width, compose):
    assert _network(compose, model, f"size.width={width}", "size.depth=2").head.in_features == width


@pytest.mark.slow
@every_model
def test_more_width_and_more_depth_give_more_parameters(model, kind, compose):
    # the 18 layers of resnet18 are its own
    sizes = {"width": (8, 16, 32)} if model == "resnet18" else {"width": (8, 16, 32), "depth": (1, 2, 3, 9)}
    for key, values in sizes.items():
        counts = [_count(_network(compose, model, "size=tiny", f"size.{key}={v}", kind=kind)) for v in values]
        assert counts == sorted(set(counts)), key


# ---- dropout and stochastic depth


@pytest.mark.parametrize(
    ("model", "kind", "dial"),
    [
        (model, kind, dial)
        for model, kind in KINDS
        for dial, models in {
            "dropout": MODELS,
            "stochastic_depth": RESIDUAL,
            "model.attention_dropout": ["vit", "transformer"],
        }.items()
        if model in models
    ],
)
def test_what_is_random_in_training_is_off_in_evaluation(model, kind, dial, compose):
    network = _network(compose, model, f"{dial}=0.5", kind=kind)
    inputs = torch.randn(16, *SHAPES[kind])
    with torch.no_grad():
        assert (network(inputs) - network(inputs)).abs().max() > 1e-3
        network.eval()
        assert torch.equal(network(inputs), network(inputs))
        # one example at a time gives the same: nothing depends on the rest of the batch
        alone = torch.cat([network(inputs[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(network(inputs), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_the_dropout_dial_reaches_each_of_its_places(model, compose):
    def rates(*overrides):
        network = _network(compose, model, "size.depth=3", *overrides)
        return [m.p for m in network.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))]

    apart, each = DROPOUTS[model]
    assert rates("dropout=0.3") == [0.3] * (apart + 3 * each)
    assert set(rates()) <= {0.0}


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


def test_stochastic_depth_keeps_a_branch_whole_or_leaves_it_out_for_each_example():
    branch = torch.randn(5000, 2, 3)
    outputs = StochasticDepth(0.25).train()(branch)
    kept = outputs.abs().sum(dim=(1, 2)) > 0
    torch.testing.assert_close(outputs[kept], branch[kept] / 0.75)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.025)  # four standard errors


def test_stochastic_depth_grows_linearly_from_the_first_block_to_the_last():
    assert drop_rates(0.4, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert drop_rates(0.3, 1) == [0.3]


@pytest.mark.parametrize(("model", "kind"), [(model, kind) for model, kind in KINDS if model in RESIDUAL])
def test_the_stochastic_depth_dial_reaches_each_block(model, kind, compose):
    def rates(*overrides):
        network = _network(compose, model, "size.depth=8", *overrides, kind=kind)
        return [m.rate for m in network.modules() if isinstance(m, StochasticDepth)]

    assert rates("stochastic_depth=0.4") == pytest.approx([0.05 * number for number in range(1, 9)])
    assert rates() == [0.0] * 8


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
    assert len(found) == ((model == "cnn") + 3 if kind else 0)


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


# ---- cnn: stride and padding


@pytest.mark.parametrize(
    ("keys", "edges"),
    [
        ((), [16, 8, 4]),
        (("model.stride=1",), [16, 16, 16]),
        (("model.stride=3",), [16, 6, 2]),
        (("model.padding=0",), [14, 6, 2]),  # (16 - 3) + 1, (14 - 3) // 2 + 1, (6 - 3) // 2 + 1
        (("model.padding=2", "model.kernel_size=1"), [20, 12, 8]),  # 16 + 4, (20 + 4 - 1) // 2 + 1, …
    ],
    ids=str,
)
def test_stride_and_padding_of_a_cnn_make_the_edges_of_the_formula(keys, edges, compose):
    network = _network(compose, "cnn", *keys, "size.depth=2", shape=(1, 16, 16))
    found = _shape_of_each(network, ["conv0", "conv1", "conv2"], torch.randn(2, 1, 16, 16))
    assert [shape[1] for shape in found] == [shape[2] for shape in found] == edges


def test_a_padding_that_leaves_nothing_of_the_image_is_refused_with_what_to_type(compose):
    with pytest.raises(ConfigError) as caught:
        _network(compose, "cnn", "model.padding=0", "model.kernel_size=5", "size.depth=3")
    assert str(caught.value) == (
        "`model.padding` must leave some of the image at each of the 3 stages, got 0 with kernel_size=5, stride=2. "
        "Try model.padding=2."
    )


# ---- resnet

REFERENCE = {"stem_kernel_size": 7, "stem_stride": 2, "stem_pool": True}
"""The stem of He et al. 2016, table 1."""


def test_resnet18_has_the_references_11689512_parameters(compose):
    network = build(compose("model=resnet18").model)(input_shape=(3, 224, 224), output_size=1000)
    assert _count(network) == 11_689_512


@pytest.mark.parametrize(
    ("width", "blocks", "bottleneck", "parameters"),
    [(512, [3, 4, 6, 3], False, 21_797_672), (2048, [3, 4, 6, 3], True, 25_557_032)],
    ids=["resnet34", "resnet50"],
)
def test_other_forms_of_the_paper_are_reached_by_keys(width, blocks, bottleneck, parameters):
    # as torchvision's of the same name, which count as the sums over the paper's table 1
    with torch.device("meta"):
        network = ResNet(
            *((3, 224, 224), 1000),
            **{"width": width, "depth": 1, "activation": nn.ReLU, "blocks": blocks, "bottleneck": bottleneck},
            **REFERENCE,
        )
    assert _count(network) == parameters


def test_the_layers_of_resnet18_have_the_shapes_of_the_papers_table():
    network = ResNet((3, 224, 224), 1000, width=512, depth=8, activation=nn.ReLU, blocks=[2, 2, 2, 2], **REFERENCE)
    names = ["stem.conv", "stem.pool", "stage1", "stage2", "stage3", "stage4", "flatten", "head"]
    assert _shape_of_each(network, names, torch.randn(1, 3, 224, 224)) == [
        (64, 112, 112),
        (64, 56, 56),
        (64, 56, 56),
        (128, 28, 28),
        (256, 14, 14),
        (512, 7, 7),
        (512,),
        (1000,),
    ]


def test_the_parameters_of_resnet18_are_the_sum_over_its_layers_by_hand():
    network = ResNet((3, 224, 224), 1000, width=512, depth=8, activation=nn.ReLU, blocks=[2, 2, 2, 2], **REFERENCE)

    def convolved(before, after, kernel):
        return before * after * kernel**2 + 2 * after  # a kernel, and the norm's scale and shift

    stages = {1: 4 * convolved(64, 64, 3)}
    for number, after in ((2, 128), (3, 256), (4, 512)):
        half = after // 2
        stages[number] = convolved(half, after, 3) + 3 * convolved(after, after, 3) + convolved(half, after, 1)
    assert _count(network.stem) == convolved(3, 64, 7) == 9_536
    assert {number: _count(network.get_submodule(f"stage{number}")) for number in stages} == stages
    assert _count(network.head) == 513_000


def test_a_resnet_keeps_small_images_and_stops_striding_at_two_pixels(compose):
    network = _network(compose, "resnet", "size.depth=5", "size.width=64")
    names = ["stem", "stage1", "stage2", "stage3", "stage4", "head"]
    found = _shape_of_each(network, names, torch.randn(2, 1, 8, 8))
    assert found == [(8, 8, 8), (8, 8, 8), (16, 4, 4), (32, 2, 2), (64, 2, 2), (10,)]


@pytest.mark.parametrize(
    ("depth", "stages", "counts"),
    [(1, 4, [1]), (3, 4, [1, 1, 1]), (6, 4, [2, 2, 1, 1]), (8, 4, [2, 2, 2, 2]), (7, 2, [4, 3]), (9, 3, [3, 3, 3])],
)
def test_the_blocks_of_a_resnet_are_shared_out_among_its_stages(depth, stages, counts, compose):
    network = _network(compose, "resnet", f"size.depth={depth}", f"model.stages={stages}")
    assert [len(child) for name, child in network.named_children() if name.startswith("stage")] == counts


def test_a_residual_block_adds_its_branch_to_its_input(compose):
    block = _network(compose, "resnet", "size.depth=2", "model.stages=1").stage1[1].eval()
    images = torch.randn(2, 128, 4, 4)
    with torch.no_grad():
        for parameter in block.branch.conv2.parameters():
            parameter.zero_()
        # its branch ends in a norm that is the identity at the beginning
        assert torch.equal(block(images), images.relu())


def test_keys_of_the_resnet_reach_its_convolutions(compose):
    keys = ("model.kernel_size=5", "model.stride=3", "model.stem_kernel_size=4", "model.stem_stride=4")
    network = _network(compose, "resnet", *keys, "model.stem_padding=1", "size.depth=2", shape=(3, 50, 50))
    stem, first, second = network.stem.conv, network.stage1[0].branch.conv1, network.stage2[0].branch.conv1
    assert (stem.kernel_size, stem.stride, stem.padding) == ((4, 4), (4, 4), (1, 1))
    assert (first.kernel_size, first.stride, first.padding) == ((5, 5), (1, 1), (2, 2))
    assert (second.kernel_size, second.stride, second.padding) == ((5, 5), (3, 3), (2, 2))
    # (50 + 2 - 4) // 4 + 1, then a third of it, rounded up
    assert _shape_of_each(network, ["stage1", "stage2"], torch.randn(1, 3, 50, 50)) == [(64, 13, 13), (128, 5, 5)]


def test_a_resnet_refuses_layer_normalization_with_what_to_type(compose):
    with pytest.raises(ConfigError) as caught:
        _network(compose, "resnet", "model.normalization=layer")
    assert str(caught.value) == (
        "`model.normalization` must be none or batch for the resnet, got layer. Try model.normalization=batch."
    )


# ---- attention


def _attention(width=12, heads=3):
    """Ours, and torch's own with the same weights; its key has a bias too, of zero."""
    ours, theirs = Attention(width, heads), nn.MultiheadAttention(width, heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.zeros(width), ours.value.bias]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    return ours, theirs


def test_attention_equals_torchs_own():
    ours, theirs = _attention()
    tokens = torch.randn(4, 5, 12)
    torch.testing.assert_close(ours(tokens), theirs(tokens, tokens, tokens)[0], rtol=1e-4, atol=1e-6)


def test_attention_is_a_mean_of_values_weighted_by_the_fit_of_queries_and_keys():
    attention = Attention(12, 3)
    tokens = torch.randn(5, 12)
    query, key, value = (layer(tokens) for layer in (attention.query, attention.key, attention.value))
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        weights = torch.softmax(query[:, part] @ key[:, part].T / math.sqrt(4), dim=1)
        heads.append(weights @ value[:, part])
    expected = attention.out(torch.cat(heads, dim=1))
    torch.testing.assert_close(attention(tokens[None])[0], expected, rtol=1e-4, atol=1e-6)


def test_a_bias_of_the_key_would_change_nothing():
    _, theirs = _attention()
    tokens = torch.randn(4, 5, 12)
    before = theirs(tokens, tokens, tokens)[0]
    with torch.no_grad():
        theirs.in_proj_bias[12:24] = torch.randn(12)
    torch.testing.assert_close(theirs(tokens, tokens, tokens)[0], before, rtol=1e-4, atol=1e-6)


def test_an_encoder_block_equals_torchs_own():
    ours = EncoderBlock(
        *(12, 3),
        **{"mlp_ratio": 2.0, "activation": nn.ReLU, "dropout": 0.0, "attention_dropout": 0.0, "drop_rate": 0.0},
    )
    theirs = nn.TransformerEncoderLayer(12, 3, 24, dropout=0.0, batch_first=True, norm_first=True)
    ours.attention, theirs.self_attn = _attention()
    for mine, other in (
        (ours.attention_norm, theirs.norm1),
        (ours.mlp_norm, theirs.norm2),
        (ours.mlp[0], theirs.linear1),
        (ours.mlp[3], theirs.linear2),
    ):
        other.load_state_dict(mine.state_dict())
    tokens = torch.randn(4, 5, 12)
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "heads"), [(512, 8), (64, 8), (96, 8), (100, 4), (32, 4), (20, 2), (30, 2), (16, 2), (13, 1), (1, 1)]
)
def test_heads_divide_the_width_and_keep_eight_values_where_they_can(width, heads):
    assert default_heads(width) == heads


@pytest.mark.parametrize("model", ["vit", "transformer"])
def test_heads_and_hidden_units_are_keys(model, compose):
    network = _network(compose, model, "size.width=60", "model.heads=5", "model.mlp_ratio=3")
    block = network.encoder.blocks[0]
    assert block.attention.heads == 5
    assert block.mlp[0].out_features == 180


@pytest.mark.parametrize(
    ("width", "heads", "remedy"),
    [
        (100, 3, "size.width=102 or model.heads=4"),
        (7, 9, "size.width=9 or model.heads=7"),
        (64, 6, "size.width=66 or model.heads=8"),
    ],
)
@pytest.mark.parametrize("model", ["vit", "transformer"])
def test_heads_that_do_not_divide_the_width_are_refused_with_what_to_type(model, width, heads, remedy, compose):
    with pytest.raises(ConfigError) as caught:
        validate(compose(f"model={model}", f"size.width={width}", f"model.heads={heads}"))
    assert str(caught.value) == (
        f"`size.width` must be divisible by `model.heads`, got width={width}, heads={heads}. Try {remedy}."
    )


# ---- vit and transformer


def _transformer(kind, **keys):
    return Transformer(SHAPES[kind], 3, width=16, depth=2, activation=nn.GELU, **keys).eval()


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((1, 8, 8), 2),
        ((3, 32, 32), 8),
        ((1, 28, 28), 7),
        ((3, 224, 224), 16),
        ((3, 30, 20), 5),
        ((1, 13, 13), 1),
        ((1, 2, 2), 1),
    ],
    ids=str,
)
def test_patches_divide_the_image_into_at_least_four_a_side_where_they_can(shape, patch, compose):
    assert _network(compose, "vit", shape=shape).embedding.kernel_size == (patch, patch)


def test_a_patch_size_that_does_not_divide_the_image_is_refused_with_what_to_type(compose):
    with pytest.raises(ConfigError) as caught:
        _network(compose, "vit", "model.patch_size=5", shape=(3, 32, 24))
    assert str(caught.value) == (
        "`model.patch_size` must divide the image's height and width, got 5 for 32 x 24 pixels. Try model.patch_size=4."
    )


def test_the_tokens_of_a_vit_are_its_patches_through_one_linear_layer():
    network = ViT((3, 8, 12), 5, width=16, depth=1, activation=nn.GELU, patch_size=4)
    images = torch.randn(2, 3, 8, 12)
    patches = nn.functional.unfold(images, 4, stride=4).transpose(1, 2)  # (batch, 2 x 3 patches, 3 x 4 x 4)
    tokens = patches @ network.embedding.weight.flatten(1).T + network.embedding.bias
    torch.testing.assert_close(network(images), network.head(network.encoder(tokens)), rtol=1e-4, atol=1e-5)
    assert network.encoder.positions.weight.shape == (1 + 6, 16)


@pytest.mark.parametrize("pooling", ["class_token", "mean"])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_parameters_of_a_vit_are_the_sum_over_its_layers(depth, pooling):
    width, hidden, patches, classes = 24, 48, 16, 10
    network = ViT((1, 8, 8), classes, width=width, depth=depth, activation=nn.ReLU, pooling=pooling)
    token = pooling == "class_token"
    embedding = (2 * 2 + 1) * width + (patches + token) * width + token * width
    block = 4 * width**2 + 3 * width + (width + 1) * hidden + (hidden + 1) * width + 2 * 2 * width
    assert _count(network) == embedding + depth * block + 2 * width + (width + 1) * classes


def test_each_feature_of_a_table_is_its_value_times_a_vector_plus_a_bias():
    tokens = FeatureTokens(3, 5)
    rows = torch.randn(4, 3)
    made = tokens(rows)
    for row, feature in itertools.product(range(4), range(3)):
        expected = rows[row, feature] * tokens.vectors.weight[feature] + tokens.biases.weight[feature]
        torch.testing.assert_close(made[row, feature], expected)


@pytest.mark.parametrize("pooling", ["class_token", "mean"])
def test_only_its_positions_tell_a_transformer_the_order_of_a_sequence(pooling):
    network = _transformer("sequence", pooling=pooling)
    inputs = torch.randn(4, 7, 5)
    with torch.no_grad():
        assert (network(inputs) - network(inputs.flip(1))).abs().max() > 1e-4
        network.encoder.positions.weight.zero_()
        torch.testing.assert_close(network(inputs), network(inputs.flip(1)), rtol=1e-4, atol=1e-6)


def test_a_table_has_no_positions_since_its_tokens_know_their_feature():
    network = _transformer("table")
    assert network.encoder.positions is None
    rows = torch.randn(4, 13)
    assert (network(rows) - network(rows.flip(1))).abs().max() > 1e-4


def test_pooling_reads_the_class_token_or_the_mean_over_the_tokens():
    first, mean = _transformer("sequence"), _transformer("sequence", pooling="mean")
    tokens = torch.randn(2, 7, 16)
    for network in (first, mean):
        network.encoder.blocks = nn.Sequential()
        network.encoder.norm = nn.Identity()
    places = mean.encoder.positions.weight
    torch.testing.assert_close(mean.encoder(tokens), (tokens + places).mean(dim=1))
    alone = first.encoder.class_token.weight[0] + first.encoder.positions.weight[0]
    torch.testing.assert_close(first.encoder(tokens), alone.expand(2, -1))


# ---- on data


@pytest.mark.parametrize(
    ("model", "data", "takes"),
    [
        ("resnet", "breast_cancer", "image"),
        ("vit", "diabetes", "image"),
        ("transformer", "digits", "table or sequence"),
    ],
)
def test_data_of_another_kind_is_refused_with_what_to_type(model, data, takes, fit):
    kind = "an image" if data == "digits" else "a table"
    name = {"resnet": "ResNet", "vit": "ViT", "transformer": "Transformer"}[model]
    with pytest.raises(ConfigError) as caught:
        fit(f"model={model}", f"data={data}", "size=tiny", "epochs=1")
    assert str(caught.value) == (
        f"`model` must take the data's kind, got {name} for {kind}: it takes {takes}. Try model=mlp."
    )


@pytest.mark.parametrize("data", ["digits", "breast_cancer", "diabetes"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_on_the_bundled_data_of_its_kinds(model, data, compose, fit):
    source = build(compose(f"data={data}").data)
    source.setup("fit")
    if (model, source.spec.kind) not in KINDS:
        return
    result, _ = fit(f"model={model}", f"data={data}", "size=tiny", "debug=one_batch")
    assert (result["status"], result["steps"]) == ("finished", 1)
    network = _network(compose, model, "size=tiny", shape=source.spec.input_shape, classes=source.spec.output_size)
    assert result["parameters"] == _count(network)
