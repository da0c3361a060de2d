"""Every optimizer minimises, keeps its dtype and its state, and decays as its file says."""

import copy
import inspect
import io
import math

import pytest
import torch
from conftest import options
from hydra.utils import get_object
from torch import nn

from tunelab import conf_folder
from tunelab.config import ConfigError, validate
from tunelab.fitting import build
from tunelab.optimizers.muon import Muon
from tunelab.optimizers.sam import SAM
from tunelab.schedules import polynomial

OPTIMIZERS = options("optimizer")
SCHEDULE_FREE = ["schedule_free", "schedule_free_sgd"]
FUSED = ["adagrad", "adam", "adamw", "momentum", "nesterov", "sam", "sgd"]
L2 = ["adadelta", "adagrad", "adam", "adamax", "momentum", "nadam", "nesterov", "radam", "rmsprop", "sam", "sgd"]
L2 += ["schedule_free_sgd"]
DECOUPLED = ["adafactor", "adamw", "lion", "muon", "schedule_free"]
WITHIN = ["lamb"]

PARABOLA_LR = dict.fromkeys(OPTIMIZERS, 0.3)
PARABOLA_LR |= {"adadelta": 10.0, "adagrad": 2.0, "lamb": 0.03, "lbfgs": 1.0, "lion": 0.1, "schedule_free": 1.0}
ROSENBROCK = {
    # lr and steps
    "adadelta": (1.0, 3000),
    "adafactor": (0.03, 3000),
    "adagrad": (1.0, 4000),
    "adam": (0.3, 1000),
    "adamax": (1.0, 2000),
    "adamw": (0.3, 1000),
    "lamb": (0.03, 2000),
    "lbfgs": (1.0, 10),
    "lion": (0.03, 2000),
    "momentum": (2e-3, 2000),
    "muon": (0.01, 2000),
    "nadam": (0.1, 2000),
    "nesterov": (1e-3, 2000),
    "radam": (0.1, 2000),
    "rmsprop": (0.02, 3000),
    "sam": (1e-3, 3000),
    "schedule_free": (0.1, 3000),
    "schedule_free_sgd": (2e-3, 3000),
    "sgd": (3e-3, 4000),
}


def _maker(option, compose, *overrides):
    return build(compose(f"optimizer={option}", *overrides).optimizer)


def _made(option, compose, parameters, **keys):
    """The optimizer of a file; the lr is that of muon's AdamW too."""
    keys |= {"adamw_lr": keys["lr"]} if option == "muon" and "lr" in keys else {}
    if option == "lbfgs":
        keys.pop("weight_decay", None)  # it has none
    return _maker(option, compose)(parameters, **keys)


def _descend(optimizer, point, gradient, steps, value=lambda point: 0.0):
    """Steps with a warm-up and an lr that falls along a line; at the end it stands where it would be scored."""
    falls = not hasattr(optimizer, "eval") and steps > 100
    schedule = polynomial(optimizer, total_steps=steps, steps_per_epoch=1, power=1.0, warmup_steps=50 if falls else 0)

    def closure():
        point.grad = torch.tensor(gradient(*point.tolist()), dtype=point.dtype)
        return torch.tensor(value(point.tolist()), dtype=point.dtype)

    for _ in range(steps):
        optimizer.step(closure)
        if falls:
            schedule.step()
    if hasattr(optimizer, "eval"):
        optimizer.eval()


def _rosenbrock(point):
    x, y = point
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def test_every_optimizer_file_is_in_these_tables():
    assert sorted(ROSENBROCK) == sorted(PARABOLA_LR) == sorted([*L2, *DECOUPLED, *WITHIN, "lbfgs"]) == OPTIMIZERS


@pytest.mark.parametrize(
    ("option", "dials"),
    [
        ("sgd", {"lr": 0.1, "momentum": 0, "weight_decay": 0.0}),
        ("momentum", {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0}),
        ("nesterov", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.0}),
        ("adagrad", {"lr": 1e-2, "weight_decay": 0.0}),
        ("rmsprop", {"lr": 1e-3, "weight_decay": 0.0}),
        ("adadelta", {"lr": 1.0, "weight_decay": 0.0}),
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
    optimizer = _made(option, compose, [point], lr=PARABOLA_LR[option], weight_decay=0.0)
    value = lambda at: (at[0] - 1) ** 2 + (at[1] - 2) ** 2  # noqa: E731
    _descend(optimizer, point, lambda x, y: [2 * (x - 1), 2 * (y - 2)], 500 if option != "lbfgs" else 3, value)
    torch.testing.assert_close(point.data, torch.tensor([1.0, 2.0], dtype=torch.float64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_optimizer_finds_the_valley_of_rosenbrock(option, compose):
    point = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    assert _rosenbrock(point.tolist()) == pytest.approx(24.2)
    lr, steps = ROSENBROCK[option]
    near = {"rho": 1e-3} if option == "sam" else {}  # the valley is a few hundredths wide
    optimizer = _made(option, compose, [point], lr=lr, weight_decay=0.0, **near)
    slope = lambda x, y: [-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)]  # noqa: E731
    _descend(optimizer, point, slope, steps, _rosenbrock)
    assert _rosenbrock(point.tolist()) < 1e-2


# ---- what a run needs of each


def _regression(shape=(4, 3), dtype=torch.float32):
    """A parameter, and for each step a closure with its own examples, the same for every parameter."""
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(8, shape[0], generator=generator).to(dtype) for _ in range(20)]
    goal = torch.randn(shape, generator=generator).to(dtype)

    def closure(parameter, number):
        def compute():
            parameter.grad = None
            loss = ((batches[number] @ (parameter - goal)) ** 2).mean()
            loss.backward()
            return loss

        return compute

    return closure


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("option", OPTIMIZERS)
def test_optimizer_keeps_the_dtype_of_its_parameters(option, dtype, compose):
    for shape in ((3,), (4, 3)):
        parameter = nn.Parameter(torch.ones(shape, dtype=dtype))
        optimizer = _maker(option, compose)([parameter])

        def closure(parameter=parameter):
            parameter.grad = parameter.detach().clone()
            return (parameter.detach() ** 2).sum()

        optimizer.step(closure)
        assert parameter.dtype == dtype
        shaped = [value for value in optimizer.state[parameter].values() if torch.is_tensor(value) and value.ndim]
        assert {value.dtype for value in shaped} <= {dtype}


@pytest.mark.parametrize("shape", [(4, 3), (4,)])
@pytest.mark.parametrize("option", OPTIMIZERS)
def test_optimizer_saved_and_loaded_continues_identically(option, shape, compose):
    make, closure = _maker(option, compose), _regression(shape)
    first = nn.Parameter(torch.ones(shape))
    optimizer = make([first])
    for number in range(10):
        optimizer.step(closure(first, number))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "parameter": first.data}, file)
    for number in range(10, 20):
        optimizer.step(closure(first, number))

    file.seek(0)
    saved = torch.load(file, weights_only=True)  # refuses anything but plain values and tensors
    second = nn.Parameter(saved["parameter"])
    resumed = make([second])
    resumed.load_state_dict(saved["optimizer"])
    for number in range(10, 20):
        resumed.step(closure(second, number))
    assert torch.equal(first, second)


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_optimizer_refuses_a_negative_lr(option, compose):
    with pytest.raises(ConfigError, match=r"`lr` must be greater than 0, got -1\."):
        validate(compose(f"optimizer={option}", "scheduler=constant", "lr=-1"))
    with pytest.raises(Exception, match=r"(?i)learning rate.*-1"):
        _maker(option, compose)([nn.Parameter(torch.zeros(2))], lr=-1)


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_the_defaults_hold_the_lr_that_a_schedule_measures_by(option, compose):
    assert _maker(option, compose)([nn.Parameter(torch.zeros(2))], lr=0.07).defaults["lr"] == 0.07


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("option", sorted({*OPTIMIZERS} - {"adafactor", "lbfgs", "muon", "sam"}))
def test_the_fast_form_equals_the_plain_loop_over_tensors(option, weight_decay, compose):
    make = _maker(option, compose)
    slow = {"foreach": False} | ({"fused": False} if option in FUSED else {})
    results = []
    for kind in ({} if option in FUSED else {"foreach": True}, slow):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((7, 5), (5,), (2, 3, 3, 3))]
        optimizer = make(parameters, weight_decay=weight_decay, **kind)
        for _ in range(30):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        results.append(parameters)
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_every_optimizer_file_asks_for_the_fastest_form_that_its_class_has(option, compose):
    # on a CPU, × the loop over tensors, by benchmarks/optimizers.py: fused 0.2 to 0.7 (plain sgd: 0.8 to 1.1); foreach
    # 1.1 on a small mlp, 0.9 on a resnet and up to 2 on 11 million weights, but for radam. On a GPU torch takes foreach
    cfg = compose(f"optimizer={option}").optimizer
    has = inspect.signature(get_object(cfg._target_)).parameters
    assert cfg.get("fused", False) is ("fused" in has)
    assert cfg.get("foreach", False) is (option == "radam")
    assert (option in FUSED) is ("fused" in has)


# ---- what weight decay means to each


def _after_a_step(option, compose, gradient, **keys):
    parameter = nn.Parameter(torch.tensor([[1.0, -3.0], [2.0, 10.0]], dtype=torch.float64))
    optimizer = _made(option, compose, [parameter], lr=0.01, **keys)

    def closure():
        parameter.grad = gradient(parameter.detach())
        return torch.zeros(())

    optimizer.step(closure)
    return parameter.detach()


GRADIENT = torch.tensor([[0.3, -0.2], [0.5, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize("option", L2)
def test_l2_weight_decay_is_a_gradient_of_its_own(option, compose):
    decayed = _after_a_step(option, compose, lambda w: GRADIENT.clone(), weight_decay=0.1)
    start = torch.tensor([[1.0, -3.0], [2.0, 10.0]], dtype=torch.float64)
    added = _after_a_step(option, compose, lambda w: GRADIENT + 0.1 * start, weight_decay=0.0)
    torch.testing.assert_close(decayed, added, rtol=1e-12, atol=0)


@pytest.mark.parametrize("option", DECOUPLED)
def test_decoupled_weight_decay_shrinks_each_weight_by_lr_times_decay(option, compose):
    decayed = _after_a_step(option, compose, torch.zeros_like, weight_decay=0.1)
    start = torch.tensor([[1.0, -3.0], [2.0, 10.0]], dtype=torch.float64)
    torch.testing.assert_close(decayed, (1 - 0.01 * 0.1) * start, rtol=1e-12, atol=0)


def test_the_weight_decay_of_adam_is_rescaled_so_that_each_weight_loses_the_same_amount(compose):
    # L2 goes through m / sqrt(v): the first step is lr times the sign, however small the decay
    start = torch.tensor([[1.0, -3.0], [2.0, 10.0]], dtype=torch.float64)
    for weight_decay in (0.1, 1e-4):
        decayed = _after_a_step("adam", compose, torch.zeros_like, weight_decay=weight_decay)
        torch.testing.assert_close(decayed, start - 0.01 * start.sign(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("weight_decay", [1e-3, 0.1])
def test_the_weight_decay_of_lamb_turns_its_step_and_does_not_lengthen_it(weight_decay, compose):
    start = torch.tensor([[1.0, -3.0], [2.0, 4.0]], dtype=torch.float64)
    parameter = nn.Parameter(start.clone())
    optimizer = _maker("lamb", compose)([parameter], lr=0.01, weight_decay=weight_decay)
    parameter.grad = torch.zeros_like(start)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), 0.99 * start, rtol=1e-5, atol=0)  # however small the decay


@pytest.mark.parametrize("option", [*L2, *DECOUPLED, *WITHIN])
def test_the_comment_of_each_file_says_what_its_weight_decay_is(option):
    line = next(
        line
        for line in (conf_folder() / "optimizer" / f"{option}.yaml").read_text().splitlines()
        if line.startswith("  weight_decay: ${weight_decay} #")
    )
    kind = "L2" if option in L2 else "decoupled" if option in DECOUPLED else "within"
    assert line.split("# ")[1].split()[0].strip(":") == kind


# ---- the fused optimizer's trap


def _numbers(*shape):
    return torch.linspace(-3, 2, math.prod(shape)).reshape(shape)


# gradients as backward passes leave them, whose memory is in another order than that of their parameter
NOT_CONTIGUOUS = {
    "transposed": lambda: _numbers(3, 5).t(),
    "channels last": lambda: _numbers(4, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    "every second column": lambda: _numbers(5, 6)[:, ::2],
    "one value expanded": lambda: torch.tensor(0.7).expand(3, 5),
}


def _updated(option, compose, kind, *, fused, through_the_task):
    parameter = nn.Parameter(torch.ones(NOT_CONTIGUOUS[kind]().shape))
    optimizer = _maker(option, compose)([parameter], fused=fused)
    task = build(compose().task)

    def closure():
        parameter.grad = NOT_CONTIGUOUS[kind]()
        assert not parameter.grad.is_contiguous()
        if through_the_task:
            task.configure_gradient_clipping(optimizer)
        return torch.zeros(())

    optimizer.step(closure)
    return parameter.detach()


@pytest.mark.parametrize("kind", NOT_CONTIGUOUS)
@pytest.mark.parametrize("option", FUSED)
def test_a_gradient_that_is_not_contiguous_is_read_right_by_the_fused_optimizer(option, kind, compose):
    plain = _updated(option, compose, kind, fused=False, through_the_task=False)
    ours = _updated(option, compose, kind, fused=True, through_the_task=True)
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("kind", [kind for kind in NOT_CONTIGUOUS if kind != "one value expanded"])  # read past its end
@pytest.mark.parametrize("option", FUSED)
def test_torchs_fused_optimizers_themselves_still_misread_such_a_gradient(option, kind, compose):
    plain = _updated(option, compose, kind, fused=False, through_the_task=False)
    trapped = _updated(option, compose, kind, fused=True, through_the_task=False)
    mended = "torch reads such gradients right now: SupervisedTask.configure_gradient_clipping need not copy them"
    assert (trapped - plain).abs().max() > 1e-4, mended


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


# ---- sam


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_sam_with_rho_zero_is_its_base(base):
    closure, points = _regression(dtype=torch.float64), []
    for sharp in (True, False):
        point = nn.Parameter(torch.ones(4, 3, dtype=torch.float64))
        if sharp:
            optimizer = SAM([point], lr=0.01, base=base, rho=0.0, weight_decay=0.1)
        elif base == "sgd":
            optimizer = torch.optim.SGD([point], lr=0.01, momentum=0.9, weight_decay=0.1)
        else:
            optimizer = torch.optim.AdamW([point], lr=0.01, weight_decay=0.1)
        for number in range(10):
            optimizer.step(closure(point, number))
        points.append(point)
    torch.testing.assert_close(*points, rtol=1e-12, atol=0)


def test_sam_descends_by_the_gradient_at_the_worst_point_nearby(compose):
    # f(w) = sum a w^4 / 4, whose gradient is a w^3
    a = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    point = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    optimizer = _maker("sam", compose)([point], lr=0.01, momentum=0.0)
    losses = []

    def closure():
        losses.append((a * point.detach() ** 4).sum() / 4)
        point.grad = a * point.detach() ** 3
        return losses[-1]

    start = point.detach().clone()
    returned = optimizer.step(closure)
    gradient = a * start**3
    worst = start + 0.05 * gradient / gradient.norm()
    torch.testing.assert_close(point.detach(), start - 0.01 * a * worst**3, rtol=1e-9, atol=0)
    assert len(losses) == 2
    assert returned is losses[0]
    assert losses[1] > losses[0]


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_the_lr_of_sams_groups_is_that_of_its_base_after_a_load_too(base):
    closure, moves = _regression(), []
    first = SAM([nn.Parameter(torch.ones(4, 3))], lr=0.01, base=base)
    first.step(closure(first.param_groups[0]["params"][0], 0))
    point = nn.Parameter(torch.ones(4, 3))
    optimizer = SAM([point], lr=0.01, base=base)
    optimizer.load_state_dict(first.state_dict())
    for lr in (0.0, 0.1):
        optimizer.param_groups[0]["lr"] = lr
        before = point.detach().clone()
        optimizer.step(closure(point, 1))
        moves.append((point.detach() - before).norm().item())
    assert moves[0] == pytest.approx(0, abs=1e-6)  # adamw or not: what remains is the rounding of the way back
    assert moves[1] > 0.1


# ---- muon


def test_muon_of_a_matrix_is_torchs_own():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 60).reshape(10, 6)) for _ in range(2))
    mine = Muon([{"params": [ours], "matrices": True}], lr=0.02, adamw_lr=1e-3, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1)
    for number in range(10):
        for point, optimizer in ((ours, mine), (theirs, reference)):
            _regression((10, 6))(point, number)()
            optimizer.step()
    # the orthogonal matrix is found in bfloat16, whose steps are 1/256
    torch.testing.assert_close(ours, theirs, rtol=0, atol=10 * 0.02 / 128)


def test_muon_of_the_rest_is_torchs_adamw():
    ours, theirs = (nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    mine = Muon([{"params": [ours], "matrices": False}], lr=0.5, adamw_lr=1e-3, weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=1e-3, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.1)
    for number in range(10):
        for point, optimizer in ((ours, mine), (theirs, reference)):
            _regression()(point, number)()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_muon_takes_the_kernels_of_a_convolution_as_one_matrix():
    kernels = nn.Parameter(torch.randn(6, 2, 3, 3))
    flat = nn.Parameter(kernels.detach().reshape(6, 18).clone())
    gradient = torch.randn(6, 2, 3, 3)
    for point in (kernels, flat):
        optimizer = Muon([point], lr=0.02, adamw_lr=1e-3)
        point.grad = gradient.reshape(point.shape).clone()
        optimizer.step()
    assert torch.equal(kernels.reshape(6, 18), flat)


def test_muon_brings_a_matrix_to_its_goal_as_the_lr_falls():
    goal = torch.randn(5, 8)
    point = nn.Parameter(torch.zeros(5, 8))
    optimizer = Muon([point], lr=0.1, adamw_lr=1e-3)
    schedule = polynomial(optimizer, total_steps=300, steps_per_epoch=1, power=1.0)
    for _ in range(300):
        point.grad = 2 * (point.detach() - goal)
        optimizer.step()
        schedule.step()
    assert (point.detach() - goal).abs().max() < 5e-3


def test_a_multiple_of_the_lr_is_one_of_both_lrs_of_muon_and_a_schedule_keeps_it():
    parameters = [nn.Parameter(torch.ones(2, 2)) for _ in range(4)]
    rates = [0.02, 0.002, 0.02, 0.002]
    groups = [
        {"params": [parameter], "matrices": number < 2} | ({"lr": rates[number]} if number % 2 else {})
        for number, parameter in enumerate(parameters)
    ]
    optimizer = Muon(groups, lr=0.02, adamw_lr=3e-3)
    expected = [0.02, 0.002, 3e-3, 3e-4]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected, rel=1e-12)
    polynomial(optimizer, total_steps=10, steps_per_epoch=1, power=1.0, warmup_steps=4, eta_min=1e-5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([r / 5 for r in expected], rel=1e-12)


# ---- schedule-free


@pytest.mark.parametrize("option", SCHEDULE_FREE)
def test_switching_a_schedule_free_optimizer_twice_is_once_and_back_is_where_it_was(option, compose):
    point = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = _maker(option, compose)([point], lr=0.01, weight_decay=0.0)
    for gradient in torch.randn(25, dtype=torch.float64).tolist():
        point.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    trained = point.item()
    optimizer.eval()
    scored = point.item()
    optimizer.eval()
    assert point.item() == scored != trained
    optimizer.train()
    assert point.item() == pytest.approx(trained, rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("option", SCHEDULE_FREE)
def test_schedule_free_saved_in_either_mode_continues_identically(option, training, compose):
    make, closure = _maker(option, compose), _regression()
    first = nn.Parameter(torch.ones(4, 3))
    optimizer = make([first])
    for number in range(10):
        optimizer.step(closure(first, number))
    if not training:
        optimizer.eval()
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "parameter": first.data}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert [group["train_mode"] for group in saved["optimizer"]["param_groups"]] == [training]
    second = nn.Parameter(saved["parameter"])
    resumed = make([second])
    resumed.load_state_dict(saved["optimizer"])
    for point, made in ((first, optimizer), (second, resumed)):
        made.train()
        for number in range(10, 20):
            made.step(closure(point, number))
        made.eval()
    assert torch.equal(first, second)


# ---- lbfgs


def test_lbfgs_solves_a_quadratic_in_one_step(compose):
    matrix = torch.diag(torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64))
    point = nn.Parameter(torch.tensor([3.0, -4.0, 2.0], dtype=torch.float64))
    optimizer = _maker("lbfgs", compose)([point])

    def closure():
        point.grad = None
        loss = point @ matrix @ point / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    assert point.abs().max() < 1e-5


def test_lbfgs_takes_the_whole_training_part_unless_it_is_told_otherwise(compose):
    assert compose("optimizer=lbfgs").batch_size == "full"
    assert compose("optimizer=lbfgs", "batch_size=200").batch_size == 200


# ---- refused in words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        *(
            (
                f"optimizer={option} trainer.accumulate_grad_batches=4",
                f"`trainer.accumulate_grad_batches` must be 1 with optimizer={option}, which asks for the gradient of "
                "a batch several times a step, got 4. Try a larger batch_size.",
            )
            for option in ("sam", "lbfgs")
        ),
        (
            "optimizer=lbfgs trainer.precision=16-mixed",
            "`trainer.precision` must not be 16-mixed with optimizer=lbfgs: the loss is scaled once a step, and it "
            "asks for several gradients. Try trainer.precision=bf16-mixed.",
        ),
        (
            "optimizer=sam optimizer.fused=false trainer.precision=16-mixed",
            "`trainer.precision` must not be 16-mixed with optimizer=sam: the loss is scaled once a step, and it "
            "asks for several gradients. Try trainer.precision=bf16-mixed.",
        ),
        *(
            (
                f"optimizer={option} scheduler=one_cycle",
                "`scheduler` must be constant with a schedule-free optimizer, whose average takes the place of a "
                "falling lr, got one_cycle. Try scheduler=constant warmup_fraction=0.05.",
            )
            for option in SCHEDULE_FREE
        ),
        (
            "optimizer=lbfgs parameter_groups.layer_decay=0.9",
            "`parameter_groups` must leave all parameters together with optimizer=lbfgs, got rules or a layer_decay. "
            "Try parameter_groups.rules=[] parameter_groups.layer_decay=1.0.",
        ),
        (
            "optimizer=muon parameter_groups.matrices_apart=false",
            "`parameter_groups.matrices_apart` must be true with optimizer=muon, got false. "
            "Try parameter_groups.matrices_apart=true.",
        ),
        (
            "optimizer=sam optimizer.base=adam",
            "`optimizer.base` must be 'sgd' or 'adamw', got adam. Try optimizer.base=sgd.",
        ),
        ("optimizer=muon optimizer.adamw_lr=0", "`optimizer.adamw_lr` must be greater than 0, got 0."),
        ("optimizer=lbfgs weight_decay=0.1", "`weight_decay` must be read by a chosen part, got weight_decay=0.1"),
    ],
)
def test_what_an_optimizer_cannot_do_is_refused(words, said, compose):
    with pytest.raises(ConfigError) as caught:
        validate(compose(*words.split()), ["weight_decay"] if " weight_decay=" in words else [])
    assert said in str(caught.value)


# ---- whole runs


def _constant(option):
    return ["scheduler=constant"] if option in SCHEDULE_FREE else []


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIMIZERS)
def test_every_optimizer_teaches_the_digits_at_its_own_lr(option, fit):
    # nine tenths within 115 steps; plain SGD needs twice as many
    epochs = 10 if option == "sgd" else 5
    quiet = ("trainer.enable_progress_bar=false", "callbacks=[]", "logger=[]", "test=false")
    result, _ = fit(f"optimizer={option}", f"epochs={epochs}", *quiet, *_constant(option))
    assert result["objective"]["best"] > 0.9


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_a_run_uses_the_groups_and_the_lr_of_its_recipe(option, fit_with, compose):
    decay = ["weight_decay=0.05"] if option != "lbfgs" else []
    fitted = fit_with([], f"optimizer={option}", "epochs=1", *decay, "scheduler=constant", "size=tiny")
    cfg = compose(f"optimizer={option}")
    found = [(group["name"], group["weight_decay"], group["lr"]) for group in fitted.trainer.optimizers[0].param_groups]
    if option == "lbfgs":
        assert found == [("decayed", 0.0, cfg.lr)]
    elif option == "muon":
        rest = cfg.optimizer.adamw_lr
        named = ("decayed", cfg.lr), ("decayed/rest", rest), ("undecayed/rest", rest)
        assert found == [(name, 0.05 if "un" not in name else 0.0, lr) for name, lr in named]
    else:
        assert found == [("decayed", 0.05, cfg.lr), ("undecayed", 0.0, cfg.lr)]
