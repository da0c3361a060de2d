"""A disk that fills up ends a run in words wherever it is met; its last good checkpoint is whole, and it goes on."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import Forks, server
from test_command import refused, typed
from test_resume import assert_the_same_run

from tunelab.checkpoints import read_checkpoint

COMMAND = ("size=tiny", "epochs=20", "threads=1", "callbacks.checkpoint.every_seconds=0.02")
BAR = "trainer.enable_progress_bar=false"
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with server() as forks:
        yield forks


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert typed(folder, *COMMAND, "hydra.run.dir=run").code == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [1, 2, 3, 4, 6, 8, 10, 14, 20, 30, 38])
def test_a_run_whose_files_may_not_grow_ends_in_words_and_goes_on_when_they_may(
    forks: Forks, tmp_path: Path, whole: Path, kilobytes: int
) -> None:
    """A checkpoint of it has 39 kB, the events 11, metrics.csv 6, config.yaml 3.5, run.json 1.6."""
    ended = forks.run(tmp_path, *COMMAND, BAR, "hydra.run.dir=cut", before=LIMIT.format(1000 * kilobytes))
    assert ended.code == 1, ended.text
    assert "Traceback" not in ended.text
    assert "The run could not write" in ended.text
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    if last.is_file():
        read_checkpoint(last, "resume")
        assert forks.run(tmp_path, "resume=cut").code == 0
        assert_the_same_run(whole, tmp_path / "cut")


WRITERS = {"a checkpoint": (".ckpt", 4), "the result": ("result.json", 1)}


def full(patch: pytest.MonkeyPatch, ending: str, number: int, code: int) -> None:
    """Has files with this ending no longer be written, from so many times on."""
    own, seen = os.replace, 0

    def replace(source: Any, target: Any, **keywords: Any) -> None:
        nonlocal seen
        seen += str(target).endswith(ending)
        if str(target).endswith(ending) and seen >= number:
            raise OSError(code, os.strerror(code))
        own(source, target, **keywords)

    patch.setattr(os, "replace", replace)


def test_a_metrics_csv_that_cannot_be_written_costs_its_lines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    with monkeypatch.context() as patch:
        full(patch, "metrics.csv", 3, errno.ENOSPC)
        outcome = typed(tmp_path, *COMMAND, "hydra.run.dir=cut")
    assert outcome.code == 0, outcome.text
    assert outcome.text.count("metrics.csv cannot be written (No space left on device)") == 1
    assert "metrics.csv lacks what was logged from step" in outcome.text
    shutil.copy(whole / "metrics.csv", tmp_path / "cut" / "metrics.csv")
    assert_the_same_run(whole, tmp_path / "cut")


@pytest.mark.parametrize("code", [errno.ENOSPC, pytest.param(errno.EDQUOT, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", list(WRITERS))
def test_a_disk_that_is_full_when_something_is_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, what: str, code: int
) -> None:
    with monkeypatch.context() as patch:
        full(patch, *WRITERS[what], code)
        text = refused(typed(tmp_path, *COMMAND, "hydra.run.dir=cut"), 1)
    assert os.strerror(code) in text
    assert re.search(r"cut/checkpoints/last\.ckpt is whole\..*python train\.py resume=\S*cut", text, re.DOTALL)
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(whole, tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["previous", "best"])
def test_a_run_goes_on_from_an_older_state_of_its_own(tmp_path: Path, forks: Forks, whole: Path, which: str) -> None:
    kill = """
        import os
        import tunelab.callbacks.checkpoint
        from tunelab.callbacks import Objective
        tunelab.callbacks.checkpoint.MOST_SHARE = 0.5
        def stop(self, trainer, *rest):
            if trainer.global_step == 300:
                os.kill(os.getpid(), 9)
        Objective.on_train_batch_end = stop
    """
    assert forks.run(tmp_path, *COMMAND, BAR, "hydra.run.dir=cut", before=kill).code == -9
    resumed = forks.run(tmp_path, f"resume=cut/checkpoints/{which}.ckpt")
    assert resumed.code == 0, resumed.text
    assert_the_same_run(whole, tmp_path / "cut")


@pytest.mark.slow
def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(
    tmp_path: Path, forks: Forks, whole: Path
) -> None:
    several = [forks.start(tmp_path, *COMMAND, BAR) for _ in range(3)]
    assert [each.wait() for each in several] == [0, 0, 0]
    folders = sorted((tmp_path / "outputs" / "digits-mlp").iterdir())
    assert len(folders) == 3
    for folder in folders:
        assert_the_same_run(whole, folder)
