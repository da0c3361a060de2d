"""The learning-rate range test: its curves in closed form, what it finds against an independent number, its run."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from test_command import refused, typed

import tunelab
from tunelab import conf_folder
from tunelab.config import validate
from tunelab.errors import ConfigError
from tunelab.tuning import lr_run
from tunelab.tuning.bare import bare, with_value
from tunelab.tuning.fits import fit as fit_aside
from tunelab.tuning.lr_advice import FAMILIES, advised, family_of, recommended
from tunelab.tuning.lr_curve import Curve, rising_rates, smoothed
from tunelab.tuning.lr_range import Plan, _alone, _groups_of, _Ramp, find_lr

SCRIPT = "scripts/find_lr.py"
SMALL = ("size=tiny", "threads=1", "callbacks=[]", "logger=[]", "trainer.enable_progress_bar=false")
RATES = rising_rates(1e-6, 1.0, 301)
LOGS = np.log10(RATES)

Compose = Callable[..., DictConfig]


# ---- curves


def test_the_smoothed_loss_is_the_weighted_mean_of_all_losses_so_far() -> None:
    losses = [3.0, 1.0, 4.0, 1.0, 5.0]
    found = smoothed(losses, 0.7)
    for k, value in enumerate(found):
        weights = 0.7 ** np.arange(k, -1, -1)
        assert value == pytest.approx(float(weights @ losses[: k + 1] / weights.sum()))
    assert found[0] == 3.0
    assert smoothed([2.0] * 50, 0.9) == pytest.approx([2.0] * 50)
    assert smoothed(losses, 0.0) == losses


def test_rates_are_evenly_spaced_on_a_log_scale() -> None:
    rates = rising_rates(1e-4, 1.0, 5)
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


@pytest.mark.parametrize("seed", range(3))
def test_the_steepest_fall_is_at_the_inflection_of_the_curve_though_it_is_noisy(seed: int) -> None:
    noise = 0.05 * np.random.default_rng(seed).standard_normal(301)
    losses = 2.3 - 2.0 / (1 + np.exp(-(LOGS - np.log10(1e-3)) / 0.25)) + noise
    curve = Curve(0, RATES, losses.tolist())
    # the average lags by what it remembers, a fifth of a decade
    assert 0.7e-3 < curve.steepest < 2.5e-3
    assert not curve.has_diverged
    assert curve.divergence is None


def test_the_valley_and_the_divergence_of_a_known_curve() -> None:
    losses = np.where(LOGS < -4, 2.0, np.where(LOGS < -3, 2.0 - (LOGS + 4), 1.0))
    losses = np.where(LOGS > -1, 1.0 + 10 * (LOGS + 1), losses)
    curve = Curve(0, RATES, losses.tolist())
    low, high = curve.valley
    assert 10**-3.3 <= low <= 10**-3  # 0.3 above the lowest at 10^-3.3, and the lag of the average
    assert high == curve.divergence
    assert curve.divergence == pytest.approx(0.1, rel=0.06)  # one step of the grid
    assert 10**-3 <= curve.minimum < 0.11


def test_a_curve_that_only_wavers_does_not_fall() -> None:
    losses = 2.3 + 0.05 * np.random.default_rng(0).standard_normal(301)
    assert not Curve(0, RATES, losses.tolist()).falls


def noisy(seed: int, gain: float, rise: float = 1.0, noise: float = 0.02) -> Curve:
    """A small loss that is flat, falls from lr 1e-3 to 1e-2, and from 1e-1 rises; each of its steps is noisy."""
    losses = 0.5 - gain * np.clip(LOGS + 3, 0, 1) + rise * np.clip(LOGS + 1, 0, 1)
    return Curve(seed, RATES, (losses + noise * np.random.default_rng(seed).standard_normal(301)).tolist())


@pytest.mark.parametrize("gain", [0.0, 0.02, 0.3])
def test_noise_of_a_flat_small_loss_is_no_divergence(gain: float) -> None:
    flat = [noisy(seed, gain, rise=0.0) for seed in range(50)]
    assert [curve.divergence for curve in flat] == [None] * 50
    for curve in (noisy(seed, gain) for seed in range(50)):
        assert curve.divergence is not None
        assert 0.08 < curve.divergence < 0.3
        assert curve.minimum <= curve.divergence
        assert curve.falls_clearly == (gain == 0.3)


def test_no_seed_speaks_for_an_lr_past_its_divergence_nor_diverges_before_its_minimum() -> None:
    generator = np.random.default_rng(0)
    for seed in range(100):
        walk = np.cumsum(generator.standard_normal(301)) * (LOGS > -3)
        curve = Curve(seed, RATES, (10 + walk + 0.1 * generator.standard_normal(301)).tolist())
        if curve.answers and curve.divergence is not None:
            assert curve.minimum <= curve.valley[1] <= curve.divergence
            assert all(recommended(curve, family) <= curve.divergence for family in FAMILIES.values())


SGD = {"name": "digits-mlp", "optimizer": {"_target_": "torch.optim.SGD"}}


def test_seeds_that_do_not_answer_are_left_out_and_said() -> None:
    dead = Curve(9, RATES, [math.nan])
    found = advised([noisy(0, 0.3), noisy(1, 0.3), dead], SGD)
    assert found.lr == advised([noisy(0, 0.3), noisy(1, 0.3)], SGD).lr
    assert "1 seed of 3 did not answer: the loss fell at no lr." in found.told()
    assert found.title == "SGD · digits-mlp"
    found.figure()
    with pytest.raises(ConfigError, match="must begin with a loss that is finite"):
        advised([noisy(0, 0.3), dead, dead], SGD)


def test_a_loss_that_hardly_falls_makes_the_answer_a_guess_in_words() -> None:
    found = advised([noisy(seed, 0.02) for seed in range(5)], SGD)
    assert "The loss hardly falls in this test (by " in found.told()
    assert "take it as a rough guess. More steps may tell more: steps=1505." in found.told()
    assert "rough guess" in found.line()
    assert not found.is_sure
    sure = advised([noisy(seed, 0.3) for seed in range(5)], SGD)
    assert "rough guess" not in sure.told() + sure.line()


def test_where_the_median_is_past_the_divergence_of_a_seed_that_seed_answers() -> None:
    early = Curve(2, RATES, (np.interp(LOGS, [-6, -5, -4, -3.5, 0], [0.5, 0.5, 0.2, 1, 1])).tolist())
    found = advised([noisy(0, 0.3), noisy(1, 0.3), early], SGD)
    assert early.divergence is not None
    assert found.lr == float(f"{recommended(early, found.family):.2g}") < early.divergence
    assert "of the seed that diverges first, as the seeds' median, 0.0" in found.told()


# ---- fits


@pytest.fixture
def line(tmp_path: Path, compose: Compose) -> tuple[DictConfig, float]:
    """Linear regression on a column, all of it at once by gradient descent, and the largest stable lr, 2 / curvature.

    The column and the target are normalized, so weight and bias have the same curvature.
    """
    x = np.random.default_rng(0).normal(size=60)
    pd.DataFrame({"x": 3 * x + 1, "y": 2 * x}).to_csv(tmp_path / "line.csv", index=False)
    cfg = compose(
        *(f"data.path='{tmp_path / 'line.csv'}'", "data=csv", "data.target=y", "task=regression", "loss=mse"),
        *("objective=val/loss", "optimizer=sgd", "batch_size=full", "threads=1", "callbacks=[]", "logger=[]"),
        *("trainer.enable_progress_bar=false", "data.val_fraction=0", "data.test_fraction=0", "activation=relu"),
    )
    linear = {"_target_": "torch.nn.Linear", "_partial_": True, "in_features": 1, "out_features": 1}
    cfg.model = OmegaConf.create(linear)
    inputs = np.stack([(x - x.mean()) / x.std(), np.ones(60)], axis=1)
    curvature = 2 * np.linalg.eigvalsh(inputs.T @ inputs / 60).max()
    return cfg, 2 / curvature


def test_on_a_quadratic_it_diverges_from_two_over_the_curvature(line: tuple[DictConfig, float]) -> None:
    cfg, stable = line
    step = 1.5  # steps over the lr that solves it at once, from which nothing would grow again
    found = find_lr(cfg, Plan(min_lr=1e-3, max_lr=1e-3 * step**28, steps=29, seeds=1))
    assert found.divergence is not None
    assert stable / step <= found.divergence <= stable * step
    assert found.lr <= found.divergence * 1.05  # in two digits


class Rates(Callback):
    """Notes the lr of each group that a step was made with."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("parameter_groups.layer_decay=0.5", "scheduler=one_cycle", "warmup_steps=1"), [1.0, 0.5]),
        pytest.param(("optimizer=muon", "size.depth=2"), None, marks=pytest.mark.slow),
    ],
)
def test_each_group_follows_the_lr_as_it_does_in_a_run(
    compose: Compose, overrides: tuple[str, ...], expected: list[float] | None
) -> None:
    still = _alone(compose(*SMALL, *overrides), 20)
    rates, seen = rising_rates(1e-4, 1e-2, 20), Rates()
    fit_aside(still, [_Ramp(0, rates, _groups_of(still), lambda found: None), seen])
    assert len(seen.seen) == 20
    for rate, groups in zip(rates, seen.seen, strict=True):
        if expected is None:  # the rest has its own lr, whatever that of the matrices
            assert {f"{group:.4g}" for group in groups} == {f"{rate:.4g}", "0.001"}
        else:
            assert {round(group / rate, 6) for group in groups} == set(expected)


@pytest.mark.slow
def test_gradients_accumulate_as_in_a_run_and_the_loss_of_a_step_is_the_mean_of_its_batches(compose: Compose) -> None:
    whole = find_lr(compose(*SMALL, "data=iris", "batch_size=full", "optimizer=sgd"), Plan(steps=30, seeds=1)).curves[0]
    halves = compose(*SMALL, "data=iris", "batch_size=60", "optimizer=sgd", "trainer.accumulate_grad_batches=2")
    parts = find_lr(halves, Plan(steps=30, seeds=1)).curves[0]
    assert parts.losses[:20] == pytest.approx(whole.losses[:20], rel=1e-4)


@pytest.mark.slow
def test_a_recipe_whose_interpolations_have_been_followed_has_the_same_curves(compose: Compose) -> None:
    cfg = compose(*SMALL, "regularization=[early_stopping]", "scheduler=plateau", "scheduler.patience=2")
    cfg.name = "test"
    followed = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert isinstance(followed, DictConfig)
    plan = Plan(min_lr=1e-4, max_lr=1, steps=40, seeds=2)
    one, other = find_lr(cfg, plan), find_lr(followed, plan)
    assert [curve.losses for curve in one.curves] == [curve.losses for curve in other.curves]
    assert one.curves[0].losses != one.curves[1].losses
    changed = with_value(followed, "lr", 0.123)
    assert changed.optimizer.lr == changed.task.optimizer.lr == changed.lr == 0.123


@pytest.mark.slow
def test_what_does_not_fall_and_what_diverges_everywhere_is_said(compose: Compose) -> None:
    cfg = compose(*SMALL, "optimizer=sgd")
    with pytest.raises(ConfigError, match=r"but it stays at 2\.\d+ from lr 1e-07 to 1e-06, 2\.\d+ where it is low"):
        find_lr(cfg, Plan(max_lr=1e-6, steps=20, seeds=1))
    with pytest.raises(ConfigError, match=r"but it rises from the first lr, 1000, on: 2\.\d+ at first, "):
        find_lr(cfg, Plan(min_lr=1e3, max_lr=1e6, steps=30, seeds=1))
    with pytest.raises(ConfigError, match="got lbfgs, whose search along a line finds the length"):
        find_lr(compose(*SMALL, "optimizer=lbfgs"), Plan())


WATCHED = ("scheduler=plateau", "scheduler.patience=2", "warmup_steps=3", "batch_growth=factor")


@pytest.mark.parametrize("followed", [False, True])
def test_a_bare_recipe_has_no_validation_and_no_schedule_but_all_that_makes_its_loss(
    compose: Compose, followed: bool
) -> None:
    recipe = compose(*SMALL, "regularization=[early_stopping,dropout,label_smoothing,l2]", *WATCHED)
    recipe.name = "test"
    if followed:
        recipe = OmegaConf.create(OmegaConf.to_container(recipe, resolve=True))
    left = bare(recipe)
    for holder in (left, left.task):
        assert list(holder.regularization) == ["dropout", "label_smoothing", "l2"]
        assert holder.scheduler._target_ == "tunelab.schedules.constant"
        assert holder.batch_growth is None
    assert (left.warmup_steps, left.trainer.limit_val_batches) == (0, 0)
    assert left.dropout == left.task.model.dropout == 0.2
    scheduled = bare(compose(*SMALL, "scheduler=cosine", "warmup_steps=3"), scheduled=True)
    assert (scheduled.scheduler._target_, scheduled.warmup_steps) == ("tunelab.schedules.cosine", 3)


@pytest.mark.parametrize("path", sorted((conf_folder() / "optimizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_optimizer_of_the_catalogue_has_a_family(path: Path) -> None:
    assert path.stem == "lbfgs" or "unknown" not in family_of(OmegaConf.load(path).optimizer).name


# ---- the tool, and a run


@pytest.mark.slow
def test_the_tool_leaves_its_answer_and_says_what_to_type(tmp_path: Path) -> None:
    answer = tunelab.find_lr(*SMALL, "seeds=2", "steps=50", "min_lr=1e-4")
    told = answer.said()
    kept = [override for override in SMALL if "[" not in override]
    assert shlex.split(told.splitlines()[-1])[-1] == f"lr={answer.values()['lr']:g}"
    assert set(kept) < set(shlex.split(told.splitlines()[-1]))
    assert "seeds=2" not in told.splitlines()[-1]
    assert len(answer.values()["seeds"]) == 2
    (tmp_path / "find_lr").mkdir()
    answer.save(tmp_path / "find_lr")
    rows = pd.read_csv(tmp_path / "find_lr" / "answer.csv")
    first = rows[rows["seed"] == 0]
    assert first["lr"].iloc[0] == 1e-4
    assert first["smoothed"].iloc[0] == first["loss"].iloc[0]
    assert json.loads((tmp_path / "find_lr" / "answer.json").read_text())["lr"] == answer.values()["lr"]


def test_the_plan_has_the_numbers_of_its_file() -> None:
    file = OmegaConf.load(conf_folder() / "find_lr.yaml")
    assert {key: file[key] for key in ("min_lr", "max_lr", "steps", "seeds")} == vars(Plan())


def test_what_cannot_be_is_refused_in_words_and_at_once(tmp_path: Path, compose: Compose) -> None:
    text = refused(typed(tmp_path, "min_lr=1", "max_lr=0.1", "batch_size=0", script=SCRIPT), 1)
    assert "`min_lr` must be less than max_lr, got min_lr=1, max_lr=0.1." in text
    assert "`batch_size` must be at least 1" in text
    text = refused(typed(tmp_path, "min_lr=0", "seeds=0", script=SCRIPT), 1)
    assert "`min_lr` must be greater than 0, got 0. Try min_lr=1e-07." in text
    assert "`seeds` must be at least 1, got 0. Try seeds=5." in text
    text = refused(typed(tmp_path, "steps=30", script=SCRIPT), 1)
    assert "`steps` must be at least 80 from lr 1e-07 to 10, 10 for each tenfold, got 30. Try steps=80." in text
    with pytest.raises(ConfigError, match="`lr` must be left out with find_lr=true, which finds one, got"):
        validate(compose("lr=0.1", "find_lr=true"), ["lr", "find_lr"])


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's own range test in fewer steps."""
    monkeypatch.setattr(lr_run, "PLAN", Plan(min_lr=1e-4, steps=50, seeds=1))


def test_a_run_that_finds_its_lr_is_the_run_that_is_told_it(
    short: None, fit: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    recipe = ("data=iris", "size=tiny", "epochs=3", "callbacks=[checkpoint,lr]", "logger=[csv]", "dropout=0.1")
    found, folder = fit(*recipe, "find_lr=true", "trainer.log_every_n_steps=1")
    record = OmegaConf.load(folder / "config.yaml")
    assert record.find_lr is False
    assert record.lr == json.loads((folder / "find_lr.json").read_text())["lr"] == record.optimizer.lr
    told, other = fit(*recipe, f"lr={record.lr}", "trainer.log_every_n_steps=1")
    assert (folder / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    weights = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (folder, other)
    ]
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name]), name
    assert found["objective"] == told["objective"]
    metrics = pd.read_csv(folder / "metrics.csv")
    rates = metrics[[column for column in metrics if column.startswith("lr")]].max().max()
    assert rates == pytest.approx(record.lr)  # the peak of the schedule, at its first step


@pytest.mark.slow
def test_the_lr_found_must_agree_with_the_schedule(
    short: None, fit: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    # below the lr of the file, above what is found
    with pytest.raises(ConfigError, match=r"`scheduler.eta_min` must be less than lr, got eta_min=0.99, lr=0\.\d+"):
        fit(
            "size=tiny",
            "epochs=2",
            "optimizer=adadelta",
            "optimizer._target_=torch.optim.Adam",
            "~optimizer.rho",
            "scheduler.eta_min=0.99",
            "find_lr=true",
        )
