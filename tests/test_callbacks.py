"""Each callback's numbers equal an independent measurement inside the same run, at the steps they should stand at."""

import csv
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import options
from lightning import Callback, Trainer
from lightning.pytorch.profilers import PassThroughProfiler

import tunelab.callbacks.checkpoint as checkpoint_module
from tunelab.callbacks import (
    Checkpoint,
    Clock,
    DeadUnits,
    EarlyStopping,
    Finite,
    Gradients,
    Histograms,
    LearningRate,
    Objective,
    Throughput,
    Updates,
)
from tunelab.callbacks.layers import examples_in
from tunelab.config import ConfigError
from tunelab.fitting import build
from tunelab.prepare import complete

DATA = ("data=breast_cancer", "batch_size=32", "size=tiny")  # 455 training examples: 15 steps an epoch
STEPS = 15


def _rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def _column(folder, metric):
    """Value by step."""
    return {int(row["step"]): float(row[metric]) for row in _rows(folder) if row.get(metric)}


def test_every_callback_file_builds_its_class(compose):
    kinds = {name: type(build(compose(f"callbacks=[{name}]").callbacks[name])) for name in options("callbacks")}
    assert kinds == {
        "checkpoint": Checkpoint,
        "dead_units": DeadUnits,
        "finite": Finite,
        "gradients": Gradients,
        "histograms": Histograms,
        "lr": LearningRate,
        "throughput": Throughput,
        "updates": Updates,
    }


# ---- when


@pytest.mark.parametrize("interval", [4, 50])
def test_the_training_loss_is_written_once_per_interval_and_at_each_epochs_end(interval, fit):
    _, folder = fit(*DATA, "epochs=3", f"trainer.log_every_n_steps={interval}")
    due = [step for step in range(1, 3 * STEPS + 1) if step % interval == 0 or step % STEPS == 0]
    assert list(_column(folder, "train/loss")) == due


# ---- learning rate


class _Rates(Callback):
    """What each group's lr is at the moment of the step."""

    def __init__(self, second_group_share=1.0):
        self.share, self.used = second_group_share, []

    def on_train_start(self, trainer, module):
        if self.share != 1:
            (scheduler,) = [config.scheduler for config in trainer.lr_scheduler_configs]
            scheduler.base_lrs[1] *= self.share
            trainer.optimizers[0].param_groups[1]["lr"] *= self.share

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.used.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.parametrize(
    "schedule",
    [
        ["scheduler=constant"],
        ["scheduler=cosine", "warmup_steps=7"],
        ["scheduler=step", "scheduler.every_epochs=1"],
        ["scheduler=plateau", "scheduler.patience=0", "lr=1e-9"],
    ],
    ids=lambda schedule: schedule[0],
)
def test_the_lr_written_at_a_step_is_the_one_that_the_optimizer_used_for_it(schedule, fit_with):
    rates = _Rates()
    overrides = ("epochs=3", "callbacks=[lr]", "logger=[csv]", "trainer.log_every_n_steps=4")
    fitted = fit_with([rates], *DATA, *overrides, *schedule)
    due = [step for step in range(1, 3 * STEPS + 1) if step == 1 or step % 4 == 0 or step % STEPS == 0]
    expected = {step: rates.used[step - 1][0] for step in due}
    assert _column(fitted.folder, "lr") == pytest.approx(expected, rel=1e-6)


def test_a_plateau_in_a_run_lowers_the_lr_after_its_validations(fit_with):
    rates = _Rates()
    # so small an lr that the accuracy stands still from the first validation on
    overrides = ("epochs=5", "lr=1e-9", "callbacks=[]", "logger=[]", "scheduler=plateau", "scheduler.patience=1")
    fit_with([rates], *DATA, *overrides)
    # the third validation is the second without improvement: from the next step on a tenth
    assert [rate for rate, _ in rates.used] == pytest.approx([1e-9] * 3 * STEPS + [1e-10] * 2 * STEPS, rel=1e-6)


def test_groups_with_different_rates_are_written_each_under_its_name(fit_with):
    rates = _Rates(second_group_share=0.1)
    overrides = ("epochs=1", "callbacks=[lr]", "logger=[csv]", "trainer.log_every_n_steps=1", "weight_decay=0.1")
    fitted = fit_with([rates], *DATA, *overrides)
    for index, name in enumerate(("decayed", "undecayed")):
        seen = _column(fitted.folder, f"lr/{name}")
        assert list(seen.values()) == pytest.approx([used[index] for used in rates.used], rel=1e-6)
    assert "lr" not in _rows(fitted.folder)[0]


# ---- objective


def _after(values, direction):
    objective = Objective("val/score", direction)
    for epoch, value in enumerate(values):
        trainer = SimpleNamespace(
            val_dataloaders=None,
            is_global_zero=True,
            profiler=PassThroughProfiler(),
            callback_metrics={"val/score": torch.tensor(value)},
            loggers=[],
            current_epoch=epoch,
            global_step=epoch,
        )
        objective.on_validation_end(trainer, None)
    return objective.best, objective.epoch


@pytest.mark.parametrize(
    ("values", "lowest", "highest"),
    [
        ([3.0, 1.0, 2.0], (1.0, 2), (3.0, 1)),
        ([1.0, 1.0, 1.0], (1.0, 1), (1.0, 1)),  # a tie goes to the first
        ([math.nan, 2.0, math.nan, 1.0, math.nan], (1.0, 4), (2.0, 2)),
        ([-1.0, -3.0, 0.0], (-3.0, 2), (0.0, 3)),
        ([math.inf, 5.0, -math.inf], (5.0, 2), (5.0, 2)),
    ],
)
def test_the_objective_keeps_the_best_value_and_its_epoch_and_passes_over_nan_and_inf(values, lowest, highest):
    assert _after(values, "minimize") == lowest
    assert _after(values, "maximize") == highest


def test_an_objective_that_was_never_a_number_has_no_epoch():
    best, epoch = _after([math.nan, math.nan], "minimize")
    assert math.isnan(best)
    assert epoch is None


def test_an_objective_that_is_no_number_is_said_once(caplog):
    _after([0.5, math.inf, math.nan], "maximize")
    assert [record.getMessage() for record in caplog.records] == ["val/score is inf in epoch 2: no improvement."]


def test_an_objective_that_is_never_logged_is_refused_with_those_that_are():
    trainer = SimpleNamespace(
        callback_metrics={"val/loss": 1, "val/accuracy": 1, "train/loss": 1}, loggers=[], val_dataloaders=None
    )
    with pytest.raises(ConfigError) as caught:
        Objective("val/acuracy", "maximize").on_validation_end(trainer, None)
    assert str(caught.value) == (
        "`objective` must be a metric that this run logs, got val/acuracy. Did you mean val/accuracy? "
        "It logs val/accuracy, val/loss."
    )


def test_the_objective_continues_from_its_saved_state():
    first, second = Objective("val/loss", "minimize"), Objective("val/loss", "minimize")
    first.best, first.epoch = 0.25, 7
    second.load_state_dict(first.state_dict())
    assert (second.best, second.epoch) == (0.25, 7)


@pytest.mark.parametrize(("metric", "choose"), [("val/loss", min), ("val/accuracy", max)])
def test_the_best_of_a_run_is_that_of_its_validations(metric, choose, fit):
    result, folder = fit(*DATA, "epochs=8", "lr=0.03", "scheduler=constant", f"objective={metric}")
    values = list(_column(folder, metric).values())
    assert len(values) == 8
    assert result["objective"]["best"] == pytest.approx(choose(values), rel=1e-6)
    assert result["objective"]["epoch"] == values.index(choose(values)) + 1
    # written when it improves, so that its last value is what the run has reached
    bests = _column(folder, f"best/{metric}")
    improvements = [v for i, v in enumerate(values) if v not in values[:i] and choose(values[: i + 1]) == v]
    assert list(bests.values()) == pytest.approx(improvements, rel=1e-6)


# ---- early stopping


@pytest.mark.parametrize("patience", [1, 3])
def test_a_run_that_stands_still_ends_after_its_patience(patience, fit):
    early = ("regularization=[early_stopping]", f"regularization.early_stopping.patience={patience}")
    result, folder = fit(*DATA, "epochs=20", "lr=1e-9", *early)
    # the first validation is the best; then as many without improvement as it bears
    assert (result["epochs"], result["steps"]) == (1 + patience, (1 + patience) * STEPS)
    assert result["objective"]["epoch"] == 1
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == patience


def test_a_run_that_improves_is_not_stopped(fit):
    early = ("regularization=[early_stopping]", "regularization.early_stopping.patience=1")
    result, folder = fit(*DATA, "epochs=5", "lr=1e-3", "objective=val/loss", *early)
    values = list(_column(folder, "val/loss").values())
    assert values == sorted(values, reverse=True)
    assert result["epochs"] == 5


def test_early_stopping_watches_the_objective_in_its_direction(compose):
    for objective, mode in (("val/loss", "min"), ("val/accuracy", "max")):
        cfg = complete(compose("data=digits", f"objective={objective}", "regularization=[early_stopping]"))
        callback = build(cfg.regularization.early_stopping)
        assert (callback.monitor, callback.mode) == (objective, mode)
    assert EarlyStopping("val/r2", "maximize").mode == "max"


def test_an_improvement_smaller_than_min_delta_does_not_count(fit):
    early = ("regularization=[early_stopping]", "regularization.early_stopping.patience=2")
    result, _ = fit(*DATA, "epochs=9", "objective=val/loss", *early, "regularization.early_stopping.min_delta=100")
    assert result["epochs"] == 1 + 2


# ---- checkpoints


class _Weights(Callback):
    """The weights at each validation, and the epochs of the checkpoints that lie there when an epoch begins."""

    def __init__(self):
        self.after, self.kept = [], []

    def on_validation_end(self, trainer, module):
        self.after.append({key: value.clone() for key, value in module.model.state_dict().items()})

    def on_train_epoch_start(self, trainer, module):
        folder = trainer.default_root_dir
        self.kept.append(tuple(_epoch(f"{folder}/checkpoints/{name}.ckpt") for name in ("last", "best")))


def _epoch(path):
    """Counted from 1; 0 for none."""
    try:
        return torch.load(path, weights_only=True)["epoch"] + 1
    except FileNotFoundError:
        return 0


def _saved_weights(folder, name):
    state = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
    return {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}


def test_the_best_checkpoint_is_of_the_best_epoch_and_the_last_of_the_last(fit_with, monkeypatch):
    monkeypatch.setattr(Checkpoint, "is_due", lambda self, step: True)
    weights = _Weights()
    # so large an lr that the loss goes up and down
    fitted = fit_with([weights], *DATA, "epochs=8", "lr=0.05", "scheduler=constant", "objective=val/loss")
    losses = list(_column(fitted.folder, "val/loss").values())
    best = losses.index(min(losses)) + 1
    assert 1 < best < 8  # else the two would be the same
    assert fitted.objective.epoch == best
    for name, epoch in (("best", best), ("last", 8)):
        saved = _saved_weights(fitted.folder, name)
        expected = weights.after[epoch - 1]
        assert saved.keys() == expected.keys()
        assert all(torch.equal(saved[key], expected[key]) for key in saved), name
    bests = [losses[:n].index(min(losses[:n])) + 1 for n in range(1, 8)]
    assert weights.kept == [(0, 0), *zip(range(1, 8), bests, strict=True)]


def test_a_best_state_that_is_not_due_waits_in_memory(fit_with):
    weights = _Weights()
    rarely = ("lr=0.05", "scheduler=constant", "objective=val/loss", "callbacks.checkpoint.every_seconds=1000.0")
    fitted = fit_with([weights], *DATA, "epochs=8", *rarely)
    assert weights.kept == [(0, 0), *[(1, 1)] * 7]  # on disk: the first, and at the end the last
    best = fitted.objective.epoch
    assert 1 < best < 8
    for name, epoch in (("best", best), ("last", 8)):
        saved = _saved_weights(fitted.folder, name)
        assert all(torch.equal(saved[key], value) for key, value in weights.after[epoch - 1].items()), name


def test_a_best_state_in_memory_is_written_when_the_run_fails(fit_with, tmp_path):
    class Fail(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 4:
                raise ArithmeticError

    weights = _Weights()
    rarely = ("lr=1e-3", "scheduler=constant", "objective=val/loss", "callbacks.checkpoint.every_seconds=1000.0")
    with pytest.raises(ArithmeticError):
        fit_with([weights, Fail()], *DATA, "epochs=8", *rarely)
    folder = tmp_path / "fitted1"
    assert [_epoch(folder / "checkpoints" / f"{name}.ckpt") for name in ("last", "best")] == [1, 4]


def test_writing_takes_no_more_than_its_share_of_the_time(fit_with, monkeypatch):
    """A clock that stands still but while a checkpoint is written, which takes 1 s, and moves 10 s an epoch."""
    now = [0.0]
    written = []

    def save(self, path, **_):
        now[0] += 1.0
        written.append(self.current_epoch + 1)
        own(self, path)

    own = Trainer.save_checkpoint
    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: now[0])

    class Epochs(Callback):
        def on_train_epoch_start(self, trainer, module):
            now[0] += 10.0

    fit_with([Epochs()], *DATA, "epochs=14", "callbacks=[checkpoint]", "lr=1e-9")
    assert written == [1, 6, 11, 14]  # fifty times a second apart, in whole epochs, and the last


def test_the_checkpoint_folder_holds_nothing_else(fit):
    _, folder = fit(*DATA, "epochs=3")
    there = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert there == ["best.ckpt", "last.ckpt", "previous.ckpt"]


def test_a_run_without_validations_keeps_its_newest_state_as_the_best(fit):
    _, folder = fit(*DATA, "epochs=3", "trainer.limit_val_batches=0")
    assert [_epoch(folder / "checkpoints" / f"{name}.ckpt") for name in ("best", "last")] == [3, 3]


def test_a_checkpoint_holds_the_spec_and_the_state_of_optimizer_and_schedule_as_plain_values(fit):
    result, folder = fit(*DATA, "epochs=2", "scheduler=plateau", "scheduler.patience=0", "objective=val/loss")
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert (content["epoch"], content["global_step"]) == (1, 2 * STEPS)
    assert content["data_spec"]["input_shape"] == [30]
    (optimizer,) = content["optimizer_states"]
    moments = sum(state["exp_avg"].numel() for state in optimizer["state"].values())
    assert moments == result["parameters"]
    (schedule,) = content["lr_schedulers"]
    assert schedule["last_epoch"] == 2 * STEPS


# ---- the clock


def test_the_clock_counts_the_examples_of_every_epoch_and_a_plausible_time(fit_with):
    clock = Clock()
    fit_with([clock], *DATA, "epochs=3", "callbacks=[]", "logger=[]")
    assert clock.samples == 3 * 455
    seconds = clock.seconds
    assert 0 < seconds < 60
    assert clock.seconds == seconds  # it stands still when the fit has ended


def test_the_clock_of_a_fit_that_has_not_begun_is_at_zero():
    assert (Clock().samples, Clock().seconds) == (0, 0)


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ((torch.zeros(5, 2), torch.zeros(5)), 5),
        ({"inputs": torch.zeros(4, 2), "labels": torch.zeros(4)}, 4),
        (torch.zeros(3, 2), 3),
        ([{"names": ["a", "b"], "inputs": torch.zeros(2, 3)}], 2),
        ((torch.tensor(7.0), torch.zeros(6)), 6),
        ("nothing to count", 0),
    ],
)
def test_a_batch_has_as_many_examples_as_its_first_tensor(batch, count):
    assert examples_in(batch) == count


def test_the_result_reports_samples_per_second_from_both(fit):
    result, _ = fit(*DATA, "epochs=2")
    assert result["samples_per_second"] == pytest.approx(2 * 455 / result["seconds"], rel=0.05)
