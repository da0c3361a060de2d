"""The same command again: what is missing is done, nothing is done twice, and what belongs to others stays."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import Fork, Forks, server
from optuna.trial import TrialState
from swept import HOLD, Swept, begin, left_behind, run
from test_resume import assert_the_same_run

from tunelab.errors import ConfigError
from tunelab.sweep.leftovers import is_begun

RANDOM = ("epochs=2", "sweep=random", "lr=tag(log,interval(1e-3,1e-1))")
LOOK = """
    import tunelab.sweep.slots
    def no(*arguments):
        raise AssertionError("a worker was started")
    tunelab.sweep.slots.Slots.start = no
"""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with server() as forks:
        yield forks


def wait_for(fork: Fork, path: Path, lines: int = 0) -> None:
    """Waits until a file is there, and has so many lines."""
    until = time.monotonic() + 600
    while not (path.exists() and (not lines or len(path.read_text().splitlines()) >= lines)):
        assert fork.poll() is None, fork.text
        assert time.monotonic() < until, fork.text
        time.sleep(0.002)


@pytest.mark.slow
def test_the_same_command_adds_what_is_missing_and_starts_nothing_where_there_is_nothing(
    forks: Forks, tmp_path: Path
) -> None:
    swept = Swept(tmp_path)
    assert run(forks, tmp_path, *RANDOM, "sweep.n_trials=2").code == 0
    first, written = swept.ended, [swept.written(0), swept.written(1)]
    more = run(forks, tmp_path, *RANDOM, "sweep.n_trials=4")
    assert more.code == 0, more.text
    assert list(swept.ended) == [0, 1, 2, 3]
    assert {n: swept.ended[n] for n in first} == first
    assert [swept.written(0), swept.written(1)] == written
    folders = sorted(path.parent.name for path in swept.path.glob("*/run.json"))
    assert folders == ["0", "1", "2", "3"]
    looks = [(path, path.read_text()) for path in swept.path.glob("*/evaluations.jsonl")]
    again = run(forks, tmp_path, *RANDOM, "sweep.n_trials=4", before=LOOK)
    assert again.code == 0, again.text
    assert "test/accuracy" in again.text
    assert [(path, path.read_text()) for path in swept.path.glob("*/evaluations.jsonl")] == looks


@pytest.mark.slow
def test_a_killed_trial_goes_on_from_its_last_checkpoint_with_the_same_bits(forks: Forks, tmp_path: Path) -> None:
    words = ("epochs=150", "lr=0.03", "callbacks.checkpoint.every_seconds=0.05", "sweep.n_trials=1")
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, cut = Swept(tmp_path / "whole"), Swept(tmp_path / "cut")
    assert run(forks, whole.folder, *words, "batch_size=choice(16)").code == 0
    hold = cut.folder / "hold"
    hold.touch()
    fork = begin(forks, cut.folder, *words, "batch_size=choice(16)", before=HOLD.replace(">= 1", ">= 70"))
    wait_for(fork, cut.path / "0" / "checkpoints" / "last.ckpt")
    fork.kill()
    fork.wait()
    hold.unlink()
    again = run(forks, cut.folder, *words, "batch_size=choice(16)")
    assert again.code == 0, again.text
    assert "It goes on behind step" in cut.log(0)
    assert cut.ended == whole.ended
    assert_the_same_run(whole.path / "0", cut.path / "0")


@pytest.mark.slow
def test_two_searches_share_a_study_and_run_each_trial_once(forks: Forks, tmp_path: Path) -> None:
    words = ("epochs=20", *RANDOM[1:], "sweep.n_trials=10")
    (tmp_path / "alone").mkdir()
    (tmp_path / "shared").mkdir()
    alone, shared = Swept(tmp_path / "alone"), Swept(tmp_path / "shared")
    assert run(forks, alone.folder, *words).code == 0
    both = [begin(forks, shared.folder, *words) for _ in range(2)]
    assert [fork.wait() for fork in both] == [0, 0], both[0].text + both[1].text
    assert shared.ended == alone.ended
    assert all("resumes" not in shared.record(number) for number in range(10))
    looks = [path.read_text().splitlines() for path in shared.path.glob("*/evaluations.jsonl")]
    assert [len(lines) for lines in looks] == [1]
    assert not list(shared.path.glob(".owners/*"))


@pytest.mark.slow
def test_a_search_that_ends_before_another_on_its_study_says_that_it_goes_on(forks: Forks, tmp_path: Path) -> None:
    swept = Swept(tmp_path)
    words = ("epochs=3000", *RANDOM[1:])
    first = begin(forks, tmp_path, *words, "sweep.n_trials=1")
    wait_for(first, swept.path / "0" / "metrics.csv", 2)
    second = run(forks, tmp_path, *words, "sweep.n_trials=1")
    assert second.code == 0
    assert "A trial is still run by another process, which says at its end what was found." in second.text
    first.kill()
    assert left_behind(tmp_path) == []


@pytest.mark.slow
def test_folders_of_a_lost_study_are_taken_where_they_are_the_same_trials_and_refused_otherwise(
    forks: Forks, tmp_path: Path
) -> None:
    swept, words = Swept(tmp_path), ("epochs=1", "lr=0.1,0.01")
    assert run(forks, tmp_path, *words).code == 0
    before, written = swept.ended, [swept.written(0), swept.written(1)]
    (swept.path / "study.journal").unlink()
    again = run(forks, tmp_path, *words)
    assert again.code == 0, again.text
    assert swept.ended == before
    assert [swept.written(0), swept.written(1)] == written
    (swept.path / "study.journal").unlink()
    other = run(forks, tmp_path, "epochs=1", "lr=0.2,0.02")
    assert other.code == 1
    assert "`outputs/sweeps/swept/0` must be free for trial 0, got the run of lr=0.1" in other.text
    assert "Traceback" not in other.text
    assert [swept.written(0), swept.written(1)] == written
    assert swept.numbers(TrialState.RUNNING) == []


def test_a_folder_that_holds_what_is_not_the_trials_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "7"
    assert not is_begun(folder, ["lr=0.1"])
    folder.mkdir()
    assert not is_begun(folder, ["lr=0.1"])
    (folder / "train.log").touch()
    assert is_begun(folder, ["lr=0.1"])
    (folder / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"must be free for trial 7, got the file thesis\.tex, of which the study"):
        is_begun(folder, ["lr=0.1"])
    record = {"command": "", "overrides": ["data=iris", "lr=0.1"], "choices": {}}
    (folder / "run.json").write_text(json.dumps(record))
    assert is_begun(folder, ["lr=0.1", "data=iris"])
    assert is_begun(folder, ["data=iris", "lr=1e-1"])
    with pytest.raises(ConfigError, match=r"got the run of lr=0\.1, of which"):
        is_begun(folder, ["data=iris", "lr=0.2"])
    shutil.rmtree(folder)
    folder.touch()
    with pytest.raises(ConfigError, match="got the file 7, of which"):
        is_begun(folder, ["lr=0.1"])
