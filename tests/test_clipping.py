"""Each way of clipping does to the gradients what its file says."""

import io
import math

import numpy as np
import pytest
import torch
from conftest import options
from hydra.utils import get_class
from lightning import Callback
from torch import nn

from tunelab.clipping import AGC, Norm, Percentile, Value, rank_weights
from tunelab.fitting import build

CLIPPINGS = [option for option in options("clipping") if option != "none"]


def _parameters(scale):
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((20, 10), (10,), (3, 4, 5))]
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return parameters


def _norm(gradients, order=2.0):
    return sum(float((gradient.double().abs() ** order).sum()) for gradient in gradients) ** (1 / order)


def _clipped(cfg, scale):
    """The gradients before and after."""
    return _clipped_by(build(cfg.clipping), _parameters(scale))[:2]


def _clipped_by(clip, parameters):
    """The gradients before and after, and what the clipping says."""
    before = [parameter.grad.clone() for parameter in parameters]
    said = clip(parameters) if clip is not None else None
    return before, [parameter.grad for parameter in parameters], said


def _with_norm(norm, size=6):
    """One parameter whose gradient has this norm."""
    parameter = nn.Parameter(torch.ones(size))
    parameter.grad = torch.full((size,), norm / math.sqrt(size))
    return parameter


def test_every_clipping_file_is_tested_here():
    assert options("clipping") == ["agc", "none", "norm", "percentile", "value"]


def test_none_leaves_the_gradients_as_they_are(compose):
    before, after = _clipped(compose("clipping=none"), scale=1000)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("bound", [1.0, 0.01, 30.0])
def test_norm_shortens_all_gradients_together_and_keeps_their_direction(bound, compose):
    before, after = _clipped(compose("clipping=norm", f"clipping.max_norm={bound}"), scale=10)
    assert _norm(before) > bound
    assert _norm(after) == pytest.approx(bound, rel=1e-5)
    share = bound / _norm(before)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, share * old, rtol=1e-5, atol=0)


def test_norm_leaves_gradients_below_its_bound_as_they_are(compose):
    before, after = _clipped(compose("clipping=norm"), scale=0.01)
    assert _norm(before) < 1
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new)


def test_norm_can_measure_by_another_order(compose):
    _, after = _clipped(compose("clipping=norm", "clipping.norm_type=1", "clipping.max_norm=2"), scale=10)
    assert _norm(after, order=1) == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("bound", [0.5, 0.02])
def test_value_cuts_each_element_and_leaves_the_smaller_ones(bound, compose):
    before, after = _clipped(compose("clipping=value", f"clipping.clip_value={bound}"), scale=1)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new, old.clamp(-bound, bound))


@pytest.mark.parametrize("option", options("clipping"))
def test_the_task_clips_the_gradients_of_all_its_groups(option, compose):
    cfg = compose(f"clipping={option}")
    task = build(cfg.task)
    parameters = _parameters(scale=10)
    expected = _parameters(scale=10)
    clip = build(cfg.clipping)
    if clip is not None:
        clip(expected)
    parameters.append(torch.nn.Parameter(torch.zeros(2)))  # without a gradient
    groups = [{"params": parameters[:1]}, {"params": parameters[1:]}]
    task.configure_gradient_clipping(torch.optim.SGD(groups, lr=0.1))
    for ours, theirs in zip(parameters, expected, strict=False):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert parameters[-1].grad is None


# ---- what all have in common


@pytest.mark.parametrize("option", CLIPPINGS)
def test_every_file_gives_the_defaults_of_its_class(option, compose):
    given, own = (
        build(compose(f"clipping={option}").clipping),
        get_class(compose(f"clipping={option}").clipping._target_)(),
    )
    assert vars(given) == vars(own)


def _ready(kind):
    """A clipping that has a limit: of about one in the norm of all gradients, or tighter."""
    clip = {"norm": Norm(1.0), "value": Value(0.1), "agc": AGC(), "percentile": Percentile()}[kind]
    for _ in range(10):
        clip([_with_norm(1.0)])
    return clip


@pytest.mark.parametrize("kind", CLIPPINGS)
def test_the_flag_says_whether_gradients_were_changed_and_small_ones_stay_bit_for_bit(kind):
    clip = _ready(kind)
    for scale, wanted in ((10, 1.0), (1e-6, 0.0), (3, 1.0)):
        parameters = _parameters(scale)
        for parameter in parameters:
            parameter.data.fill_(1.0)
        before, after, said = _clipped_by(clip, parameters)
        assert said.shape == ()
        assert said.item() == wanted
        changed = any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
        assert changed is bool(wanted)


@pytest.mark.parametrize("kind", CLIPPINGS)
def test_gradients_of_zero_stay_zero(kind):
    clip = _ready(kind)
    _, after, said = _clipped_by(clip, _parameters(0.0))
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in after)
    assert said.item() == 0


@pytest.mark.parametrize("kind", CLIPPINGS)
def test_parameters_without_a_gradient_are_left_out_even_if_none_is_left(kind):
    frozen, trained, alone = nn.Parameter(torch.ones(3), requires_grad=False), _with_norm(50.0), _with_norm(50.0)
    _ready(kind)([frozen, trained])
    _ready(kind)([alone])
    assert frozen.grad is None
    assert torch.equal(trained.grad, alone.grad)
    assert _ready(kind)([frozen]).item() == 0


@pytest.mark.parametrize("kind", CLIPPINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gradients_keep_their_dtype_and_are_clipped_as_in_double(kind, dtype):
    results = []
    for width in (dtype, torch.float64):
        parameters = [nn.Parameter(torch.full(p.shape, 0.5, dtype=width)) for p in _parameters(1)]
        for parameter, like in zip(parameters, _parameters(3), strict=True):
            parameter.grad = like.grad.to(dtype).to(width)
        clip = {"norm": Norm(1.0), "value": Value(0.25), "agc": AGC(), "percentile": Percentile()}[kind]
        for scale in (*(0.1 * step for step in range(1, 12)), 1.0):  # the percentile takes ten norms to begin
            for parameter, like in zip(parameters, _parameters(3 * scale), strict=True):
                parameter.grad = like.grad.to(dtype).to(width)
            clip(parameters)
        results.append([parameter.grad for parameter in parameters])
    for narrow, wide in zip(*results, strict=True):
        assert narrow.dtype is dtype
        torch.testing.assert_close(narrow.double(), wide, rtol=2e-2 if dtype is torch.bfloat16 else 1e-12, atol=0)


@pytest.mark.parametrize("kind", CLIPPINGS)
def test_nothing_is_read_from_the_device(kind):
    clip = _ready(kind)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as fake:  # whose values cannot be read
        parameters = [nn.Parameter(fake.from_tensor(p.data)) for p in _parameters(1)]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        assert clip(parameters).shape == ()


def test_gradients_in_any_memory_order_are_clipped_alike():
    for clip in (Norm(0.5), Value(0.1), AGC()):
        layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)]
        layers[1].load_state_dict(layers[0].state_dict())
        gradient = torch.randn(4, 3, 3, 3)
        for layer in layers:
            layer.weight.grad = torch.empty_like(layer.weight).copy_(gradient)
            clip([layer.weight])
        assert layers[1].weight.grad.stride() == layers[1].weight.stride()
        torch.testing.assert_close(layers[0].weight.grad, layers[1].weight.grad)


# ---- agc


def _agc_by_a_loop(parameter, clip_factor, eps):
    """The paper's rule, unit by unit, in double."""
    wanted = parameter.grad.double().clone()
    units = range(len(parameter)) if parameter.ndim > 1 else [...]
    shortened = False
    for unit in units:
        weights, gradient = parameter.detach().double()[unit], parameter.grad.double()[unit]
        limit = clip_factor * max(weights.pow(2).sum().sqrt().item(), eps)
        length = gradient.pow(2).sum().sqrt().item()
        if length > limit:
            wanted[unit] = gradient * (limit / length)
            shortened = True
    return wanted, shortened


MODELS = {
    "linear": lambda: nn.Linear(7, 5),
    "one output": lambda: nn.Linear(7, 1),
    "one input": lambda: nn.Linear(1, 7),
    "convolution": lambda: nn.Conv2d(3, 4, 3),
    "grouped convolution": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "norm": lambda: nn.BatchNorm2d(6),
    "embedding": lambda: nn.Embedding(9, 4),
    "scalar": lambda: nn.ParameterList([nn.Parameter(torch.tensor(2.0))]),
    "several": lambda: nn.Sequential(nn.Conv1d(2, 3, 5), nn.LayerNorm(4), nn.Linear(4, 2), nn.PReLU()),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("clip_factor", "eps"), [(0.01, 1e-3), (0.5, 1e-3), (0.01, 10.0)])
def test_agc_equals_a_loop_over_units(model, clip_factor, eps):
    parameters = list(MODELS[model]().parameters())
    for parameter in parameters:
        # some units far below the limit, some far above
        parameter.grad = torch.randn_like(parameter) * 10 ** torch.linspace(-5, 2, parameter.numel()).view_as(parameter)
    wanted = [_agc_by_a_loop(parameter, clip_factor, eps) for parameter in parameters]
    _, after, said = _clipped_by(AGC(clip_factor, eps), parameters)
    for gradient, (expected, _) in zip(after, wanted, strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=0)
    assert bool(said) is any(shortened for _, shortened in wanted)


def test_agc_shortens_only_the_units_that_are_above_their_limit_and_keeps_their_direction():
    parameter = nn.Parameter(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
    parameter.grad = torch.tensor([[0.01, 0.02], [6.0, 8.0]])
    AGC(clip_factor=0.01)([parameter])
    assert torch.equal(parameter.grad[0], torch.tensor([0.01, 0.02]))  # its length 0.022 is below 0.01 * 5
    torch.testing.assert_close(parameter.grad[1], torch.tensor([0.03, 0.04]))


def test_weights_of_zero_can_grow_under_agc():
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.grad = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    AGC(clip_factor=0.01, eps=1e-3)([parameter])
    torch.testing.assert_close(parameter.grad, torch.tensor([[6e-6, 8e-6], [0.0, 0.0]]))


# ---- percentile


def _after_norms(clip, norms):
    """The norm of the clipped gradient and the flag for each step."""
    results = []
    for norm in norms:
        parameter = _with_norm(norm)
        said = clip([parameter])
        results.append((parameter.grad.norm().item(), said.item()))
    return results


@pytest.mark.parametrize("percentile", [90.0, 50.0, 100.0, 12.5])
@pytest.mark.parametrize("window_steps", [10, 11, 100])
def test_the_limit_is_numpys_percentile_of_the_norms_in_the_window_before(percentile, window_steps):
    norms = np.exp(np.random.default_rng(0).normal(size=250))
    found = _after_norms(Percentile(percentile, window_steps), norms)
    for step, (norm, (length, said)) in enumerate(zip(norms, found, strict=True)):
        known = norms[max(0, step - window_steps) : step]
        limit = np.percentile(known, percentile) if len(known) >= 10 else np.inf
        assert length == pytest.approx(min(norm, limit), rel=1e-5)
        assert said == float(norm > limit)


def test_ninety_clips_a_tenth_of_the_steps_where_the_norms_keep_their_size():
    norms = np.random.default_rng(0).gamma(5, size=2000)
    flags = [said for _, said in _after_norms(Percentile(), norms)]
    assert np.mean(flags[100:]) == pytest.approx(0.1, abs=0.02)


def test_percentile_keeps_the_direction_and_clips_nothing_before_ten_norms():
    clip = Percentile()
    assert [said for _, said in _after_norms(clip, [1.0, *[1e6] * 8, 1.0])] == [0.0] * 10
    clip = _ready("percentile")
    before, after, said = _clipped_by(clip, _parameters(10))
    assert said.item() == 1
    share = 1 / _norm(before)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, share * old, rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize("already", [3, 10, 150])
def test_norms_that_are_not_finite_or_zero_do_not_enter_the_history(norm, already):
    norms = np.exp(np.random.default_rng(0).normal(size=already + 30))
    disturbed, plain = Percentile(window_steps=20), Percentile(window_steps=20)
    found = _after_norms(disturbed, [*norms[:already], norm, norm, *norms[already:]])
    assert found[:already] + found[already + 2 :] == _after_norms(plain, norms)
    assert torch.equal(disturbed.state_dict()["norms"], plain.state_dict()["norms"])


@pytest.mark.parametrize("steps", [0, 5, 30, 140])
def test_a_percentile_saved_and_loaded_continues_identically(steps):
    norms = np.exp(np.random.default_rng(0).normal(size=steps + 150))
    clip, fresh, file = Percentile(), Percentile(), io.BytesIO()
    _after_norms(clip, norms[:steps])
    torch.save(clip.state_dict(), file)
    whole = _after_norms(clip, norms[steps:])  # which must not move what was saved
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert _after_norms(fresh, norms[steps:]) == whole


def test_the_weights_of_the_ranks_are_those_of_numpys_percentile():
    for percentile in (1, 37.5, 90, 100):
        rows = rank_weights(percentile, 25).numpy()
        for count in range(10, 26):
            values = np.sort(np.random.default_rng(count).normal(size=count))
            assert rows[count, :count] @ values == pytest.approx(np.percentile(values, percentile), rel=1e-12)
            assert not rows[count, count:].any()


# ---- in a run


@pytest.mark.parametrize(
    "clipping",
    [
        ("clipping=norm", "clipping.max_norm=0.1"),
        ("clipping=value", "clipping.clip_value=0.01"),
        ("clipping=agc",),
        ("clipping=percentile", "clipping.percentile=50"),
    ],
)
def test_batches_accumulated_are_clipped_as_the_one_batch_that_they_make(clipping, fit_with):
    def weights(*overrides):
        always = ["optimizer=sgd", "scheduler=constant", "size=tiny", "epochs=1", "callbacks=[]", "logger=[]"]
        fitted = fit_with([], *always, "data.shuffle=false", *overrides)
        assert fitted.trainer.global_step == 20
        return torch.cat([parameter.detach().view(-1) for parameter in fitted.task.model.parameters()])

    whole = weights("batch_size=64", "trainer.limit_train_batches=20", *clipping)
    quarters = ["batch_size=16", "trainer.limit_train_batches=80", "trainer.accumulate_grad_batches=4"]
    torch.testing.assert_close(weights(*quarters, *clipping), whole, rtol=0, atol=1e-5)
    assert (weights(*quarters) - whole).abs().max() > 1e-3  # so the clipping was at work


@pytest.mark.parametrize(("option", "bound"), [("norm", 1.0), ("value", 0.5)])
def test_a_run_with_clipping_takes_steps_within_the_bound(option, bound, fit_with):
    class Steps(Callback):
        """Under plain SGD a step is lr times the clipped gradient."""

        def __init__(self):
            self.sizes = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.before = [parameter.detach().clone() for parameter in module.model.parameters()]

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            moved = [(b - p.detach()) / lr for b, p in zip(self.before, module.model.parameters(), strict=True)]
            largest = max(step.abs().max().item() for step in moved)
            self.sizes.append(_norm(moved) if option == "norm" else largest)

    steps = Steps()
    overrides = ["optimizer=sgd", "lr=2.0", "scheduler=constant", "epochs=1", "size=tiny", "init=kaiming_normal"]
    fit_with([steps], *overrides, f"clipping={option}", "callbacks=[]", "logger=[]")
    assert len(steps.sizes) == 23  # 1,437 training examples in batches of 64
    assert max(steps.sizes) == pytest.approx(bound, rel=1e-3)
