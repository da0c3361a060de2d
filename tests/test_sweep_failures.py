"""Trials that fail, hang, or are mistaken: each is recorded with its cause, and harms no other."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forks import Fork, Forks, server
from optuna.trial import TrialState
from swept import HOLD, Swept, begin, left_behind, processes, run

OWN = """
    import math, os, time
    import torch
    from lightning import Callback
    from tunelab.tasks import Classification

    class Acts(Callback):
        "What befalls a trial in its first step."

        def __init__(self, **acts):
            self.acts = acts

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batch_size = str(trainer.train_dataloader.batch_size or trainer.train_dataloader.batch_sampler.batch_size)
            act = self.acts.get("all", self.acts.get("b" + batch_size))
            if act == "raise":
                raise ValueError(f"batches of {batch_size} are not liked")
            if act == "exit":
                os._exit(7)
            if act == "sleep":
                time.sleep(3600)
            if act == "spin":
                sum(range(10**13))  # in C, where no signal is heard

    class Nap(Callback):
        "Makes a trial as long as its batch_size says, in fiftieths of a second."

        def __init__(self, batch_size):
            self.seconds = batch_size / 50

        def on_train_start(self, trainer, pl_module):
            time.sleep(self.seconds)

    class Gate(Callback):
        "Has a trial wait until it is let go."

        def __init__(self, batch_size):
            self.batch_size = batch_size

        def on_train_start(self, trainer, pl_module):
            open(f"begun{self.batch_size}", "w").close()
            while not os.path.exists(f"go{self.batch_size}"):
                time.sleep(0.005)

    class Unmeasured(Classification):
        "Logs its loss alone."

        def __init__(self, **arguments):
            super().__init__(metrics={}, **arguments)
"""
ACTS = ("+callbacks.acts._target_=own.Acts",)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with server() as forks:
        yield forks


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's own in the folder of the command; what the command executes first to trust it."""
    (tmp_path / "own.py").write_text("\n".join(line[4:] for line in OWN.splitlines()))
    return "\n    import sys; sys.path.insert(0, os.getcwd()); os.environ['TUNELAB_TRUST'] = 'own'\n"


def attributes(swept: Swept, number: int) -> dict[str, str]:
    return swept.trials[number].user_attrs


@pytest.mark.slow
def test_a_failed_trial_is_recorded_with_its_cause_and_its_last_lines_and_the_others_go_on(
    forks: Forks, tmp_path: Path, own: str
) -> None:
    ended = run(forks, tmp_path, "epochs=1", "batch_size=8,16,32", *ACTS, "+callbacks.acts.b16=raise", before=own)
    swept = Swept(tmp_path)
    assert ended.code == 0, ended.text
    assert [trial.state.name for trial in swept.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "ValueError: batches of 16 are not liked" in attributes(swept, 1)["cause"]
    assert "\nValueError: batches of 16 are not liked\n" in attributes(swept, 1)["log"] + "\n"
    assert "Traceback" not in ended.text


@pytest.mark.slow
def test_trials_that_all_fail_in_the_same_way_end_the_search_after_three(
    forks: Forks, tmp_path: Path, own: str
) -> None:
    words = ("epochs=1", "batch_size=8,12,16,20,24", *ACTS, "+callbacks.acts.all=raise")
    ended = run(forks, tmp_path, *words, before=own)
    assert ended.code == 1
    assert "The first 3 trials failed in the same way:" in ended.text
    assert "batches of 16 are not liked" in ended.text
    assert f"tried again by the same command: python {forks_script()} -m data=iris" in ended.text
    assert "Traceback" not in ended.text
    assert [trial.state.name for trial in Swept(tmp_path).trials] == ["FAIL"] * 3


def forks_script() -> str:
    return str(Path(__file__).parents[1] / "train.py")


@pytest.mark.slow
def test_where_all_trials_fail_each_in_its_way_the_causes_are_said(forks: Forks, tmp_path: Path, own: str) -> None:
    acts = ("+callbacks.acts.b8=raise", "+callbacks.acts.b16=exit")
    ended = run(forks, tmp_path, "epochs=1", "batch_size=8,16", *ACTS, *acts, before=own)
    assert ended.code == 1
    assert "batches of 8 are not liked" in ended.text
    assert "ended by itself with exit code 7, 3 times" in ended.text
    assert "Traceback" not in ended.text


@pytest.mark.slow
def test_a_trial_that_ends_its_process_is_tried_three_times_and_harms_no_other(
    forks: Forks, tmp_path: Path, own: str
) -> None:
    words = ("epochs=2", "batch_size=8,16,32", "sweep.n_jobs=2", *ACTS, "+callbacks.acts.b8=exit")
    ended = run(forks, tmp_path, *words, before=own)
    swept = Swept(tmp_path)
    assert ended.code == 0, ended.text
    assert [trial.state.name for trial in swept.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert attributes(swept, 0)["cause"] == "its process ended by itself with exit code 7, 3 times"


@pytest.mark.slow
@pytest.mark.parametrize("act", ["sleep", "spin"])
def test_a_trial_that_hangs_is_ended_after_its_time(forks: Forks, tmp_path: Path, own: str, act: str) -> None:
    words = ("epochs=1", "batch_size=8,16", "sweep.trial_timeout=15", *ACTS, f"+callbacks.acts.b8={act}")
    ended = run(forks, tmp_path, *words, before=own)
    swept = Swept(tmp_path)
    assert ended.code == 0, ended.text
    assert [trial.state.name for trial in swept.trials] == ["FAIL", "COMPLETE"]
    assert attributes(swept, 0)["cause"] == "It took longer than sweep.trial_timeout=15 seconds."
    assert left_behind(tmp_path) == []


@pytest.mark.slow
def test_a_trial_whose_loss_is_never_finite_has_failed_and_is_not_tried_again(forks: Forks, tmp_path: Path) -> None:
    words = ("epochs=2", "optimizer=sgd", "lr=1e38,0.1")
    ended = run(forks, tmp_path, *words)
    swept = Swept(tmp_path)
    assert ended.code == 0, ended.text
    assert [trial.state.name for trial in swept.trials] == ["FAIL", "COMPLETE"]
    assert attributes(swept, 0)["kind"] == "diverged"
    assert "NaN" in attributes(swept, 0)["cause"] or "Inf" in attributes(swept, 0)["cause"]
    again = run(forks, tmp_path, *words)
    assert again.code == 0, again.text
    assert len(swept.trials) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "states", "again"),
    [
        (("warmup_steps=0,1", "warmup_fraction=0,0.5"), ["COMPLETE"] * 3 + ["FAIL"], 0),
        (("warmup_steps=0,1000",), ["COMPLETE", "FAIL"], 1),
    ],
    ids=["of its values", "of its data"],
)
def test_a_trial_that_makes_no_valid_recipe_fails_with_its_words_and_is_tried_again_where_the_data_may_differ(
    forks: Forks, tmp_path: Path, words: tuple[str, ...], states: list[str], again: int
) -> None:
    ended = run(forks, tmp_path, "epochs=1", *words)
    swept = Swept(tmp_path)
    assert ended.code == 0, ended.text
    assert [trial.state.name for trial in swept.trials] == states
    refused = len(states) - 1
    assert attributes(swept, refused)["kind"] == "refused"
    assert attributes(swept, refused)["cause"].startswith("`warmup_steps`")
    second = run(forks, tmp_path, "epochs=1", *words)
    assert second.code == 0, second.text
    assert len(swept.trials) == len(states) + again


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", [(), ("~task.metrics", "task._target_=own.Unmeasured")], ids=["seen before", "heard of a trial"]
)
def test_an_objective_that_is_never_logged_ends_the_search_with_its_first_trial_at_most(
    forks: Forks, tmp_path: Path, own: str, task: tuple[str, ...]
) -> None:
    words = ("epochs=1", "lr=0.1,0.01,0.001", "objective=val/los", "objective_direction=minimize")
    ended = run(forks, tmp_path, *words, *task, before=own)
    assert ended.code == 1, ended.text
    mistake = "`objective` must be a metric that this run logs, got val/los."
    assert mistake in [line[: len(mistake)] for line in ended.text.splitlines()]
    assert "val/loss" in ended.text
    assert len(Swept(tmp_path).trials) == bool(task)
    assert "Traceback" not in ended.text


@pytest.mark.slow
def test_after_its_time_a_search_begins_no_trial_and_those_that_run_end(forks: Forks, tmp_path: Path, own: str) -> None:
    sizes = ",".join(map(str, range(81, 121)))
    words = ("epochs=1", f"batch_size={sizes}", "sweep.timeout=12", "callbacks=[checkpoint]")
    nap = ("+callbacks.nap._target_=own.Nap", "+callbacks.nap.batch_size=${batch_size}")
    ended = run(forks, tmp_path, *words, *nap, before=own)
    assert ended.code == 0, ended.text
    trials = Swept(tmp_path).trials
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    begun = [t.datetime_start for t in trials if t.datetime_start is not None]
    assert max(begun).timestamp() - min(begun).timestamp() <= 12
    assert 1 <= len(trials) <= 8  # of 1.6 seconds and more each


@pytest.mark.slow
def test_workers_that_cannot_start_are_said_with_where_they_said_why(forks: Forks, tmp_path: Path) -> None:
    before = "\n    import tunelab.sweep.trial as trial; del trial.begin\n"
    ended = run(forks, tmp_path, "epochs=1", "lr=0.1,0.01", "objective_direction=maximize", before=before)
    assert ended.code == 1
    assert "No worker can be started: its process ended by itself with exit code 1" in ended.text
    assert "outputs/sweeps/swept/workers.log" in ended.text
    assert "AttributeError" in (tmp_path / "outputs/sweeps/swept/workers.log").read_text()
    assert Swept(tmp_path).numbers(TrialState.RUNNING) == []


def wait_for(fork: Fork, what: Callable[[], bool]) -> None:
    """Waits until something is so, while a command runs."""
    until = time.monotonic() + 600
    while not what():
        assert fork.poll() is None, fork.text
        assert time.monotonic() < until, fork.text
        time.sleep(0.005)


@pytest.mark.slow
def test_a_study_that_can_no_longer_be_written_is_said_and_what_runs_is_saved(forks: Forks, tmp_path: Path) -> None:
    full = """
    from tunelab.sweep.journal import Journal
    own_append = Journal.append_logs

    def append(self, logs):
        if os.path.exists("full"):
            raise OSError(28, "No space left on device")
        own_append(self, logs)

    Journal.append_logs = append
"""
    words = ("epochs=100", "lr=0.1,0.01", "sweep.n_jobs=2")
    (tmp_path / "hold").touch()
    swept, fork = Swept(tmp_path), begin(forks, tmp_path, *words, before=full + HOLD)
    wait_for(fork, lambda: len(list(swept.path.glob("[0-9]*/metrics.csv"))) == 2)
    (tmp_path / "full").touch()
    (tmp_path / "hold").unlink()
    assert fork.wait() == 1
    assert "The study can no longer be written: [Errno 28] No space left on device" in fork.text
    assert "Traceback" not in fork.text
    (tmp_path / "full").unlink()
    again = run(forks, tmp_path, *words, before=full)
    assert again.code == 0, again.text
    assert swept.numbers(TrialState.COMPLETE) == [0, 1]
    assert all("It goes on behind step" in swept.log(number) for number in (0, 1))


@pytest.mark.slow
def test_a_freed_place_takes_the_next_trial_at_once(forks: Forks, tmp_path: Path, own: str) -> None:
    """Two workers: each trial begins when one of the two before it has ended, while the other goes on."""
    sizes = list(range(20, 28))
    words = ("epochs=1", f"batch_size={','.join(map(str, sizes))}", "sweep.n_jobs=2", "callbacks=[checkpoint]")
    gate = ("+callbacks.gate._target_=own.Gate", "+callbacks.gate.batch_size=${batch_size}")
    fork, draw, inside = begin(forks, tmp_path, *words, *gate, before=own), random.Random(0), list[int]()
    for size in sizes:
        if len(inside) == 2:
            (tmp_path / f"go{inside.pop(draw.randrange(2))}").touch()
        wait_for(fork, (tmp_path / f"begun{size}").exists)
        inside.append(size)
    for size in inside:
        (tmp_path / f"go{size}").touch()
    assert fork.wait() == 0, fork.text
    assert [trial.params["batch_size"] for trial in Swept(tmp_path).trials] == sizes


def test_processes_are_those_that_work_in_a_folder(tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert processes(tmp_path) == [os.getpid()]
    finally:
        os.chdir(before)
