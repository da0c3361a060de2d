"""What the search makes of how its trials end, without workers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from tunelab import checkout
from tunelab.errors import ConfigError, RunFailed
from tunelab.sweep.search import Running, Search
from tunelab.sweep.slots import Slot
from tunelab.sweep.trials import Claim
from tunelab.sweep.worker import Ended, Job


def search_in(folder: Path) -> tuple[Search, list[tuple[int, TrialState]]]:
    """A search without workers, and how its trials end."""
    planned: Any = SimpleNamespace(folder=folder, is_sensitivity=False)
    told: Any = SimpleNamespace(signals=[])
    search, ended = Search(planned, "python train.py -m lr=1,2", told), []
    checkout.seen()  # the question to git has ended
    search.screen = SimpleNamespace(ended=lambda *how: None)  # type: ignore[assignment]
    search.trials = SimpleNamespace(  # type: ignore[assignment]
        end=lambda claim, state, **said: ended.append((claim.number, state))
    )
    search.results = SimpleNamespace(refresh=lambda now: None)  # type: ignore[assignment]
    search.is_first = True
    return search, ended


def test_a_search_that_its_timeout_ends_says_so_and_one_whose_reader_is_gone_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, _ = search_in(tmp_path)
    search.plan.dials = {"timeout": 8}  # type: ignore[misc]
    search.trials.all = lambda: []  # type: ignore[method-assign]
    search.trials.most, search.screen.done, search._until = 20, 1, 0.0  # type: ignore[misc]
    said: list[str] = []

    def conclude(plan: Any, trials: Any, slots: Any, cut: str) -> None:
        said.append(cut)
        raise BrokenPipeError

    monkeypatch.setattr(import_module("tunelab.sweep.search"), "conclude", conclude)
    with (tmp_path / "stdout").open("w") as aside, monkeypatch.context() as there:
        there.setattr("sys.stdout", aside)
        search._end(None)  # type: ignore[arg-type]
        search._until = None
        search._end(None)  # type: ignore[arg-type]
    assert said == ["Ended by sweep.timeout=8: 1 of 20 trials. The same command goes on.", ""]


@pytest.mark.parametrize(
    ("kind", "then"),
    [
        ("diverged", "The next trials are begun by the same command; these would diverge again: python train.py"),
        ("failed", "What has failed is tried again by the same command: python train.py"),
    ],
)
def test_the_first_trials_that_all_end_in_the_same_way_end_the_search_whether_they_fail_or_diverge(
    tmp_path: Path, kind: str, then: str
) -> None:
    search, ended = search_in(tmp_path)
    for number in range(3):
        assert not search.mistaken
        search._failed(Claim(number, number, {}), kind, f"The loss became NaN at step {number + 2}.")
    assert ended == [(number, TrialState.FAIL) for number in range(3)]
    said = "The first 3 trials failed in the same way:\nThe loss became NaN at step 4.\n"
    with pytest.raises(RunFailed, match=re.escape(said + then)):
        search._end(None)  # type: ignore[arg-type]


def test_a_trial_whose_folder_is_not_let_go_of_is_taken_up_again_before_it_fails(tmp_path: Path) -> None:
    search, ended = search_in(tmp_path)
    slot: Slot = object()  # type: ignore[assignment]
    running = Running(Claim(0, 0, {}), Job(tmp_path / "0", {}, {}))
    for attempt in range(3):
        search.running[slot] = running
        search._hear(slot, Ended("occupied", "process 7 has it"))
        assert search.running == {}
        assert (ended, len(search.waiting)) == (([], 1) if attempt < 2 else ([(0, TrialState.FAIL)], 0))
        running = search.waiting.pop() if search.waiting else running
    assert running.job.goes_on


def test_a_folder_that_is_not_let_go_of_is_no_mistake_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunelab.sweep import trial

    monkeypatch.setattr(trial, "SECONDS_TO_LET_GO", 0.0)

    @contextmanager
    def in_use(folder: Path, key: str) -> Iterator[None]:
        raise ConfigError("`hydra.sweep.dir` must be free, got process 7.")
        yield

    monkeypatch.setattr(trial, "in_use", in_use)
    link: Any = SimpleNamespace(stoppable=nullcontext)
    assert trial._run(Job(tmp_path, {}, {}), link) == Ended(
        "occupied", "`hydra.sweep.dir` must be free, got process 7."
    )
