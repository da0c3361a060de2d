"""Every schedule equals its closed form at every step; warm-up has no zero, no jump; a resume continues exactly."""

import functools
import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import options

from tunelab.config import ConfigError
from tunelab.fitting import build
from tunelab.schedules import (
    Plateau,
    constant,
    cosine,
    cosine_restarts,
    cyclic,
    exponential,
    inverse_sqrt,
    multistep,
    one_cycle,
    polynomial,
    step,
    warmup_stable_decay,
)
from tunelab.schedules.warmup import warmup_length

LR = 0.2
EVERY, STEP_FACTOR, ETA_MIN = 3, 0.5, 0.004
TO_ETA_MIN = [f"scheduler.eta_min={ETA_MIN}"]
SETTINGS = {
    # what makes each schedule move within a short run
    "constant": [],
    "cosine": TO_ETA_MIN,
    "cosine_restarts": TO_ETA_MIN,
    "cyclic": TO_ETA_MIN,
    "exponential": [],
    "inverse_sqrt": [],
    "linear": TO_ETA_MIN,
    "multistep": [],
    "one_cycle": TO_ETA_MIN,
    "plateau": ["objective_direction=minimize"],
    "polynomial": TO_ETA_MIN,
    "step": [f"scheduler.every_epochs={EVERY}", f"scheduler.factor={STEP_FACTOR}"],
    "warmup_stable_decay": TO_ETA_MIN,
}
OWN_RISE = {"one_cycle"}
"""Schedules that rise along a curve of their own, as long as the warm-up."""


def _constant(t, total, per_epoch, warmup):
    return LR


def _cosine(t, total, per_epoch, warmup):
    progress = max(0, t - warmup) / (total - warmup)
    return ETA_MIN + (LR - ETA_MIN) * (1 + math.cos(math.pi * progress)) / 2


def _cosine_restarts(t, total, per_epoch, warmup):
    span = total - warmup
    ends = [warmup + round(span / 7), warmup + round(3 * span / 7), total]  # each twice as long as the one before
    begin, end = next((a, b) for a, b in pairwise([min(warmup, t), *ends]) if t < b)
    return ETA_MIN + (LR - ETA_MIN) * math.cos(math.pi / 2 * (max(t, warmup) - max(begin, warmup)) / (end - begin)) ** 2


def _cyclic(t, total, per_epoch, warmup):
    corners = np.linspace(warmup, total, 8)  # four falls, three rises
    return float(np.interp(t, corners, [LR, ETA_MIN] * 4))


def _exponential(t, total, per_epoch, warmup):
    return LR * math.exp(math.log(0.95) * max(0, t - warmup) / per_epoch)


def _inverse_sqrt(t, total, per_epoch, warmup):
    timescale = max(1, total / 10)
    return LR / math.sqrt(1 + max(0, t - warmup) / timescale)


def _linear(t, total, per_epoch, warmup):
    return float(np.interp(t, [warmup, total], [LR, ETA_MIN]))


def _multistep(t, total, per_epoch, warmup):
    return LR / 10 ** ((t >= max(1, round(total / 2))) + (t >= max(1, round(total * 3 / 4))))


def _one_cycle(t, total, per_epoch, warmup):
    rise = warmup or round(0.3 * total)
    if t < rise:
        return LR - 0.96 * LR * math.cos(math.pi / 2 * t / rise) ** 2
    return _cosine(t, total, per_epoch, rise)


def _polynomial(t, total, per_epoch, warmup):
    return ETA_MIN + (LR - ETA_MIN) * ((total - max(t, warmup)) / (total - warmup)) ** 2


def _step(t, total, per_epoch, warmup):
    return LR * STEP_FACTOR ** sum(1 for k in range(1, t + 1) if k % (EVERY * per_epoch) == 0)


def _warmup_stable_decay(t, total, per_epoch, warmup):
    length = min(round(total / 5), total - warmup)
    return float(np.interp(t, [total - length, total], [LR, ETA_MIN])) if length else LR


CLOSED_FORMS = {
    "constant": _constant,
    "cosine": _cosine,
    "cosine_restarts": _cosine_restarts,
    "cyclic": _cyclic,
    "exponential": _exponential,
    "inverse_sqrt": _inverse_sqrt,
    "linear": _linear,
    "multistep": _multistep,
    "one_cycle": _one_cycle,
    "plateau": _constant,
    "polynomial": _polynomial,
    "step": _step,
    "warmup_stable_decay": _warmup_stable_decay,
}
"""Without warm-up; the plateau never observes a validation here."""


def _optimizer(*rates, default=LR):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates or (default,)]
    return torch.optim.SGD(groups, lr=default)


def _rates(optimizer, scheduler, steps):
    """What each group's lr is while each step is taken: a list for each step."""
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return seen


def _made(option, compose, *overrides):
    return build(compose(f"scheduler={option}", *SETTINGS[option], *overrides).scheduler)


def test_every_scheduler_file_has_a_closed_form_here():
    assert sorted(CLOSED_FORMS) == sorted(SETTINGS) == options("scheduler")


@pytest.mark.parametrize(("total", "per_epoch"), [(1, 1), (10, 1), (60, 4), (345, 23)])
@pytest.mark.parametrize("warmup", [0, 1, 7, 100])
@pytest.mark.parametrize("option", sorted(CLOSED_FORMS))
def test_schedule_equals_its_closed_form_over_a_whole_run(option, warmup, total, per_epoch, compose):
    make = _made(option, compose)
    optimizer = _optimizer()
    if warmup >= total:
        with pytest.raises(ConfigError, match=f"`warmup_steps` must be less than the {total} steps .*, got {warmup}"):
            make(optimizer, total_steps=total, steps_per_epoch=per_epoch, warmup_steps=warmup)
        return
    scheduler = make(optimizer, total_steps=total, steps_per_epoch=per_epoch, warmup_steps=warmup)
    seen = [rate for (rate,) in _rates(optimizer, scheduler, total)]
    ramp = [1 if option in OWN_RISE else min(1, (t + 1) / (warmup + 1)) for t in range(total)]
    expected = [CLOSED_FORMS[option](t, total, per_epoch, warmup) * ramp[t] for t in range(total)]
    assert seen == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("option", options("scheduler"))
def test_warmup_given_as_a_fraction_is_that_share_of_the_steps(option, compose):
    runs = []
    for keywords in ({"warmup_steps": 12}, {"warmup_fraction": 0.2}):
        optimizer = _optimizer()
        scheduler = _made(option, compose)(optimizer, total_steps=60, steps_per_epoch=4, **keywords)
        runs.append(_rates(optimizer, scheduler, 60))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("option", options("scheduler"))
def test_the_dials_reach_every_schedule(option, compose):
    for dial in ("warmup_steps=9", "warmup_fraction=0.15"):
        optimizer = _optimizer()
        scheduler = _made(option, compose, dial)(optimizer, total_steps=60, steps_per_epoch=6)
        seen = [rate for (rate,) in _rates(optimizer, scheduler, 10)]
        assert seen[9] == pytest.approx(LR, rel=1e-12)
        assert all(before < after for before, after in pairwise(seen))


@pytest.mark.parametrize("option", sorted(set(options("scheduler")) - OWN_RISE))
def test_the_first_step_of_a_warmup_has_an_lr_above_zero_and_the_last_reaches_its_target(option, compose):
    optimizer = _optimizer()
    scheduler = _made(option, compose)(optimizer, total_steps=100, steps_per_epoch=50, warmup_steps=20)
    seen = [rate for (rate,) in _rates(optimizer, scheduler, 100)]
    assert seen[0] == pytest.approx(LR / 21, rel=1e-12)
    assert seen[20] == pytest.approx(LR, rel=1e-12)
    assert max(seen) == seen[20]
    rises = [after - before for before, after in pairwise(seen[:21])]
    assert rises == pytest.approx([LR / 21] * 20, rel=1e-9)


@pytest.mark.parametrize("option", options("scheduler"))
def test_schedule_joins_its_warmup_without_a_jump(option, compose):
    optimizer = _optimizer()
    scheduler = _made(option, compose)(optimizer, total_steps=1000, steps_per_epoch=100, warmup_steps=100)
    seen = [rate for (rate,) in _rates(optimizer, scheduler, 150)]
    # the steepest of the rises: a line over 101 steps, or half a cosine over 100
    steepest = math.pi / 2 * 0.96 * LR / 100 if option in OWN_RISE else LR / 101
    assert max(abs(after - before) for before, after in pairwise(seen[:110])) == pytest.approx(steepest, rel=1e-3)
    assert seen[100] == pytest.approx(LR, rel=1e-12)
    assert seen[101] == pytest.approx(LR, rel=0.01)


def test_cosine_without_warmup_is_torchs_own():
    for total in (1, 7, 100):
        ours, theirs = _optimizer(), _optimizer()
        ours_seen = _rates(ours, cosine(ours, total_steps=total, steps_per_epoch=1, eta_min=ETA_MIN), total)
        reference = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=total, eta_min=ETA_MIN)
        theirs_seen = _rates(theirs, reference, total)
        torch.testing.assert_close(torch.tensor(ours_seen), torch.tensor(theirs_seen), rtol=1e-6, atol=1e-9)


def test_step_without_warmup_is_torchs_own():
    ours, theirs = _optimizer(), _optimizer()
    scheduler = step(ours, total_steps=90, steps_per_epoch=5, every_epochs=4, factor=0.3)
    reference = torch.optim.lr_scheduler.StepLR(theirs, step_size=20, gamma=0.3)
    assert [r for (r,) in _rates(ours, scheduler, 90)] == pytest.approx([r for (r,) in _rates(theirs, reference, 90)])


def _same(ours, theirs, steps, skip=0):
    """Whether (optimizer, scheduler) gives the lr of torch's own, which begins some steps later."""
    seen = [rate for (rate,) in _rates(*ours, steps)]
    reference = [rate for (rate,) in _rates(*theirs, steps + skip)][skip:]
    assert seen == pytest.approx(reference, rel=1e-9, abs=1e-15)


def test_multistep_is_torchs_own():
    ours, theirs = _optimizer(), _optimizer()
    keys = {"milestone_fractions": [0.75, 0.5, 0.1], "factor": 0.3}
    scheduler = multistep(ours, total_steps=90, steps_per_epoch=9, **keys)
    reference = torch.optim.lr_scheduler.MultiStepLR(theirs, [9, 45, 68], gamma=0.3)
    _same((ours, scheduler), (theirs, reference), 90)


def test_exponential_is_torchs_own_at_the_start_of_each_epoch():
    ours, theirs = _optimizer(), _optimizer()
    seen = _rates(ours, exponential(ours, total_steps=90, steps_per_epoch=9, factor=0.95), 90)
    reference = _rates(theirs, torch.optim.lr_scheduler.ExponentialLR(theirs, 0.95), 10)
    assert [rate for (rate,) in seen[::9]] == pytest.approx([rate for (rate,) in reference], rel=1e-12)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_polynomial_is_torchs_own(power):
    ours, theirs = _optimizer(), _optimizer()
    scheduler = polynomial(ours, total_steps=40, steps_per_epoch=4, power=power)
    _same((ours, scheduler), (theirs, torch.optim.lr_scheduler.PolynomialLR(theirs, 40, power)), 50)


def test_cosine_restarts_are_torchs_own():
    ours, theirs = _optimizer(), _optimizer()
    scheduler = cosine_restarts(ours, total_steps=70, steps_per_epoch=7, cycles=3, growth=2.0, eta_min=ETA_MIN)
    reference = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(theirs, T_0=10, T_mult=2, eta_min=ETA_MIN)
    _same((ours, scheduler), (theirs, reference), 70)


def test_one_cycle_of_restarts_is_cosine():
    runs = []
    for make in (cosine, functools.partial(cosine_restarts, cycles=1, growth=3.0)):
        optimizer = _optimizer()
        runs.append(_rates(optimizer, make(optimizer, total_steps=30, steps_per_epoch=3, warmup_steps=4), 40))
    assert runs[0] == runs[1]


def test_cyclic_is_torchs_own_from_its_first_peak_on():
    ours, theirs = _optimizer(), _optimizer()
    scheduler = cyclic(ours, total_steps=50, steps_per_epoch=5, cycles=3, eta_min=ETA_MIN)
    reference = torch.optim.lr_scheduler.CyclicLR(theirs, ETA_MIN, LR, step_size_up=10, cycle_momentum=False)
    _same((ours, scheduler), (theirs, reference), 51, skip=10)


def test_one_cycle_is_torchs_own():
    ours, theirs = _optimizer(), _optimizer()
    scheduler = one_cycle(ours, total_steps=50, steps_per_epoch=5, rise_fraction=0.3, eta_min=LR / 25 / 1e4)
    # torch's ends at its last step, ours one later
    reference = torch.optim.lr_scheduler.OneCycleLR(theirs, LR, total_steps=51, pct_start=16 / 51, cycle_momentum=False)
    _same((ours, scheduler), (theirs, reference), 51)


def test_inverse_sqrt_with_the_timescale_of_the_first_transformer_is_its_formula():
    optimizer = _optimizer()
    warmup, total = 19, 200
    keys = {"timescale_fraction": (warmup + 1) / total, "warmup_steps": warmup}
    seen = _rates(optimizer, inverse_sqrt(optimizer, total_steps=total, steps_per_epoch=20, **keys), total)
    # lr ~ min(n^-1/2, n w^-3/2) at step n, counted from 1
    scale, width = LR * math.sqrt(warmup + 1), warmup + 1
    expected = [scale * min(n**-0.5, n * width**-1.5) for n in range(1, total + 1)]
    assert [rate for (rate,) in seen] == pytest.approx(expected, rel=1e-9)


def test_the_decay_after_a_stable_lr_does_not_cut_a_long_warmup_short():
    optimizer = _optimizer()
    keys = {"decay_fraction": 0.5, "warmup_fraction": 0.8}
    seen = _rates(optimizer, warmup_stable_decay(optimizer, total_steps=50, steps_per_epoch=5, **keys), 51)
    assert [rate for (rate,) in seen[39:]] == pytest.approx([LR * 40 / 41, *np.linspace(LR, 0, 11)], abs=1e-12)


TO_THE_END = sorted(option for option, settings in SETTINGS.items() if settings is TO_ETA_MIN)


@pytest.mark.parametrize("option", TO_THE_END)
def test_a_schedule_with_eta_min_ends_there_and_never_climbs_again(option, compose):
    optimizer = _optimizer()
    scheduler = _made(option, compose)(optimizer, total_steps=50, steps_per_epoch=5)
    seen = [rate for (rate,) in _rates(optimizer, scheduler, 80)]
    assert seen[50:] == pytest.approx([ETA_MIN] * 30, rel=1e-12)
    assert min(seen) == pytest.approx(ETA_MIN, rel=1e-12)
    # the last step of the run is not lost to an lr at its lowest
    assert seen[49] > 1.01 * ETA_MIN


@pytest.mark.parametrize("option", sorted(set(SETTINGS) - set(TO_THE_END)))
def test_a_schedule_without_an_end_does_not_climb_after_the_run(option, compose):
    optimizer = _optimizer()
    scheduler = _made(option, compose)(optimizer, total_steps=50, steps_per_epoch=5, warmup_steps=3)
    seen = [rate for (rate,) in _rates(optimizer, scheduler, 80)]
    assert all(after <= before for before, after in pairwise(seen[3:]))


def test_cosine_never_climbs():
    optimizer = _optimizer()
    seen = [r for (r,) in _rates(optimizer, cosine(optimizer, total_steps=50, steps_per_epoch=5), 80)]
    assert all(after <= before for before, after in pairwise(seen))


@pytest.mark.parametrize("option", sorted(SETTINGS))
@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_run_of_a_few_steps_has_an_lr_in_each(option, total, compose):
    optimizer = _optimizer()
    scheduler = _made(option, compose)(optimizer, total_steps=total, steps_per_epoch=1)
    assert all(0 < rate <= LR for (rate,) in _rates(optimizer, scheduler, total))


def test_constant_without_warmup_has_nothing_to_do():
    optimizer = _optimizer()
    scheduler = constant(optimizer, total_steps=5, steps_per_epoch=1)
    assert scheduler is None
    assert _rates(optimizer, scheduler, 5) == [[LR]] * 5


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("option", options("scheduler"))
def test_the_ratios_between_parameter_groups_are_kept_at_each_step(option, warmup, compose):
    optimizer = _optimizer(LR, LR / 10, 3 * LR)
    scheduler = _made(option, compose)(optimizer, total_steps=60, steps_per_epoch=4, warmup_steps=warmup)
    for first, tenth, thrice in _rates(optimizer, scheduler, 61):
        assert tenth / first == pytest.approx(1 / 10, rel=1e-9)
        assert thrice / first == pytest.approx(3, rel=1e-9)


@pytest.mark.parametrize("option", options("scheduler"))
def test_a_schedule_saved_in_the_middle_continues_identically(option, compose):
    def observe(scheduler, t):
        if isinstance(scheduler, Plateau) and t % 5 == 0:
            scheduler.observe(1.0)  # stands still: falls after each patience + 1

    def run(optimizer, scheduler, steps):
        seen = []
        for t in steps:
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
            observe(scheduler, t)
        return seen

    extra = ["scheduler.patience=1"] if option == "plateau" else []
    make = _made(option, compose, *extra)
    keywords = {"total_steps": 60, "steps_per_epoch": 4, "warmup_steps": 8}
    optimizer = _optimizer()
    scheduler = make(optimizer, **keywords)
    run(optimizer, scheduler, range(27))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
    expected = run(optimizer, scheduler, range(27, 60))

    file.seek(0)
    saved = torch.load(file, weights_only=True)  # refuses anything but plain values and tensors
    optimizer = _optimizer()
    scheduler = make(optimizer, **keywords)
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    assert run(optimizer, scheduler, range(27, 60)) == expected
    if option != "constant":
        assert len(set(expected)) > 1  # it did move in what was compared


# ---- plateau


def _observed(direction, values, **keywords):
    """The lr after each validation of one step an epoch."""
    optimizer = _optimizer()
    scheduler = Plateau(
        optimizer, total_steps=100, steps_per_epoch=1, monitor="val/loss", direction=direction, **keywords
    )
    seen = []
    for value in values:  # as in a run: the validation comes behind the step of the scheduler
        optimizer.step()
        scheduler.step()
        scheduler.observe(value)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("patience", [0, 2, 5])
def test_plateau_is_torchs_own_from_the_first_validation_to_the_last(direction, patience):
    noise = np.random.default_rng(patience).normal(size=40).cumsum()
    ours = _observed(direction, noise, factor=0.8, patience=patience)
    optimizer, theirs = _optimizer(), []
    mode = "min" if direction == "minimize" else "max"
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode=mode, factor=0.8, patience=patience, threshold=0.0
    )
    for value in noise:
        optimizer.step()
        reference.step(value)
        theirs.append(optimizer.param_groups[0]["lr"])
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert len(set(ours)) > 2  # it did fall


def test_a_plateau_keeps_the_ratios_between_groups_as_it_falls():
    optimizer = _optimizer(LR, LR / 10)
    keys = {"monitor": "val/loss", "direction": "minimize", "factor": 0.5, "patience": 0}
    scheduler = Plateau(optimizer, total_steps=9, steps_per_epoch=1, **keys)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
        scheduler.observe(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([LR / 4, LR / 40], rel=1e-12)
    assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]


def test_a_plateau_saved_right_after_a_fall_continues_with_the_lower_lr():
    keys = {"total_steps": 9, "steps_per_epoch": 1, "monitor": "val/loss", "direction": "minimize", "patience": 0}
    optimizer = _optimizer()
    scheduler = Plateau(optimizer, **keys)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
        scheduler.observe(1.0)
    saved = scheduler.state_dict()
    resumed = Plateau(_optimizer(), **keys)
    resumed.load_state_dict(saved)
    assert resumed.get_last_lr() == scheduler.get_last_lr() == pytest.approx([LR / 10])
    # what SupervisedTask.on_train_start computes anew
    assert [LR * factor(resumed.last_epoch) for factor in resumed.lr_lambdas] == pytest.approx([LR / 10])


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_plateau_falls_by_its_factor_after_one_bad_validation_more_than_its_patience(direction, patience):
    sign = 1 if direction == "minimize" else -1
    improving = [10.0, 10 - sign, 10 - 2 * sign]
    bad = [10.0] * (patience + 1)
    seen = _observed(direction, [*improving, *bad, *bad, 10 - 3 * sign], factor=0.3, patience=patience)
    falls = [0] * (3 + patience) + [1] * (patience + 1) + [2] * 2
    assert seen == pytest.approx([LR * 0.3**n for n in falls], rel=1e-12)


def test_plateau_starts_counting_anew_after_an_improvement():
    seen = _observed("minimize", [5, 6, 6, 4, 5, 5, 3, 4, 4, 4], factor=0.1, patience=2)
    assert seen == pytest.approx([LR] * 9 + [LR / 10], rel=1e-12)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_plateau_falls_for_a_metric_below_zero_that_stands_still(direction):
    # such as r2 of a model worse than the mean: "better by a share of itself" would take it for an improvement
    seen = _observed(direction, [-2.0] * 5, factor=0.5, patience=1)
    assert seen == pytest.approx([LR, LR, LR / 2, LR / 2, LR / 4], rel=1e-12)


def test_plateau_takes_nan_for_no_improvement():
    seen = _observed("minimize", [1.0, math.nan, math.nan, 0.5], factor=0.1, patience=1)
    assert seen == pytest.approx([LR, LR, LR / 10, LR / 10], rel=1e-12)


def test_plateau_falls_during_its_warmup_too():
    seen = _observed("minimize", [1.0] * 6, factor=0.5, patience=1, warmup_steps=4)
    # after step t the ramp allows (t + 1) / 5
    shares = [2 / 5, 3 / 5, 4 / 5 / 2, 1 / 2, 1 / 4, 1 / 4]
    assert seen == pytest.approx([LR * share for share in shares], rel=1e-12)


# ---- warm-up


@pytest.mark.parametrize("total", [2, 10, 300])
def test_a_warmup_as_long_as_the_run_is_refused_with_what_to_type(total):
    with pytest.raises(ConfigError) as caught:
        warmup_length(total, total, 0.0)
    tried = max(1, total // 20)
    assert str(caught.value) == (
        f"`warmup_steps` must be less than the {total} steps of the run, got {total}. "
        f"Try warmup_steps={tried} or warmup_fraction=0.05."
    )


def test_a_warmup_fraction_is_rounded_to_whole_steps():
    assert [warmup_length(100, 0, fraction) for fraction in (0.0, 0.004, 0.05, 0.126)] == [0, 0, 5, 13]
    assert warmup_length(100, 7, 0.0) == 7
