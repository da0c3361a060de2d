"""Initial weights have the variance that the closed forms promise, keep it through depth, or come from a file."""

import logging
import math
from itertools import pairwise

import pytest
import torch
from conftest import options
from scipy.integrate import quad
from scipy.stats import truncnorm
from torch import nn

from tunelab.activations import FeatureSoftmax
from tunelab.config import ConfigError, validate
from tunelab.fitting import build
from tunelab.inits import gain, kaiming_normal, lsuv, orthogonal, pretrained, truncated_normal, zeros
from tunelab.models import CNN, MLP, ResNet, Transformer, ViT

FAN_IN, FAN_OUT = 600, 400  # 240,000 weights: their sample std is within 0.6 % of the true one (4 sigma)
SPREAD = {
    # std from (fan_in, fan_out, gain of the activation that feeds the layer)
    "xavier_normal": lambda fan_in, fan_out, gained: gained * math.sqrt(2 / (fan_in + fan_out)),
    "xavier_uniform": lambda fan_in, fan_out, gained: gained * math.sqrt(2 / (fan_in + fan_out)),
    "kaiming_normal": lambda fan_in, _, gained: gained / math.sqrt(fan_in),
    "kaiming_uniform": lambda fan_in, _, gained: gained / math.sqrt(fan_in),
    "normal": lambda *_: 0.01,
    "truncated_normal": lambda *_: 0.02 * truncnorm(-2, 2).std(),
}
DRAWN = [*sorted(SPREAD), "orthogonal"]
SET = [*DRAWN, "zeros", "lsuv"]
"""All that set the weights of any model, without a file."""
ACTIVATION_GAINS = {"relu": math.sqrt(2), "leaky_relu": math.sqrt(2 / (1 + 0.01**2))}
SHAPES = {"transformer": (7, 5)}


def _init(compose, option, model, inputs=None, *overrides):
    init = build(compose(f"init={option}", *overrides).init)
    init(model, **({"inputs": inputs} if option == "lsuv" else {}))


def _network(compose, model, *overrides):
    cfg = compose(f"model={model}", "size=tiny", "size.depth=2", *overrides)
    return build(cfg.model)(input_shape=SHAPES.get(model, (1, 8, 8)), output_size=10)


def _layers(network):
    return [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def test_every_init_file_is_tested_here():
    assert sorted([*SET, "default", "pretrained"]) == options("init")


# ---- one layer


@pytest.mark.parametrize("activation", sorted(ACTIVATION_GAINS))
@pytest.mark.parametrize("option", sorted(SPREAD))
def test_weights_that_an_activation_feeds_have_the_promised_spread_and_biases_are_zero(option, activation, compose):
    cfg = compose(f"activation={activation}")
    layer = nn.Linear(FAN_IN, FAN_OUT)
    _init(compose, option, nn.Sequential(build(cfg.activation)(), layer), None, f"activation={activation}")
    std = SPREAD[option](FAN_IN, FAN_OUT, ACTIVATION_GAINS[activation])
    _check_distribution(layer.weight, std, option)
    assert torch.equal(layer.bias, torch.zeros(FAN_OUT))


@pytest.mark.parametrize("option", sorted(SPREAD))
def test_the_first_layer_has_a_gain_of_one_since_no_activation_feeds_it(option, compose):
    layer = nn.Linear(FAN_IN, FAN_OUT)
    _init(compose, option, nn.Sequential(layer, nn.ReLU()))
    _check_distribution(layer.weight, SPREAD[option](FAN_IN, FAN_OUT, 1.0), option)


@pytest.mark.parametrize("option", sorted(SPREAD))
def test_the_fan_of_a_convolution_counts_its_kernel(option, compose):
    layer = nn.Conv2d(64, 128, 5)
    _init(compose, option, nn.Sequential(nn.ReLU(), layer))
    std = SPREAD[option](64 * 25, 128 * 25, math.sqrt(2))
    _check_distribution(layer.weight, std, option)
    assert torch.equal(layer.bias, torch.zeros(128))


def _check_distribution(weight, std, option):
    """Mean, standard deviation and the shape: a uniform one ends at sqrt(3) std, a normal one has 4.55 % beyond 2."""
    assert weight.std().item() == pytest.approx(std, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=4 * std / math.sqrt(weight.numel()))
    if option.endswith("uniform"):
        assert std * math.sqrt(3) * 0.999 < weight.abs().max().item() <= std * math.sqrt(3) * (1 + 1e-6)
    elif option == "truncated_normal":
        assert 0.0399 < weight.abs().max().item() <= 0.04
    else:
        assert (weight.abs() > 2 * std).float().mean().item() == pytest.approx(math.erfc(math.sqrt(2)), abs=0.003)


def test_truncation_is_at_two_standard_deviations_of_any_size():
    # torch's own default cuts at -2 and 2, which are a hundred standard deviations here
    for std in (0.02, 1.5):
        layer = nn.Linear(300, 300)
        truncated_normal(layer, std=std)
        assert 1.99 * std < layer.weight.abs().max().item() <= 2 * std


@pytest.mark.parametrize(("out", "into"), [(20, 50), (50, 20), (30, 30)])
def test_orthogonal_rows_or_columns_stand_at_right_angles_with_the_length_of_the_gain(out, into, compose):
    for given, length in (("null", math.sqrt(2)), ("3", 3.0)):
        layer = nn.Linear(into, out)
        _init(compose, "orthogonal", nn.Sequential(nn.ReLU(), layer), None, f"init.gain={given}")
        matrix = layer.weight if out <= into else layer.weight.T
        products = matrix @ matrix.T
        torch.testing.assert_close(products, length**2 * torch.eye(min(out, into)), rtol=1e-4, atol=2e-4)


def test_an_orthogonal_kernel_is_a_matrix_of_its_patches(compose):
    layer = nn.Conv2d(4, 8, 3)
    _init(compose, "orthogonal", layer)
    matrix = layer.weight.flatten(1)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", ["xavier_uniform", "xavier_normal", "orthogonal"])
def test_a_given_gain_scales_every_layer(option, compose):
    once, thrice = (nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30)) for _ in range(2))
    for model, given in ((once, 1), (thrice, 3)):
        torch.manual_seed(1)
        _init(compose, option, model, None, f"init.gain={given}")
    for index in (0, 2):
        torch.testing.assert_close(thrice[index].weight, 3 * once[index].weight)


def test_kaiming_equals_torchs_own_for_relu():
    ours, theirs = nn.Linear(300, 200), nn.Linear(300, 200)
    torch.manual_seed(3)
    kaiming_normal(nn.Sequential(nn.ReLU(), ours), nn.ReLU)
    torch.manual_seed(3)
    nn.init.kaiming_normal_(theirs.weight, nonlinearity="relu")
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=0)


# ---- every model


@pytest.mark.parametrize("option", [name for name in options("init") if name != "pretrained"])
def test_layers_without_a_bias_are_initialised_too(option, compose):
    model = nn.Sequential(
        nn.Linear(8, 16, bias=False), nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
    )
    before = [parameter.clone() for parameter in model.parameters()]
    _init(compose, option, model, torch.randn(5, 8))
    changed = [not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True)]
    # the two weights, and not the norm's scale and shift
    assert changed == ([False] * 4 if option == "default" else [True, True, False, False])


@pytest.mark.parametrize("model", options("model"))
def test_default_leaves_every_model_as_it_was_built(model, compose):
    network = _network(compose, model)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    _init(compose, "default", network)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("option", SET)
@pytest.mark.parametrize("model", options("model"))
def test_every_init_sets_every_weight_of_every_model(model, option, compose):
    network = _network(compose, model)
    with torch.no_grad():
        for layer in _layers(network):
            for parameter in layer.parameters():
                parameter.fill_(123)
    _init(compose, option, network, torch.randn(16, *SHAPES.get(model, (1, 8, 8))))
    assert max(layer.weight.abs().max().item() for layer in _layers(network)) < 123
    assert sum(layer.bias.abs().sum().item() for layer in _layers(network) if layer.bias is not None) == 0


@pytest.mark.parametrize("option", SET)
@pytest.mark.parametrize("make", [ViT, Transformer])
def test_positions_and_class_tokens_follow_an_init_without_fans_and_no_other(make, option, compose):
    shape = (1, 8, 8) if make is ViT else (13,)
    network = make(shape, 10, width=64, depth=1, activation=nn.ReLU)
    embeddings = [m for m in network.modules() if isinstance(m, nn.Embedding)]
    before = [embedding.weight.clone() for embedding in embeddings]
    _init(compose, option, network, torch.randn(4, *shape))
    for embedding, then in zip(embeddings, before, strict=True):
        if option in ("normal", "truncated_normal", "zeros"):
            std = 0.0 if option == "zeros" else SPREAD[option]()
            assert embedding.weight.std().item() == pytest.approx(std, rel=0.5)  # a class token has 64 values
        else:
            assert torch.equal(embedding.weight, then)


@pytest.mark.parametrize("option", ["kaiming_normal", "xavier_normal"])
def test_the_layers_of_a_transformer_have_the_gain_of_what_feeds_them(option, compose):
    network = Transformer((7, 5), 10, width=256, depth=2, activation=nn.ReLU, mlp_ratio=4)
    _init(compose, option, network)
    for block in network.encoder.blocks:
        attention = block.attention
        for layer in (attention.query, attention.key, attention.value, attention.out, block.mlp[0]):
            std = SPREAD[option](layer.in_features, layer.out_features, 1.0)
            assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        std = SPREAD[option](1024, 256, math.sqrt(2))  # behind the activation
        assert block.mlp[3].weight.std().item() == pytest.approx(std, rel=0.02)


def test_a_model_that_calls_its_activation_as_a_function_has_the_gain_in_all_layers_but_the_first():
    layers = nn.ModuleList(nn.Linear(300, 300) for _ in range(3))
    kaiming_normal(layers, nn.ReLU)
    spreads = [layer.weight.std().item() * math.sqrt(300) for layer in layers]
    assert spreads == pytest.approx([1, math.sqrt(2), math.sqrt(2)], rel=0.02)


@pytest.mark.parametrize("option", DRAWN)
def test_the_same_seed_gives_the_same_weights(option, compose):
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        layer = nn.Linear(10, 10)
        _init(compose, option, layer)
        weights.append(layer.weight)
    assert torch.equal(*weights)


# ---- gains


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


# ---- through depth


def _variances(compose, init, activation, *, depth, seeds, width=512):
    """The mean square that each hidden layer puts out, before its activation: shape (seeds, depth)."""
    cfg = compose(f"init={init}", f"activation={activation}", f"size.width={width}", f"size.depth={depth}")
    found = []
    for _ in range(seeds):
        model = build(cfg.model)(input_shape=(width,), output_size=10)
        build(cfg.init)(model)
        signal, squares = torch.randn(8, width), []
        with torch.no_grad():
            for name, module in model.named_children():
                signal = module(signal)
                if name.startswith("hidden"):
                    squares.append(signal.square().mean().item())
        found.append(squares)
    return torch.tensor(found)


@pytest.mark.parametrize(
    ("init", "activation"),
    [("kaiming_normal", "relu"), ("kaiming_uniform", "relu"), ("xavier_normal", "tanh"), ("xavier_uniform", "tanh")],
)
def test_twenty_layers_multiply_the_variance_by_one_to_ten_percent(init, activation, compose):
    # each on inputs of its own, averaged over draws: along one network of 512 units ReLU wanders by
    # sqrt(5 / 512) = 10 % a layer, which no gain decides
    cfg = compose(f"init={init}", f"activation={activation}", "size.width=512", "size.depth=20")
    factors = torch.zeros(8, 20)
    for draw in factors:
        model = build(cfg.model)(input_shape=(512,), output_size=10)
        build(cfg.init)(model)
        signal = torch.randn(128, 512)
        with torch.no_grad():
            draw[0] = model.hidden1(signal).square().mean()
            for number in range(2, 21):
                fed = model.get_submodule(f"activation{number - 1}")(torch.randn(128, 512))
                draw[number - 1] = model.get_submodule(f"hidden{number}")(fed).square().mean()
    assert factors.mean(dim=0).tolist() == pytest.approx([1.0] * 20, rel=0.04)
    assert factors.mean(dim=0).prod().item() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("init", ["xavier_normal", "xavier_uniform", "kaiming_normal"])
def test_a_network_of_twenty_layers_under_tanh_keeps_the_variance_to_ten_percent(init, compose):
    # where there is too much of it tanh takes it away, so that it does not wander
    assert _variances(compose, init, "tanh", depth=20, seeds=2).mean(dim=0).tolist() == pytest.approx([1] * 20, rel=0.1)


@pytest.mark.parametrize("init", ["kaiming_normal", "xavier_uniform", "orthogonal"])
@pytest.mark.parametrize("activation", [name for name in options("activation") if name != "softmax"])
def test_under_no_activation_does_the_variance_vanish_or_explode_in_twenty_layers(activation, init, compose):
    # SiLU, GELU and Mish are close to quadratic around zero: they enlarge whatever a layer has too much or too little
    # of, and no gain can mend that. (A softmax's outputs sum to one: whatever comes in, they are small.)
    last = _variances(compose, init, activation, depth=20, seeds=2, width=256)[:, -1]
    assert last.min().item() > 1e-2
    assert last.max().item() < 1e2


@pytest.mark.parametrize("init", ["xavier_uniform", "xavier_normal"])
def test_the_papers_gain_of_one_loses_half_of_the_variance_at_each_layer_under_relu(init, compose):
    squares = _variances(compose, init, "relu", depth=6, seeds=1)
    with_one = build(compose(f"init={init}", "init.gain=1").init)
    model = MLP((512,), 10, width=512, depth=6, activation=nn.ReLU)
    with_one(model)
    signal, found = torch.randn(64, 512), []
    for name, module in model.named_children():
        signal = module(signal).detach()
        if name.startswith("hidden"):
            found.append(signal.square().mean().item())
    assert [after / before for before, after in pairwise(found)] == pytest.approx([0.5] * 5, rel=0.3)
    assert found[-1] < 0.1 < 0.3 < squares[0, -1].item()


def test_normal_weights_of_a_hundredth_vanish_with_depth(compose):
    # std 0.01 and a width of 512: 512 * 1e-4 / 2 of the variance is left at each layer under ReLU
    squares = _variances(compose, "normal", "relu", depth=6, seeds=2).log().mean(dim=0)
    assert squares.diff().mean().exp().item() == pytest.approx(512e-4 / 2, rel=0.15)


# ---- zeros


def test_zeros_leave_all_units_of_a_layer_alike_however_long_it_learns():
    model = MLP((6,), 3, width=8, depth=1, activation=nn.Sigmoid)
    zeros(model)
    inputs = torch.randn(64, 6)
    labels = (inputs[:, 0] > 0).long() + (inputs[:, 0] > 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    weight = model.hidden1.weight
    assert weight[:, 0].abs().min() > 0.1  # it does learn from the feature that decides
    torch.testing.assert_close(weight, weight[:1].expand_as(weight))


def test_zeros_under_relu_give_no_gradient_to_any_weight():
    model = MLP((6,), 3, width=8, depth=2, activation=nn.ReLU)
    zeros(model)
    nn.functional.cross_entropy(model(torch.randn(9, 6)), torch.arange(9) % 3).backward()
    assert [name for name, p in model.named_parameters() if p.grad.norm() > 0] == ["head.bias"]


# ---- lsuv


@pytest.mark.parametrize(
    ("make", "shape"),
    [(MLP, (12,)), (CNN, (1, 8, 8)), (ResNet, (1, 8, 8)), (ViT, (1, 8, 8)), (Transformer, (9,)), (Transformer, (7, 5))],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Sigmoid], ids=lambda kind: kind.__name__)
def test_lsuv_gives_every_layer_an_output_of_variance_one_on_the_batch(make, shape, activation):
    network = make(shape, 10, width=32, depth=3, activation=activation, dropout=0.3)
    inputs = 3 * torch.randn(64, *shape) + 1
    state = {name: buffer.clone() for name, buffer in network.named_buffers()}
    lsuv(network, inputs)
    assert network.training
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, state[name]), name
    variances = {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.eval()
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: variances.update({name: output.var(correction=0).item()})
            )
    with torch.no_grad():
        network(inputs)
    assert len(variances) == len(_layers(network))
    assert list(variances.values()) == pytest.approx([1.0] * len(variances), rel=0.01)


def test_lsuv_only_scales_what_orthogonal_draws():
    network = MLP((12,), 10, width=16, depth=2, activation=nn.Tanh)
    inputs = torch.randn(50, 12)
    torch.manual_seed(2)
    lsuv(network, inputs)
    twin = MLP((12,), 10, width=16, depth=2, activation=nn.Tanh)
    torch.manual_seed(2)
    orthogonal(twin, nn.Tanh, gain=1.0)
    for layer, drawn in zip(_layers(network), _layers(twin), strict=True):
        torch.testing.assert_close(layer.weight / layer.weight.norm(), drawn.weight / drawn.weight.norm())


def test_lsuv_leaves_a_layer_alone_whose_output_is_constant():
    network = MLP((12,), 10, width=16, depth=2, activation=nn.Tanh)
    lsuv(network, torch.zeros(8, 12))
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    torch.testing.assert_close(network.hidden2.weight @ network.hidden2.weight.T, torch.eye(16), rtol=0, atol=1e-5)


def test_lsuv_takes_a_training_batch_of_the_run(fit):
    result, _ = fit("init=lsuv", "model=resnet", "size=tiny", "debug=one_batch")
    assert (result["status"], result["steps"]) == ("finished", 1)


# ---- pretrained


def _mlp(classes=10, width=16):
    return MLP((4,), classes, width=width, depth=2, activation=nn.ReLU, normalization="batch")


def _same(model, other):
    return [name for name, value in model.state_dict().items() if torch.equal(value, other.state_dict()[name])]


@pytest.mark.parametrize("form", ["state dict", "checkpoint", "compiled"])
def test_pretrained_takes_over_every_tensor(form, tmp_path):
    source, model = _mlp(), _mlp()
    source(torch.randn(8, 4))  # statistics of the norms
    prefix = {"state dict": "", "checkpoint": "model.", "compiled": "model._orig_mod."}[form]
    state = {prefix + name: value for name, value in source.state_dict().items()}
    content = state if form == "state dict" else {"state_dict": state | {"loss.scale": torch.ones(1)}, "epoch": 3}
    torch.save(content, tmp_path / "weights.pt")
    pretrained(model, str(tmp_path / "weights.pt"), strict=form == "state dict")
    assert _same(model, source) == list(source.state_dict())


def test_pretrained_takes_over_a_run_from_its_folder(fit):
    _, folder = fit("epochs=1", "size=tiny", "trainer.limit_train_batches=2")
    cfg = (f"init.path={folder}", "init=pretrained", "size=tiny", "debug=one_batch", "lr=1e-12")
    result, again = fit(*cfg)
    assert result["status"] == "finished"
    old, new = (
        torch.load(path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for path in (folder, again)
    )
    for name, value in old.items():
        torch.testing.assert_close(new[name], value, rtol=0, atol=1e-6)


def test_not_strict_takes_over_what_fits_and_says_what_does_not(tmp_path, caplog):
    source, model = _mlp(classes=10), _mlp(classes=3)
    state = source.state_dict() | {"extra.weight": torch.ones(2)}
    del state["hidden2.bias"]
    torch.save(state, tmp_path / "weights.pt")
    with caplog.at_level(logging.INFO, "tunelab"):
        pretrained(model, str(tmp_path / "weights.pt"), strict=False)
    wanted = [name for name in model.state_dict() if not name.startswith("head") and name != "hidden2.bias"]
    assert [name for name in wanted if not torch.equal(model.state_dict()[name], state[name])] == []
    assert [record.message for record in caplog.records] == [
        f"init: {len(wanted)} of the model's {len(wanted) + 3} tensors come from {tmp_path / 'weights.pt'}",
        "init: not in it: hidden2.bias",
        "init: of another shape: head.weight of shape (10, 16) for (3, 16), head.bias of shape (10,) for (3,)",
        "init: not in the model: extra.weight",
    ]


def test_strict_refuses_what_differs_and_says_what_to_type(tmp_path):
    torch.save(_mlp(classes=10).state_dict(), tmp_path / "weights.pt")
    model = _mlp(classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError) as caught:
        pretrained(model, str(tmp_path / "weights.pt"))
    assert str(caught.value) == (
        f"`init.path` must hold this model's weights, but in {tmp_path / 'weights.pt'} head.weight of shape (10, 16) "
        "for (3, 16), head.bias of shape (10,) for (3,). "
        "Try init.strict=false, which takes over the 14 of 16 that fit."
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_which_none_fit_are_refused_either_way(strict, tmp_path):
    torch.save(CNN((1, 8, 8), 10, width=16, depth=2, activation=nn.ReLU).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ConfigError) as caught:
        pretrained(MLP((4,), 3, width=7, depth=2, activation=nn.ReLU), str(tmp_path / "weights.pt"), strict=strict)
    assert str(caught.value) == (
        f"`init.path` must hold weights of this model, but nothing in {tmp_path / 'weights.pt'} fits: it has "
        "conv0.weight, norm0.weight, norm0.bias, norm0.running_mean and 16 more; the model has hidden1.weight, "
        "hidden1.bias, hidden2.weight, hidden2.bias and 2 more. Choose the model and size that wrote it."
    )


def test_a_path_that_is_not_given_is_refused_before_anything_runs(compose):
    with pytest.raises(ConfigError) as caught:
        validate(compose("init=pretrained"))
    assert str(caught.value) == ("`init.path` must be given with init=pretrained. Try init.path=outputs/<name>/<time>.")


def test_a_path_that_leads_nowhere_is_refused_with_what_to_type(tmp_path):
    for path, missing in ((tmp_path / "no.pt", tmp_path / "no.pt"), (tmp_path, tmp_path / "checkpoints" / "best.ckpt")):
        with pytest.raises(ConfigError) as caught:
            pretrained(_mlp(), str(path))
        assert str(caught.value) == (
            f"`init.path` must be a run's folder, a checkpoint or a state dict, got {path}, but there is no {missing}. "
            "Try init.path=outputs/<name>/<time>."
        )


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_a_file_that_would_run_code_or_holds_no_weights_is_refused(tmp_path, capsys):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(ConfigError, match=r"`init.path` must be a file of weights, got .*\. "):
            pretrained(_mlp(), str(file))
    assert capsys.readouterr().out == ""


def test_a_damaged_file_is_refused(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save(_mlp().state_dict(), file)
    content = bytearray(file.read_bytes())
    place = bytes(content).index(_mlp().state_dict()["norm1.weight"].numpy().tobytes())
    content[place] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ConfigError, match="its checksum is wrong"):
        pretrained(_mlp(), str(file))


# ---- keys


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("init.gain=0", "be greater than 0"),
        ("init.gain=big", "be a number"),
        ("init.strict=2", "be true or false"),
        ("init.path=3", "be text"),
    ],
)
def test_keys_of_the_inits_have_types_and_ranges(override, rule, compose):
    option = "orthogonal" if "gain" in override else "pretrained"
    with pytest.raises(ConfigError) as caught:
        validate(compose(f"init={option}", override))
    assert f"`{override.split('=')[0]}` must {rule}" in str(caught.value)
