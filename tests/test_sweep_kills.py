"""kill -9 of a sweep, of a worker or of what starts them: the same command ends as if there had been none."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from forks import Fork, Forks, server
from optuna.trial import TrialState
from swept import Swept, begin, end, left_behind, run, servers, workers

SEARCHES: dict[str, tuple[str, ...]] = {
    "grid": ("lr=0.3,0.1,0.03,0.01,0.003,0.001", "batch_size=16,32"),
    "random": ("sweep=random", "sweep.n_trials=12", "lr=tag(log,interval(1e-4,1))", "batch_size=16,32"),
    "qmc": ("sweep=qmc", "sweep.n_trials=12", "lr=tag(log,interval(1e-4,1))", "batch_size=16,32"),
}
KILLS = 5
"""In each of twenty sweeps."""

Who = Literal["sweep", "worker", "server"]


@dataclass(frozen=True)
class Kill:
    """A kill.

    Args:
        who: Which process.
        share: How long the study's file is by then, as a share of what it comes to without any kill.
        seconds: How much later.
        which: Of the workers, as a share.
    """

    who: Who
    share: float
    seconds: float
    which: float


def kills() -> list[Any]:
    """Twenty times five moments, each with its search and how many trials run at once."""
    draw, found = random.Random(5), []
    for number in range(20):
        shares = sorted(draw.uniform(0.0, 0.97) for _ in range(KILLS))
        whom: list[Who] = draw.choices(("sweep", "worker", "server"), (6, 3, 1), k=KILLS)
        moments = [Kill(w, s, draw.uniform(0, 0.03), draw.random()) for w, s in zip(whom, shares, strict=True)]
        search = list(SEARCHES)[number % 3]
        found.append(pytest.param(search, 1 + number % 2, moments, id=f"{number}-{search}"))
    return found


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with server() as forks:
        yield forks


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Swept]:
    found = {}
    for search, words in SEARCHES.items():
        folder = tmp_path_factory.mktemp(search)
        ended = run(forks, folder, "epochs=3", *words)
        assert ended.code == 0, ended.text
        found[search] = Swept(folder)
    return found


def size(swept: Swept) -> int:
    journal = swept.path / "study.journal"
    return journal.stat().st_size if journal.exists() else 0


def wait_for(fork: Fork, what: Any) -> Any:
    """What something is as soon as it is true; nothing if the command has ended well before."""
    until = time.monotonic() + 600
    while not (found := what()):
        if fork.poll() is not None:
            assert fork.code == 0, fork.text
            return None
        assert time.monotonic() < until, fork.text
        time.sleep(0.001)
    return found


def strike(fork: Fork, folder: Path, kill: Kill) -> None:
    """Kills a process of a sweep; none if all has ended, which on a busy machine may be."""
    if kill.who == "sweep":
        fork.kill()
        assert fork.wait() in (-signal.SIGKILL, 0), fork.text
    else:
        find = workers if kill.who == "worker" else servers
        if there := wait_for(fork, lambda: find(fork, folder)):
            end([there[int(kill.which * len(there))]])


def complete(swept: Swept) -> dict[int, Any]:
    """Of each trial that the study has as complete what it reached, and when its files were written."""
    return {t.number: (t.params, t.value, swept.written(t.number)) for t in swept.trials if t.state.name == "COMPLETE"}


def changes(before: dict[int, Any], now: dict[int, Any]) -> dict[int, Any]:
    """What is otherwise than it was of the trials that were complete."""
    return {number: (trial, now.get(number)) for number, trial in before.items() if now.get(number) != trial}


@pytest.mark.slow
@pytest.mark.parametrize(("search", "n_jobs", "moments"), kills())
def test_a_sweep_that_is_killed_at_any_moment_ends_as_if_it_had_not_been(
    forks: Forks, tmp_path: Path, whole: dict[str, Swept], search: str, n_jobs: int, moments: list[Kill]
) -> None:
    swept, words = Swept(tmp_path), ("epochs=3", *SEARCHES[search], f"sweep.n_jobs={n_jobs}")
    full, before = size(whole[search]), dict[int, Any]()
    fork = begin(forks, tmp_path, *words)
    for kill in moments:
        if fork.code is not None:
            fork = begin(forks, tmp_path, *words)
        wait_for(fork, lambda kill=kill: size(swept) >= kill.share * full)
        time.sleep(kill.seconds)
        strike(fork, tmp_path, kill)
        now = complete(swept)
        assert changes(before, now) == {}
        before = now
    if fork.code is not None:
        fork = begin(forks, tmp_path, *words)
    assert fork.wait() == 0, fork.text
    assert swept.ended == whole[search].ended
    assert swept.numbers(TrialState.COMPLETE) == list(range(12))
    assert changes(before, complete(swept)) == {}
    assert left_behind(tmp_path) == []
