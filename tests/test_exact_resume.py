"""Ended at any step and continued, a run is the uninterrupted one bit for bit: weights, optimizer, metrics, curves."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from test_command import Outcome, refused, typed
from test_resume import assert_the_same_run, scalars

from tunelab.callbacks import Objective

SHORT = ("size=tiny", "epochs=4", "threads=1", "trainer.log_every_n_steps=10")
RECIPES = {
    "the defaults": (),
    "ema, sam, cutmix, augmentation": (
        *("model=cnn", "optimizer=sam", "regularization=[ema,cutmix,dropout]", "augmentation=light"),
        "augmentation.flip=false",
    ),
    "schedule-free, mixup, accumulation": (
        *("optimizer=schedule_free", "regularization=[mixup,ema]", "trainer.accumulate_grad_batches=3"),
    ),
    "swa, plateau, early stopping, percentile clipping": (
        *("scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5", "clipping=percentile"),
        *(
            "regularization=[swa,early_stopping]",
            "regularization.swa.start_fraction=0.3",
            "regularization.early_stopping.patience=2",
        ),
    ),
    "bf16, muon, dropconnect": ("trainer.precision=bf16-mixed", "optimizer=muon", "regularization=[dropconnect]"),
    "validation every second epoch": (
        "trainer.check_val_every_n_epoch=2",
        "data=diabetes",
        "optimizer=lion",
        "batch_size=16",
    ),
}


def stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, batches: int, *arguments: str, number: int = signal.SIGINT
) -> Outcome:
    """Types a command that gets a signal in the hook behind so many batches of this part of the run."""
    seen = 0

    def stop(self: Objective, *args: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == batches:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "on_train_batch_end", stop)
        return typed(folder, *arguments)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """whole(recipe): the folder of its uninterrupted run."""
    made: dict[str, Path] = {}

    def run(recipe: str) -> Path:
        if recipe not in made:
            folder = tmp_path_factory.mktemp("whole")
            outcome = typed(folder, *SHORT, *RECIPES[recipe], "hydra.run.dir=run")
            assert outcome.folder == "run", outcome.text
            made[recipe] = folder / "run"
        return made[recipe]

    return run


QUICK = (0, 3)


def moments() -> list[Any]:
    """Fifty of them, each with the recipe that is stopped there; all but a few are slow."""
    draw = random.Random(4)
    found = []
    for number in range(50):
        recipe = list(RECIPES)[number % len(RECIPES)]
        marks = () if number in QUICK else pytest.mark.slow
        found.append(pytest.param(recipe, draw.randrange(1, 80), draw.randrange(2), marks=marks))
    return found


@pytest.mark.parametrize(("recipe", "batches", "term"), moments())
def test_a_run_that_is_ended_at_any_step_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any, recipe: str, batches: int, term: int
) -> None:
    number = signal.SIGTERM if term else signal.SIGINT
    outcome = stopped(tmp_path, monkeypatch, batches, *SHORT, *RECIPES[recipe], "hydra.run.dir=cut", number=number)
    assert outcome.code == 128 + number, outcome.text
    assert "To continue: python train.py resume=cut" in outcome.text
    assert json.loads((tmp_path / "cut" / "result.json").read_text())["status"] == "interrupted"
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(whole(recipe), tmp_path / "cut")
    assert scalars(tmp_path / "cut") == scalars(whole(recipe))  # no gap, no step twice


@pytest.mark.slow
def test_a_run_may_be_ended_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any) -> None:
    recipe = "schedule-free, mixup, accumulation"
    stopped(tmp_path, monkeypatch, 2, *SHORT, *RECIPES[recipe], "hydra.run.dir=cut")
    for batches in (1, 20, 3, 24, 7):
        assert stopped(tmp_path, monkeypatch, batches, "resume=cut").code == 130
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(whole(recipe), tmp_path / "cut")
    assert scalars(tmp_path / "cut") == scalars(whole(recipe))


@pytest.mark.parametrize(
    "recipe", [next(iter(RECIPES)), *(pytest.param(r, marks=pytest.mark.slow) for r in list(RECIPES)[1:3])]
)
def test_a_run_that_is_ended_while_it_validates_validates_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any, recipe: str
) -> None:
    def stop(self: Objective, trainer: Trainer, *args: Any) -> None:
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "on_validation_epoch_start", stop)
        outcome = typed(tmp_path, *SHORT, *RECIPES[recipe], "hydra.run.dir=cut")
    assert outcome.code == 143, outcome.text
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(whole(recipe), tmp_path / "cut")
    assert scalars(tmp_path / "cut") == scalars(whole(recipe))


EARLY = (
    *("size=tiny", "epochs=40", "threads=1", "regularization=[early_stopping]", "lr=0.05", "objective=val/loss"),
    *("regularization.early_stopping.patience=1", "regularization.early_stopping.monitor=val/loss", "warmup_steps=60"),
)


@pytest.mark.parametrize("words", [(*SHORT, "regularization=[ema]"), EARLY])
def test_a_run_that_is_ended_before_its_test_score_is_only_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    assert typed(tmp_path, *words, "hydra.run.dir=whole").folder == "whole"
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "on_test_start", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert typed(tmp_path, *words, "hydra.run.dir=cut").code == 143
    unscored = json.loads((tmp_path / "cut" / "result.json").read_text())
    assert (unscored["status"], unscored["test"]) == ("finished", None)
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")
    text = refused(typed(tmp_path, "resume=cut"), 1)
    assert "`resume` must have something left to do, but the run has ended after" in text
    assert ("as early stopping had it" in text) == (words is EARLY)


def test_a_run_that_ends_by_its_number_of_steps_keeps_its_last_and_its_best_state(tmp_path: Path) -> None:
    words = ("size=tiny", "epochs=9", "+trainer.max_steps=60", "callbacks.checkpoint.every_seconds=1000")
    assert typed(tmp_path, *words, "hydra.run.dir=run").folder == "run"
    best, last = (torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (last["global_step"], best["epoch"] + 1) == (60, result["objective"]["epoch"])


@pytest.mark.slow
def test_a_signal_in_a_validation_within_an_epoch_loses_no_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*SHORT, "+trainer.val_check_interval=5")
    assert typed(tmp_path, *words, "hydra.run.dir=whole").folder == "whole"

    def stop(self: Objective, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "on_validation_epoch_start", stop)
        assert typed(tmp_path, *words, "hydra.run.dir=cut").code == 143
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")
