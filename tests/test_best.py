"""The best checkpoint is the state that was best, whatever validates when, and a wish to stop counts when it may."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from test_command import typed
from test_resume import assert_the_same_run

from tunelab.callbacks import Checkpoint, Objective
from tunelab.errors import RunFailed
from tunelab.predictor import evaluate
from tunelab.tasks import SupervisedTask

SHORT = ("data=digits", "size=tiny", "epochs=3", "threads=1", "logger=[csv]", "lr=0.05", "optimizer=sgd")


def _column(folder: Path, name: str) -> dict[int, float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


@pytest.mark.parametrize(
    "words",
    [
        ("+trainer.val_check_interval=5", "scheduler=constant", "callbacks.checkpoint.every_seconds=1000"),
        ("+trainer.val_check_interval=5", "trainer.accumulate_grad_batches=3", "regularization=[ema]"),
        ("+trainer.val_check_interval=0.3",),
    ],
)
def test_the_best_checkpoint_is_of_the_validation_that_was_best(fit: Any, words: tuple[str, ...]) -> None:
    result, folder = fit(*SHORT, *words, "objective=val/loss", "test=false", "lr=0.5", "optimizer=momentum")
    losses = _column(folder, "val/loss")
    step = min(losses, key=losses.__getitem__)
    assert len(losses) > 6
    assert result["objective"]["best"] == losses[step]
    assert torch.load(folder / "checkpoints" / "best.ckpt")["global_step"] == step
    assert evaluate(folder, "best", "val")["val/loss"] == pytest.approx(losses[step], rel=1e-6)


def test_a_validation_within_a_step_of_several_batches_waits_for_its_end(fit: Any) -> None:
    words = ("+trainer.val_check_interval=5", "trainer.accumulate_grad_batches=3", "epochs=1", "test=false")
    _, folder = fit(*SHORT, *words)
    assert list(_column(folder, "val/loss")) == [2, 4, 5, 7]  # after batches 6, 12, 15 and 21


@pytest.mark.slow
def test_a_run_killed_between_validations_goes_on_with_the_same_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*SHORT, "+trainer.val_check_interval=5", "scheduler=constant", "lr=0.5", "test=false")
    assert typed(tmp_path, *words, "hydra.run.dir=whole").folder == "whole"

    def stop(self: Objective, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 27:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "on_train_batch_end", stop)
        assert typed(tmp_path, *words, "hydra.run.dir=cut").code == 143
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")
    best = [torch.load(tmp_path / name / "checkpoints" / "best.ckpt") for name in ("whole", "cut")]
    assert best[0]["global_step"] == best[1]["global_step"]


# ---- NaN


def _lose(monkeypatch: pytest.MonkeyPatch, first: int, last: float = math.inf) -> None:
    compute = SupervisedTask.compute_loss

    def lost(self: SupervisedTask, batch: Any) -> Any:
        if self.training or not first <= self.global_step <= last:
            return compute(self, batch)
        outputs = compute(self, batch)[1].clone()
        outputs[3] = math.nan
        return self.loss(outputs, batch[1]), outputs

    monkeypatch.setattr(SupervisedTask, "compute_loss", lost)


def test_a_validation_that_lost_a_number_ends_the_run_and_says_where(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _lose(monkeypatch, 40)
    with pytest.raises(RunFailed) as caught:
        fit(*SHORT, "test=false")
    said = str(caught.value)
    assert "val/loss became NaN in the validation after step 46 (epoch 2)." in said
    assert "It began in the model: its output for validation example 4 became NaN, from inputs up to" in said
    assert "Until step 46 the weights and the loss of training were finite" in said


def test_without_that_callback_a_validation_that_lost_a_number_is_never_the_best(
    fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _lose(monkeypatch, 40, 50)
    result, folder = fit(*SHORT, "callbacks=[checkpoint]", "objective=val/accuracy", "test=false")
    losses, scores = _column(folder, "val/loss"), _column(folder, "val/accuracy")
    assert [math.isnan(losses[step]) for step in losses] == [False, True, False]
    assert [math.isnan(scores[step]) for step in scores] == [False, True, False]
    assert result["objective"]["best"] == max(value for value in scores.values() if not math.isnan(value))
    assert result["objective"]["epoch"] != 2


# ---- min_epochs


def _epochs(monkeypatch: pytest.MonkeyPatch, fit: Any, values: list[float], *words: str) -> tuple[int, Path]:
    written = SupervisedTask._log_evaluation

    def log(self: SupervisedTask, part: str) -> None:
        scores = self.evaluation[part]
        compute = type(scores).compute
        with monkeypatch.context() as patch:
            value = torch.tensor(values[self.current_epoch], dtype=torch.float64)
            patch.setattr(type(scores), "compute", lambda s: {**compute(s), f"{part}/loss": value})
            written(self, part)

    monkeypatch.setattr(SupervisedTask, "_log_evaluation", log)
    result, folder = fit(
        *("data=iris", "size=tiny", "threads=1", "logger=[csv]", "test=false", f"epochs={len(values)}"),
        *("regularization=[early_stopping]", "regularization.early_stopping.patience=2", "objective=val/loss"),
        *words,
    )
    return result["epochs"], folder


def test_a_wish_to_stop_from_before_min_epochs_does_not_stand(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # patience ends at epoch 3; epoch 5 improves; patience ends anew at 7
    values = [1.0, 2.0, 2.0, 2.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert _epochs(monkeypatch, fit, values)[0] == 3
    assert _epochs(monkeypatch, fit, values, "+trainer.min_epochs=5")[0] == 7


def test_a_run_that_never_improves_again_ends_at_min_epochs(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _epochs(monkeypatch, fit, [1.0, *[2.0] * 9], "+trainer.min_epochs=5")[0] == 5


def test_a_run_killed_after_its_early_stop_does_not_train_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("data=iris", "size=tiny", "threads=1", "epochs=60", "lr=1.0", "optimizer=sgd", "test=false")
    words += ("regularization=[early_stopping]", "regularization.early_stopping.patience=1", "objective=val/accuracy")
    assert typed(tmp_path, *words, "hydra.run.dir=whole").folder == "whole"
    with monkeypatch.context() as patch:  # killed between the last checkpoint and result.json
        patch.setattr("tunelab.run.summarise", _die)
        assert typed(tmp_path, *words, "hydra.run.dir=cut").code != 0
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert whole["epochs"] < 60
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert json.loads((tmp_path / "cut" / "result.json").read_text())["epochs"] == whole["epochs"]
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")


def _die(*_: Any) -> None:
    raise KeyboardInterrupt


def test_the_best_state_is_kept_once_for_each_improvement() -> None:
    keeper, objective = Checkpoint(), Objective("val/loss", "minimize")
    trainer: Any = type("T", (), {"global_step": 10, "callbacks": [objective]})
    keeper.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert not keeper.is_best(trainer)
    objective.step = 10
    assert keeper.is_best(trainer)
    trainer.global_step = 11
    assert not keeper.is_best(trainer)  # the weights have moved on
