"""One process trains in a folder: a second is refused while it does, and only then."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from test_command import Outcome, in_process_of_its_own, refused, typed

from tunelab.errors import ConfigError
from tunelab.folder import in_use

HOLDER = """
    import os, sys, time
    from pathlib import Path
    from tunelab.folder import in_use
    with in_use(Path(sys.argv[1]), "resume"):
        if len(sys.argv) > 2 and not os.fork():
            time.sleep(600)
        print("locked", flush=True)
        time.sleep(600)
"""


@contextmanager
def holder(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder in use; with a further word, one that has forked a worker."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_in_use_is_refused_at_once_with_the_process_that_uses_it(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        sentence = f"got {tmp_path}, which is in use by process {other.pid} on {platform.node()}. Wait for it, or end"
        with pytest.raises(ConfigError, match=re.escape(sentence)), in_use(tmp_path, "resume"):
            pass
        assert (tmp_path / ".lock").is_file()


@pytest.mark.parametrize("words", [(), ("forked",)], ids=["alone", "with a worker that lives on"])
def test_a_killed_process_lets_go_of_its_folder(tmp_path: Path, words: tuple[str, ...]) -> None:
    with holder(tmp_path, *words) as other:
        other.kill()
        other.wait()
        with in_use(tmp_path, "resume"):
            assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {platform.node()}"
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_behind_when_a_run_ends_or_fails(tmp_path: Path) -> None:
    with in_use(tmp_path, "resume"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with pytest.raises(KeyError), in_use(tmp_path, "resume"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_removed_meanwhile_is_no_error(tmp_path: Path) -> None:
    with in_use(tmp_path, "resume"):
        (tmp_path / ".lock").unlink()
        tmp_path.rmdir()
    assert not tmp_path.exists()


def test_a_lock_that_was_removed_as_it_was_taken_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = fcntl.lockf, []

    def lock(file: Any, how: int) -> None:
        if not taken:  # its owner ends between our open and our lock
            (tmp_path / ".lock").unlink()
        taken.append(file)
        real(file, how)

    monkeypatch.setattr(fcntl, "lockf", lock)
    with in_use(tmp_path, "resume"):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {platform.node()}"
    assert len(taken) == 2


def test_where_files_cannot_be_locked_a_run_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with in_use(tmp_path, "resume"):
        ran = True
    assert ran
    with in_use(tmp_path / "missing", "resume"):
        pass


def test_of_many_that_begin_at_once_one_has_the_folder_at_a_time(tmp_path: Path) -> None:
    program = """
        import os, sys, time
        from pathlib import Path
        from tunelab.errors import ConfigError
        from tunelab.folder import in_use
        folder, had = Path(sys.argv[1]), 0
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                with in_use(folder, "resume"):
                    os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
                    os.unlink(folder / "inside")
                    had += 1
            except ConfigError:
                pass
        print(had)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate()[0] for process in several]
    assert [process.returncode for process in several] == [0] * 4  # none met another inside
    assert sum(map(int, said)) > 4
    assert list(tmp_path.iterdir()) == []


# ---- the command


def run(folder: Path, *words: str) -> Outcome:
    return typed(folder, "size=tiny", "epochs=2", "test=false", "logger=[csv]", "hydra.run.dir=run", *words)


@pytest.mark.slow
def test_a_resume_of_a_run_that_is_going_on_is_refused_and_works_when_it_has_ended(tmp_path: Path) -> None:
    run(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with holder(tmp_path / "run") as other:
        text = refused(typed(tmp_path, "resume=run", "epochs=3"), 1)
        assert "`resume` must be a folder in which no other run is going on, got " in text
        assert f"in use by process {other.pid} on" in text
        # a checkpoint of the run is in the same folder
        refused(typed(tmp_path, "resume=run/checkpoints/last.ckpt", "epochs=3"), 1)
    after = {path: path.read_bytes() for path in before}
    assert after == before
    assert typed(tmp_path, "resume=run", "epochs=3").folder == "run"
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_new_run_is_refused_a_folder_in_use_and_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("tunelab.command._run_folder", lambda cfg, overrides: tmp_path / "run")
    with holder(tmp_path / "run"):
        assert "`hydra.run.dir` must be a folder in which no other run is going on" in refused(run(tmp_path), 1)
        assert (tmp_path / "run" / ".lock").is_file()


@pytest.mark.slow
def test_a_resume_beside_the_run_itself_is_refused_and_the_run_goes_on(tmp_path: Path) -> None:
    words = ("size=tiny", "epochs=100000", "test=false", "logger=[csv]", "hydra.run.dir=run")
    command = [sys.executable, str(Path(__file__).parents[1] / "train.py"), *words]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file():
                assert process.poll() is None
                time.sleep(0.1)
            text = refused(in_process_of_its_own(tmp_path, "resume=run", "epochs=200000"), 1)
            assert f"in use by process {process.pid} on" in text
            assert process.poll() is None
        finally:
            process.kill()
    assert (tmp_path / "run" / ".lock").is_file()  # of a process that is no more
