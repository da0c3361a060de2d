"""Ctrl-C and SIGTERM: at whatever a run is, it ends in words, with 130 or 143, and goes on as if it had not."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_command import Outcome, typed
from test_resume import assert_the_same_run, scalars

import tunelab.run
from tunelab.callbacks import Checkpoint
from tunelab.checkpoints import AtomicCheckpointIO
from tunelab.data import BundledData
from tunelab.tasks import SupervisedTask, scored_weights

SWA = (
    "model=cnn",
    "size=tiny",
    "regularization=[swa]",
    "regularization.swa.start_fraction=0.3",
    "epochs=4",
    "threads=1",
)
PLACES: dict[str, tuple[Any, str, int]] = {  # whose function is called as the signal comes, and at which of its calls
    "reading the data": (BundledData, "read", 1),
    "recording": (tunelab.run, "record", 1),
    "building the trainer": (tunelab.run, "build_trainer", 1),
    "the first step": (SupervisedTask, "training_step", 1),
    "a step": (SupervisedTask, "training_step", 40),
    "the end of an epoch": (Checkpoint, "on_train_epoch_end", 2),
    "validation": (SupervisedTask, "validation_step", 2),
    "the last validation": (SupervisedTask, "validation_step", 4),
    "writing a checkpoint": (AtomicCheckpointIO, "save_checkpoint", 2),
    "the statistics of averaged weights": (scored_weights, "recalibrate", 2),
    "the end of the fit": (Checkpoint, "on_train_epoch_end", 4),
    "writing the result": (tunelab.run, "write_json", 2),
    "before the test": (tunelab.run, "score", 1),
    "the test": (SupervisedTask, "test_step", 1),
    "the end of the test": (SupervisedTask, "on_test_epoch_end", 1),
}
BEFORE_THE_FIRST_STEP = ("reading the data", "recording", "building the trainer")


def at(place: tuple[Any, str, int], act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Has something happen at a call of a function."""
    owner, name, call = place
    own, calls = getattr(owner, name), 0

    def acted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            act()
        return own(*arguments, **keywords)

    monkeypatch.setattr(owner, name, acted)


def signalled(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str, int], *arguments: str, number: int = 2
) -> Outcome:
    """A command that gets a signal at a call of a function."""
    sent: list[int] = []

    def send() -> None:
        sent.append(number)
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        at(place, send, patch)
        outcome = typed(folder, *arguments)
    assert sent, outcome.text
    return outcome


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert typed(folder, *SWA, "hydra.run.dir=run").code == 0
    return folder / "run"


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(name, marks=() if name in ("reading the data", "the last validation") else [slow])
        for slow in [pytest.mark.slow]
        for name in PLACES
    ],
)
def test_a_run_ends_wherever_it_is_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, place: str
) -> None:
    number = signal.SIGTERM if len(place) % 2 else signal.SIGINT
    outcome = signalled(tmp_path, monkeypatch, PLACES[place], *SWA, "hydra.run.dir=cut", number=number)
    assert outcome.code == 128 + number, outcome.text
    assert "Traceback" not in outcome.text
    if place in BEFORE_THE_FIRST_STEP:
        assert "Interrupted before the first checkpoint: there is nothing to continue from." in outcome.text
        return
    assert outcome.text.count("Interrupted. To continue: python train.py resume=cut") == 1
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(whole, tmp_path / "cut")
    assert scalars(tmp_path / "cut") == scalars(whole)
    assert [path.name for path in (tmp_path / "cut").rglob(".*")] == []


@pytest.mark.slow
@pytest.mark.parametrize("place", ["a step", pytest.param("writing a checkpoint", marks=pytest.mark.slow)])
def test_a_second_signal_ends_a_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], whole: Path, place: str
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    with monkeypatch.context() as patch:
        at(PLACES[place], twice, patch)
        outcome = typed(tmp_path, *SWA, "hydra.run.dir=cut")
    assert outcome.code == 130, outcome.text
    assert "Traceback" not in outcome.text
    assert capfd.readouterr().err.count("Ending after this step. Ctrl-C again ends at once, without saving.") == 1
    step = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert f"To continue from step {step}, where it was last saved: python train.py resume=cut" in outcome.text
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(whole, tmp_path / "cut")


@pytest.mark.slow
def test_a_run_without_checkpoints_says_where_the_last_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("size=tiny", "epochs=1", "threads=1", "test=false")
    assert typed(tmp_path, *words, "hydra.run.dir=run").code == 0
    step = (SupervisedTask, "training_step", 10)
    outcome = signalled(tmp_path, monkeypatch, step, "resume=run", "epochs=3", "callbacks=[]", number=15)
    assert outcome.code == 143
    assert "Interrupted. To continue from step 23, where it was last saved: python train.py resume=run" in outcome.text
    outcome = signalled(tmp_path, monkeypatch, step, *words, "callbacks=[]", "hydra.run.dir=new")
    assert outcome.code == 130
    assert "Interrupted before the first checkpoint: there is nothing to continue from." in outcome.text


def test_a_long_step_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = SupervisedTask.training_step

    def slow(self: SupervisedTask, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            until = time.monotonic() + 1
            while time.monotonic() < until:
                time.sleep(0.1)
        return own(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTask, "training_step", slow)
        outcome = typed(tmp_path, *SWA, "hydra.run.dir=cut")
    assert outcome.code == 143, outcome.text
    result = (tmp_path / "cut" / "result.json").read_text()
    assert '"steps": 4' in result


@pytest.mark.slow
def test_hydras_own_sweep_ends_with_the_run_that_is_ended_and_says_how_to_continue_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = (SupervisedTask, "training_step", 30)  # of the second job
    words = ("-m", "hydra/sweeper=basic", *("size=tiny", "epochs=1", "threads=1", "hydra.sweep.dir=sweep"))
    outcome = signalled(tmp_path, monkeypatch, place, *words, "lr=1e-3,1e-2,1e-1")
    assert outcome.code == 130, outcome.text
    assert "Traceback" not in outcome.text
    assert "Interrupted. To continue: python train.py resume=sweep/1" in outcome.text
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()) == ["0", "1"]
    assert typed(tmp_path, "resume=sweep/1").folder == "sweep/1"
    assert multiprocessing.active_children() == []
