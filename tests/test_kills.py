"""A run that is killed at any moment has a whole checkpoint, loses one interval, and goes on as if it had not been."""

from __future__ import annotations

import os
import random
import re
import signal
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forks import Fork, Forks, server
from test_resume import assert_the_same_run, scalars

from tunelab.callbacks import Checkpoint
from tunelab.callbacks.checkpoint import MOST_SHARE
from tunelab.checkpoints import ENTRIES, AtomicCheckpointIO, read_checkpoint

EPOCHS, STEPS = 60, 60 * 23
BAR = "trainer.enable_progress_bar=false"
COMMAND = ("size=tiny", f"epochs={EPOCHS}", "threads=1", "regularization=[dropout]", BAR)
EVERY_SECONDS = 0.05
OFTEN = "import tunelab.callbacks.checkpoint; tunelab.callbacks.checkpoint.MOST_SHARE = 0.5"
"""Half of the time goes into saving, so that half of the kills fall into it."""

NOTES = """
    import mmap, struct, sys, time
    from tunelab.callbacks import Checkpoint, Objective
    with open("{path}", "r+b") as file:
        notes = mmap.mmap(file.fileno(), 0)
    own = Checkpoint.save

    def note(self, trainer, *rest):  # the steps done, and when each was
        struct.pack_into("d", notes, 8 + 32 * trainer.global_step, time.monotonic())
        struct.pack_into("q", notes, 0, trainer.global_step)

    def save(self, trainer, *rest, **keywords):  # when one began and ended, and when the next is due
        began = time.monotonic()
        own(self, trainer, *rest, **keywords)
        struct.pack_into("ddd", notes, 16 + 32 * trainer.global_step, began, time.monotonic(), self._next)

    Objective.on_train_batch_end = note
    Checkpoint.save = save
"""
PARTS = re.compile(
    r"config\.yaml|run\.json|data_spec\.json|facts\.json|members\.npz|metrics(\.before_resume)?\.csv|train\.log|tensorboard/events\.out\.tfevents\.[^/]+"
    r"|checkpoints/(last|previous|best)\.ckpt"
)
LEFT_BY_A_KILL = re.compile(
    r"\.lock|\.(config\.yaml|run\.json|data_spec\.json|facts\.json|members\.npz|metrics\.csv)\.aside"
    r"|checkpoints/(\.last\.ckpt\.new(\.aside)?|\.(best|previous)\.ckpt\.aside)"
)


class Notes:
    """What a run said of itself up to its last moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(8 + 32 * (STEPS + 1)))

    @property
    def before(self) -> str:
        return NOTES.format(path=self.path)

    @property
    def steps(self) -> int:
        return int(struct.unpack_from("q", self.path.read_bytes(), 0)[0])

    def time(self, step: int) -> float:
        """When a step was done, by time.monotonic."""
        return float(struct.unpack_from("d", self.path.read_bytes(), 8 + 32 * step)[0])

    def save(self, step: int) -> tuple[float, float, float]:
        """When the save after a step began and ended, and when the next was due; zeros if the kill ended it."""
        began, ended, due = struct.unpack_from("ddd", self.path.read_bytes(), 16 + 32 * step)
        return began, ended, due


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with server() as forks:
        yield forks


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    ended = forks.run(folder, *COMMAND, "hydra.run.dir=whole")
    assert ended.code == 0, ended.text
    return folder / "whole"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def killed(forks: Forks, folder: Path, notes: Notes, step: int, seconds: float, *words: str, before: str = "") -> Fork:
    """A run that is killed so many seconds after a step."""
    fork = forks.start(folder, *COMMAND, *words, "hydra.run.dir=cut", before=f"{notes.before}\n    {before}")
    until = time.monotonic() + 600
    while notes.steps < step:
        assert fork.poll() is None, fork.text
        assert time.monotonic() < until, fork.text
        time.sleep(0.001)
    time.sleep(seconds)
    fork.kill()
    assert fork.wait() == -signal.SIGKILL, fork.text
    return fork


def moments() -> list[Any]:
    """Fifty of them: after which step, how much later, whether half of the time goes into saving, whether to resume."""
    draw = random.Random(9)
    return [(draw.randrange(1, STEPS - 100), draw.uniform(0, 0.02), n % 2, n % 4 == 1) for n in range(50)]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "seconds", "often", "resumes"), moments())
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint_and_costs_one_interval(
    forks: Forks, tmp_path: Path, whole: Path, step: int, seconds: float, often: int, resumes: bool
) -> None:
    notes = Notes(tmp_path / "notes")
    words = (f"callbacks.checkpoint.every_seconds={EVERY_SECONDS}",)
    killed(forks, tmp_path, notes, step, seconds, *words, before=OFTEN if often else "")
    folder = tmp_path / "cut"
    saved = read_checkpoint(folder / "checkpoints" / "last.ckpt", "resume")["global_step"]
    for other in (folder / "checkpoints").glob("[!.]*.ckpt"):
        read_checkpoint(other, "resume")
    began, ended, due = notes.save(saved)
    assert due <= ended + max(EVERY_SECONDS, (ended - began) / (0.5 if often else MOST_SHARE))
    # no step begins when a save is due: the last one may have ended since, and the kill have come in the save after it
    assert all(notes.time(step) < due for step in range(saved + 1, notes.steps))
    unknown = {name for name in files(folder) if not PARTS.fullmatch(name) and not LEFT_BY_A_KILL.fullmatch(name)}
    assert unknown == set()
    if resumes:
        ended = forks.run(tmp_path, "resume=cut")
        assert ended.code == 0, ended.text
        assert_the_same_run(whole, folder)
        assert scalars(folder) == scalars(whole)
        assert {name for name in files(folder) if not PARTS.fullmatch(name)} == {"result.json"}


# ---- within a save


class KilledError(BaseException):
    """In the place of a kill: nothing of ours catches it, so nothing is tidied up."""


STEPS_OF_A_SAVE = ("replace", "link", "fsync", "unlink")


def save(folder: Path, states: list[int], *, best: bool, kill_at: int = 0) -> int:
    """Writes states one after the other; the last save is killed at one of its calls of the system.

    Returns:
        How many calls it made.
    """
    checkpoint, calls = Checkpoint(every_seconds=0), 0
    checkpoint.folder = folder / "checkpoints"
    own = {name: getattr(os, name) for name in STEPS_OF_A_SAVE}

    def called(name: str) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                raise KilledError
            return own[name](*arguments, **keywords)

        return call

    for step in states:
        state = {**dict.fromkeys(ENTRIES), "state_dict": {"w": torch.full((64,), float(step))}}
        trainer: Any = SimpleNamespace(
            loggers=[],
            is_global_zero=True,
            save_checkpoint=partial(AtomicCheckpointIO().save_checkpoint, {**state, "global_step": step}),
        )
        with pytest.MonkeyPatch.context() as patch:
            if step == states[-1]:
                for name in STEPS_OF_A_SAVE:
                    patch.setattr(os, name, called(name))
            checkpoint.save(trainer, None, best=best)  # type: ignore[arg-type]
    return calls


@pytest.mark.parametrize("best", [True, False], ids=["best", "not the best"])
def test_a_kill_between_any_two_calls_of_a_save_leaves_the_former_state_or_the_new_one(
    tmp_path: Path, best: bool
) -> None:
    calls = save(tmp_path / "uninterrupted", [1, 2, 3], best=best)
    assert calls >= 6  # or the patched names are not those that the code calls
    for kill_at in range(1, calls + 1):
        folder = tmp_path / str(kill_at)
        with pytest.raises(KilledError):
            save(folder, [1, 2, 3], best=best, kill_at=kill_at)
        kept = {
            p.stem: read_checkpoint(p, "resume")["global_step"] for p in (folder / "checkpoints").glob("[!.]*.ckpt")
        }
        assert kept["last"] in (2, 3)
        assert kept["previous"] in (1, 2)
        assert kept.get("best", 2) in (2, 3)
        save(folder, [4, 5], best=best)  # what it left lying about is in nobody's way
        assert files(folder) == files(tmp_path / "uninterrupted")
