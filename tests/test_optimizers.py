"""Every optimizer minimises, keeps its dtype and its state, and equals torch's plain form; groups decay by rule."""

import copy
import io
import math

import pytest
import torch
from conftest import options
from torch import nn

from tunelab.config import ConfigError
from tunelab.models import CNN, MLP
from tunelab.optimizers import parameter_groups
from tunelab.run import build

OPTIMIZERS = options("optimizer")
ROSENBROCK_LR = {"adam": 0.02, "adamw": 0.02, "momentum": 5e-4, "sgd": 2e-3}


def _maker(option, compose, *overrides):
    return build(compose(f"optimizer={option}", *overrides).optimizer)


def _rosenbrock(point):
    x, y = point
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def test_every_optimizer_file_has_an_lr_for_rosenbrock_here():
    assert sorted(ROSENBROCK_LR) == OPTIMIZERS


@pytest.mark.parametrize(
    ("option", "dials"),
    [
        ("sgd", {"lr": 0.1, "momentum": 0, "weight_decay": 0.0}),
        ("momentum", {"lr": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}),
        ("adam", {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}),
        ("adamw", {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}),
    ],
)
def test_the_defaults_are_those_of_the_knobs_list(option, dials, compose):
    defaults = _maker(option, compose)([nn.Parameter(torch.zeros(2))]).defaults
    assert {key: tuple(v) if isinstance(v := defaults[key], list) else v for key in dials} == dials


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_optimizer_minimises_a_parabola(option, compose):
    point = nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))
    optimizer = _maker(option, compose)([point], lr=0.03, weight_decay=0.0)
    for _ in range(1000):
        point.grad = 2 * (point.detach() - torch.tensor([1.0, 2.0]))
        optimizer.step()
    torch.testing.assert_close(point.data, torch.tensor([1.0, 2.0], dtype=torch.float64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_optimizer_finds_the_valley_of_rosenbrock(option, compose):
    point = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    assert _rosenbrock(point.tolist()) == pytest.approx(24.2)
    optimizer = _maker(option, compose)([point], lr=ROSENBROCK_LR[option], weight_decay=0.0)
    for _ in range(8000):
        x, y = point.tolist()
        point.grad = torch.tensor([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)], dtype=torch.float64)
        optimizer.step()
    assert _rosenbrock(point.tolist()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("option", OPTIMIZERS)
def test_optimizer_keeps_the_dtype_of_its_parameters(option, dtype, compose):
    parameter = nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = _maker(option, compose)([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert parameter.dtype == dtype
    shaped = [value for value in optimizer.state[parameter].values() if torch.is_tensor(value) and value.ndim]
    assert all(value.dtype == dtype for value in shaped)


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_optimizer_saved_and_loaded_continues_identically(option, compose):
    make = _maker(option, compose)
    gradients = torch.randn(20, 4, 3)

    def run(parameter, optimizer, part):
        for gradient in part:
            parameter.grad = gradient.clone()
            optimizer.step()

    first = nn.Parameter(torch.ones(4, 3))
    optimizer = make([first])
    run(first, optimizer, gradients[:10])
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "parameter": first.data}, file)
    run(first, optimizer, gradients[10:])

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = nn.Parameter(saved["parameter"])
    resumed = make([second])
    resumed.load_state_dict(saved["optimizer"])
    run(second, resumed, gradients[10:])
    assert torch.equal(first, second)


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_optimizer_refuses_a_negative_lr(option, compose):
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        _maker(option, compose)([nn.Parameter(torch.zeros(2))], lr=-1)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("option", OPTIMIZERS)
def test_the_fused_optimizer_equals_torchs_plain_loop_over_tensors(option, weight_decay, compose):
    make = _maker(option, compose)
    results = []
    for kind in ({"fused": True}, {"fused": False, "foreach": False}):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((7, 5), (5,), (2, 3, 3, 3))]
        optimizer = make(parameters, weight_decay=weight_decay, **kind)
        for _ in range(30):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        results.append(parameters)
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_every_optimizer_file_asks_for_the_fused_form(option, compose):
    # the unfused one costs a third more per step on a small model (FIELD.md)
    assert _maker(option, compose)([nn.Parameter(torch.zeros(2))]).defaults["fused"] is True


# ---- what weight decay means to each


def _shrunk(option, compose, lr=0.01, weight_decay=0.1):
    """What one step without a loss gradient makes of weights 1 and 10."""
    parameter = nn.Parameter(torch.tensor([1.0, 10.0], dtype=torch.float64))
    optimizer = _maker(option, compose)([parameter], lr=lr, weight_decay=weight_decay)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return parameter.tolist()


@pytest.mark.parametrize("option", ["sgd", "momentum", "adamw"])
def test_weight_decay_shrinks_each_weight_by_the_same_share(option, compose):
    share = 1 - 0.01 * 0.1
    assert _shrunk(option, compose) == pytest.approx([share, 10 * share], rel=1e-12)


def test_the_weight_decay_of_adam_is_rescaled_so_that_each_weight_loses_the_same_amount(compose):
    # L2 goes through m / sqrt(v): the first step is lr times the sign, however small the decay
    assert _shrunk("adam", compose) == pytest.approx([1 - 0.01, 10 - 0.01], rel=1e-6)
    assert _shrunk("adam", compose, weight_decay=1e-4) == pytest.approx([1 - 0.01, 10 - 0.01], rel=1e-5)


def test_momentum_equals_its_recurrence(compose):
    gradients = torch.randn(25, dtype=torch.float64).tolist()
    parameter = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = _maker("momentum", compose)([parameter])
    weight, velocity = 0.5, 0.0
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        velocity = 0.9 * velocity + gradient
        weight -= 0.01 * velocity
    assert parameter.item() == pytest.approx(weight, rel=1e-12)


def test_adamw_equals_its_recurrence(compose):
    gradients = torch.randn(25, dtype=torch.float64).tolist()
    parameter = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = _maker("adamw", compose)([parameter])
    weight, m, v = 0.5, 0.0, 0.0
    for t, gradient in enumerate(gradients, start=1):
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        weight -= 1e-3 * 0.01 * weight + 1e-3 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
    assert parameter.item() == pytest.approx(weight, rel=1e-10)


# ---- the fused optimizer's trap


def _updated(option, compose, gradient, *, fused, through_the_task):
    parameter = nn.Parameter(torch.ones(gradient.shape))
    optimizer = _maker(option, compose)([parameter], fused=fused)
    parameter.grad = gradient.clone(memory_format=torch.preserve_format)
    assert parameter.grad.stride() == gradient.stride()
    if through_the_task:
        build(compose().task).configure_gradient_clipping(optimizer)
    optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_a_gradient_that_is_not_contiguous_is_read_right_by_the_fused_optimizer(option, compose):
    gradient = torch.linspace(-3, 2, 15).reshape(3, 5).t()  # a transposed view, as some backward passes leave
    plain = _updated(option, compose, gradient, fused=False, through_the_task=False)
    ours = _updated(option, compose, gradient, fused=True, through_the_task=True)
    torch.testing.assert_close(ours, plain)
    # the trap: without the task's care the update lands on the wrong weights
    trapped = _updated(option, compose, gradient, fused=True, through_the_task=False)
    assert (trapped - plain).abs().max() > 1e-4


def test_a_convolution_in_channels_last_is_read_right_by_the_fused_optimizer(compose):
    layer = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(layer)
    gradient = torch.randn(6, 4, 3, 3)  # contiguous, unlike the weight
    layer.weight.grad, plain.weight.grad = gradient.clone(), gradient.clone()
    fused = _maker("adamw", compose)([layer.weight])
    build(compose().task).configure_gradient_clipping(fused)
    fused.step()
    _maker("adamw", compose)([plain.weight], fused=False).step()
    torch.testing.assert_close(layer.weight, plain.weight)


# ---- parameter groups


class _Everything(nn.Module):
    """A parameter of each kind."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm((3, 4))  # its weight has two dimensions
        self.slope = nn.PReLU()
        self.conv = nn.Conv2d(2, 3, 3)
        self.batch_norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(4, 5, bias=False)


DECAYED = {"linear.weight", "conv.weight", "head.weight"}


def _names(model, groups):
    """The group that each parameter is in; one in two groups would be an error."""
    owner = {}
    for group in groups:
        for parameter in group["params"]:
            name = next(n for n, p in model.named_parameters() if p is parameter)
            assert name not in owner, name
            owner[name] = group["weight_decay"]
    return owner


def test_biases_norms_embeddings_and_slopes_do_not_decay_by_default(compose):
    model = _Everything()
    owner = _names(model, build(compose().parameter_groups)(model, weight_decay=0.3))
    assert owner == {name: 0.3 if name in DECAYED else 0.0 for name, _ in model.named_parameters()}


def test_without_kinds_to_spare_everything_decays(compose):
    model = _Everything()
    groups = build(compose("parameter_groups.undecayed=[]").parameter_groups)(model, weight_decay=0.3)
    assert _names(model, groups) == {name: 0.3 for name, _ in model.named_parameters()}
    assert len(groups) == 1


@pytest.mark.parametrize(
    ("kinds", "spared"),
    [
        (["norm"], {"norm.weight", "norm.bias", "batch_norm.weight", "batch_norm.bias"}),
        (["embedding"], {"embedding.weight"}),
        # everything with fewer than two dimensions
        (["bias"], {"linear.bias", "norm.bias", "slope.weight", "conv.bias", "batch_norm.weight", "batch_norm.bias"}),
    ],
)
def test_each_kind_spares_its_own(kinds, spared):
    model = _Everything()
    owner = _names(model, parameter_groups(model, 0.3, kinds))
    # the bias of a norm over two dimensions has two itself
    spared = spared - ({"norm.bias"} if kinds == ["bias"] else set())
    assert {name for name, decay in owner.items() if decay == 0} == spared


def test_a_shared_parameter_is_in_one_group_once():
    model = _Everything()
    model.head = nn.Linear(4, 5, bias=False)
    model.head.weight = model.embedding.weight
    for kinds in ((), ("bias", "norm", "embedding")):
        groups = parameter_groups(model, 0.3, kinds)
        ids = [id(parameter) for group in groups for parameter in group["params"]]
        assert len(ids) == len(set(ids)) == len(list(model.parameters()))


def test_without_weight_decay_there_is_one_group():
    model = _Everything()
    (group,) = parameter_groups(model, 0.0)
    assert _names(model, [group]) == {name: 0.0 for name, _ in model.named_parameters()}


def test_frozen_parameters_are_in_no_group():
    model = _Everything()
    model.linear.requires_grad_(False)
    owner = _names(model, parameter_groups(model, 0.3))
    assert set(owner) == {name for name, _ in model.named_parameters() if not name.startswith("linear")}


def test_an_unknown_kind_is_refused_with_those_there_are():
    with pytest.raises(ConfigError) as caught:
        parameter_groups(nn.Linear(2, 2), 0.1, ["bias", "biases"])
    assert str(caught.value) == (
        "`parameter_groups.undecayed` must be out of bias, norm, embedding, got biases. "
        "Try parameter_groups.undecayed=[bias,norm]."
    )


@pytest.mark.parametrize("activation", [nn.ReLU, nn.PReLU])
@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.parametrize("kind", [MLP, CNN])
def test_the_groups_of_a_model_hold_each_of_its_parameters_once(kind, normalization, activation):
    model = kind((1, 8, 8), 10, width=16, depth=3, activation=activation, normalization=normalization)
    owner = _names(model, parameter_groups(model, 0.01))
    # in our models it is the matrices and kernels that decay
    assert owner == {name: 0.01 if p.ndim > 1 else 0.0 for name, p in model.named_parameters()}


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_a_run_uses_the_groups_and_the_lr_of_its_recipe(option, fit_with):
    fitted = fit_with([], f"optimizer={option}", "epochs=1", "weight_decay=0.05", "scheduler=constant", "size=tiny")
    groups = fitted.trainer.optimizers[0].param_groups
    assert [(group["name"], group["weight_decay"]) for group in groups] == [("decayed", 0.05), ("undecayed", 0.0)]
    assert {group["lr"] for group in groups} == {_default_lr(option)}


def _default_lr(option):
    return {"sgd": 0.1, "momentum": 0.01, "adam": 1e-3, "adamw": 1e-3}[option]
