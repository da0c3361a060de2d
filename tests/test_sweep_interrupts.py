"""Ctrl-C and SIGTERM to a sweep, also of a terminal that sends them to all its processes at once."""

from __future__ import annotations

import os
import pty
import select
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from forks import REPOSITORY, Fork, Forks, server
from optuna.trial import TrialState
from swept import HOLD, TINY, Swept, begin, left_behind, processes, run

WORDS = ("epochs=100", "lr=0.1,0.01,0.001", "sweep.n_jobs=2")
CTRL_C = b"\x03"
LONG = "epochs=10000"
"""Of trials that do not end before they are told to."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with server() as forks:
        yield forks


def wait_for(fork: Fork, what: Callable[[], object]) -> None:
    until = time.monotonic() + 600
    while not what():
        assert fork.poll() is None, fork.text
        assert time.monotonic() < until, fork.text
        time.sleep(0.002)


def running(swept: Swept) -> bool:
    """Whether two trials make steps."""
    return len(list(swept.path.glob("[0-9]*/metrics.csv"))) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_has_the_trials_save_and_the_same_command_goes_on(
    forks: Forks, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "hold").touch()
    swept, fork = Swept(tmp_path), begin(forks, tmp_path, *WORDS, before=HOLD)
    wait_for(fork, lambda: running(swept))
    fork.kill(number)
    if number == signal.SIGTERM:  # as `timeout` does: to its child, and then to all of its group
        time.sleep(0.3)
        fork.kill(number)
    assert fork.wait() == 128 + number
    typed = shlex.join(["python", str(REPOSITORY / "train.py"), *TINY, *WORDS])
    assert fork.text.splitlines()[-1] == f"Interrupted. To go on: {typed}"
    assert "Traceback" not in fork.text
    assert left_behind(tmp_path) == []
    assert swept.numbers(TrialState.WAITING) == [0, 1]
    (tmp_path / "hold").unlink()
    again = run(forks, tmp_path, *WORDS, before=HOLD)
    assert again.code == 0, again.text
    assert swept.numbers(TrialState.COMPLETE) == [0, 1, 2]
    assert all("It goes on behind step" in swept.log(trial) for trial in (0, 1))


@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_loses_nothing_that_has_ended(forks: Forks, tmp_path: Path) -> None:
    hangs = """
    from tunelab.sweep import trial
    own_report = trial.Reports.on_validation_end
    def slow(self, trainer, *rest):
        own_report(self, trainer, *rest)
        while trainer.max_epochs > 2:
            open("hangs", "w").close()
            sum(range(10**7))
    trial.Reports.on_validation_end = slow
"""
    swept, words = Swept(tmp_path), ("lr=0.1", "epochs=1,400", "sweep.n_jobs=1")
    fork = begin(forks, tmp_path, *words, before=hangs)
    wait_for(fork, (tmp_path / "hangs").exists)
    before = swept.written(0)
    fork.kill(signal.SIGINT)
    wait_for(fork, lambda: "Ctrl-C again ends at once" in fork.text)
    assert fork.poll() is None
    fork.kill(signal.SIGINT)
    assert fork.wait() == 130
    assert "Traceback" not in fork.text
    assert left_behind(tmp_path) == []
    assert [trial.state.name for trial in swept.trials] == ["COMPLETE", "WAITING"]
    assert swept.written(0) == before


@pytest.mark.slow
def test_a_signal_while_the_winner_is_scored_ends_the_search_which_scores_it_the_next_time(
    forks: Forks, tmp_path: Path
) -> None:
    slow = """
    from tunelab.sweep import trial
    import time
    own_score = trial.test_score
    def score(folder):
        open("scoring", "w").close()
        time.sleep(0 if os.path.exists("quick") else 3600)
        return own_score(folder)
    trial.test_score = score
"""
    words = ("epochs=1", "lr=0.1,0.01")
    swept, fork = Swept(tmp_path), begin(forks, tmp_path, *words, before=slow)
    wait_for(fork, (tmp_path / "scoring").exists)
    fork.kill(signal.SIGTERM)
    assert fork.wait() == 143
    assert "Interrupted. To go on: python" in fork.text
    assert "Traceback" not in fork.text
    assert left_behind(tmp_path) == []
    (tmp_path / "quick").touch()
    again = run(forks, tmp_path, *words, before=slow)
    assert again.code == 0, again.text
    assert "test/accuracy" in again.text
    assert swept.numbers(TrialState.COMPLETE) == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3])
def test_two_signals_while_a_search_composes_end_it_in_words(
    forks: Forks, tmp_path: Path, number: signal.Signals, seconds: float
) -> None:
    slow = """
    from tunelab.sweep import plan
    import time
    def refuse(recipes):
        try:
            open("composing", "w").close()
            time.sleep(3600)
        finally:
            time.sleep(0.1)
    plan.refuse_mistakes = refuse
"""
    fork = begin(forks, tmp_path, *WORDS, before=slow)
    wait_for(fork, (tmp_path / "composing").exists)
    fork.kill(number)
    time.sleep(seconds)
    fork.kill(number)
    assert fork.wait() == 128 + number
    typed = shlex.join(["python", str(REPOSITORY / "train.py"), *TINY, *WORDS])
    assert fork.text.splitlines() == [f"Interrupted. To go on: {typed}"]
    assert left_behind(tmp_path) == []


@dataclass
class Terminal:
    """A command under a terminal, which sends Ctrl-C to all of its foreground processes.

    Args:
        folder: Its working directory.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.said = b""
        self.pid, self.screen = pty.fork()
        if not self.pid:
            os.chdir(self.folder)
            os.execv(sys.executable, [sys.executable, str(REPOSITORY / "train.py"), *TINY, *WORDS, LONG])

    def read(self, seconds: float) -> bool:
        """Reads for some time; whether anybody may still write."""
        if select.select([self.screen], [], [], seconds)[0]:
            try:
                self.said += os.read(self.screen, 65536)
            except OSError:
                return False
        return True

    def press(self, what: bytes) -> None:
        os.write(self.screen, what)

    def end(self) -> int:
        """Its exit code, once all its processes have ended."""
        until = time.monotonic() + 600
        while self.read(0.1):
            assert time.monotonic() < until, self.said
        os.close(self.screen)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def begun(folder: Path) -> bool:
    return Swept(folder).path.exists()


def loading(folder: Path) -> bool:
    """Whether the process that the workers are forked from is there."""
    return len(processes(folder)) >= 3


def steps(folder: Path) -> bool:
    return running(Swept(folder))


@pytest.mark.slow
@pytest.mark.parametrize("moment", [begun, loading, steps])
def test_a_ctrl_c_at_a_terminal_ends_in_words_whatever_the_search_is_at(
    tmp_path: Path, moment: Callable[[Path], bool]
) -> None:
    terminal = Terminal(tmp_path)
    until = time.monotonic() + 600
    while not moment(tmp_path):
        assert terminal.read(0.005), terminal.said
        assert time.monotonic() < until, terminal.said
    terminal.press(CTRL_C)
    assert terminal.end() == 130
    said = terminal.said.decode()
    assert "Interrupted. To go on: python" in said
    assert "Traceback" not in said
    assert "KeyboardInterrupt" not in said
    assert left_behind(tmp_path) == []
    assert Swept(tmp_path).numbers(TrialState.RUNNING) == []
