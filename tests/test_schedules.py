"""Every schedule equals its closed form at every step; warm-up has no zero, no jump; a resume continues exactly."""

import io
import math
from itertools import pairwise

import pytest
import torch
from conftest import options

from tunelab.config import ConfigError
from tunelab.run import build
from tunelab.schedules import Plateau, constant, cosine, step, warmup_length

LR = 0.2
EVERY, STEP_FACTOR, ETA_MIN = 3, 0.5, 0.004
SETTINGS = {
    # what makes each schedule move within a short run
    "constant": [],
    "cosine": [f"scheduler.eta_min={ETA_MIN}"],
    "plateau": ["objective_direction=minimize"],
    "step": [f"scheduler.every_epochs={EVERY}", f"scheduler.factor={STEP_FACTOR}"],
}


def _constant(t, total, per_epoch, warmup):
    return LR


def _cosine(t, total, per_epoch, warmup):
    progress = max(0, t - warmup) / (total - warmup)
    return ETA_MIN + (LR - ETA_MIN) * (1 + math.cos(math.pi * progress)) / 2


def _step(t, total, per_epoch, warmup):
    return LR * STEP_FACTOR ** sum(1 for k in range(1, t + 1) if k % (EVERY * per_epoch) == 0)


CLOSED_FORMS = {"constant": _constant, "cosine": _cosine, "plateau": _constant, "step": _step}
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
    expected = [
        CLOSED_FORMS[option](t, total, per_epoch, warmup) * min(1, (t + 1) / (warmup + 1)) for t in range(total)
    ]
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
        _made(option, compose, dial)(optimizer, total_steps=60, steps_per_epoch=6)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(LR / 10, rel=1e-12)


@pytest.mark.parametrize("option", options("scheduler"))
def test_the_first_step_of_a_warmup_has_an_lr_above_zero_and_the_last_reaches_its_target(option, compose):
    optimizer = _optimizer()
    scheduler = _made(option, compose)(optimizer, total_steps=100, steps_per_epoch=50, warmup_steps=20)
    seen = [rate for (rate,) in _rates(optimizer, scheduler, 100)]
    assert seen[0] == pytest.approx(LR / 21, rel=1e-12)
    assert seen[20] == pytest.approx(LR, rel=1e-12)
    assert max(seen) == seen[20]
    rises = [after - before for before, after in pairwise(seen[:21])]
    assert rises == pytest.approx([LR / 21] * 20, rel=1e-9)


def test_cosine_with_warmup_joins_without_a_jump():
    optimizer = _optimizer()
    scheduler = cosine(optimizer, total_steps=1000, steps_per_epoch=100, warmup_steps=100)
    seen = [rate for (rate,) in _rates(optimizer, scheduler, 1000)]
    largest = max(abs(after - before) for before, after in pairwise(seen))
    # the steepest of a ramp over 101 steps and of half a cosine over 900
    assert largest == pytest.approx(max(LR / 101, math.pi / 2 * LR / 900), rel=1e-3)
    assert seen[101] == pytest.approx(LR, rel=1e-4)


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


def test_cosine_ends_at_eta_min_and_never_climbs_again():
    optimizer = _optimizer()
    scheduler = cosine(optimizer, total_steps=50, steps_per_epoch=5, eta_min=ETA_MIN)
    seen = [rate for (rate,) in _rates(optimizer, scheduler, 80)]
    assert seen[50:] == pytest.approx([ETA_MIN] * 30, rel=1e-12)
    assert all(after <= before for before, after in pairwise(seen))


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
    if option in ("plateau", "step"):
        assert len(set(expected)) > 1  # it did move in what was compared


# ---- plateau


def _observed(direction, values, **keywords):
    """The lr after each validation of one step an epoch."""
    optimizer = _optimizer()
    scheduler = Plateau(
        optimizer, total_steps=100, steps_per_epoch=1, monitor="val/loss", direction=direction, **keywords
    )
    seen = []
    for value in values:
        optimizer.step()
        scheduler.observe(value)
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


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
