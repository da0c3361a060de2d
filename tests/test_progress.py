"""The line that shows how far a run is."""

import io
import math
from types import SimpleNamespace

import pytest
from rich.console import Console

from tunelab.callbacks import Objective, Progress
from tunelab.callbacks import progress as module


def shown(monkeypatch: pytest.MonkeyPatch, value: float) -> str:
    """What the bar shows in the second epoch when the objective has this value, and had none before."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(module, "Console", lambda stderr: console)
    objective = Objective("val/loss", "minimize")
    if math.isfinite(value):
        objective.best, objective.epoch = value, 1
    trainer = SimpleNamespace(
        max_epochs=4,
        num_training_batches=10,
        current_epoch=1,
        callback_metrics={"val/loss": value},
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=19)),
    )
    bar = Progress(objective)
    bar.on_train_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
    bar.on_train_end(trainer, SimpleNamespace())  # type: ignore[arg-type]
    return screen.getvalue()


def test_the_time_that_is_left_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, 0.25)
    assert "epoch 2/4" in text
    assert "val/loss 0.25 (best 0.25)" in text
    assert text.rstrip().removesuffix("\x1b[?25h").rstrip().endswith("left")


def test_before_there_is_a_best_value_none_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, math.inf)
    assert "val/loss inf" in text
    assert "best" not in text
