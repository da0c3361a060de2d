"""The study's file outlives kills, full disks and losses of power: at most the last record is lost, and it goes on."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tunelab.errors import ConfigError, RunFailed
from tunelab.sweep.journal import open_journal

FORK = multiprocessing.get_context("fork")
Numbered = list[tuple[int, TrialState, float | None]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.journal"


def study_in(path: Path) -> optuna.Study:
    storage = open_journal(path)
    make = optuna.load_study if storage.get_all_studies() else optuna.create_study
    return make(study_name="s", storage=storage)


def plain(path: Path) -> optuna.Study:
    """The same study as Optuna itself reads it."""
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))


def trials(study: optuna.Study) -> Numbered:
    return [(trial.number, trial.state, trial.value) for trial in study.trials]


def finish(study: optuna.Study, value: float) -> int:
    trial = study.ask()
    study.tell(trial, value)
    return trial.number


def two_trials(path: Path) -> bytes:
    """A study of two trials that ended with 0.0 and 1.0; its last record is the end of the second."""
    study = study_in(path)
    finish(study, 0.0)
    finish(study, 1.0)
    return path.read_bytes()


def test_a_study_torn_at_every_byte_of_its_last_record_loses_only_that_and_goes_on(path: Path) -> None:
    whole = two_trials(path)
    begin = whole.rindex(b"\n", 0, -1) + 1
    done, second = TrialState.COMPLETE, (1, TrialState.RUNNING, None)
    for end in range(begin, len(whole) + 1):
        path.write_bytes(whole[:end])
        study = study_in(path)
        if end == len(whole):
            second = (1, done, 1.0)
        assert trials(study) == [(0, done, 0.0), second], end
        assert finish(study, 2.0) == 2
        assert trials(plain(path)) == [(0, done, 0.0), second, (2, done, 2.0)], end


@pytest.mark.parametrize("zeros", [1, 7, 4096, 65535, 65536, 65537, 3_000_000])
@pytest.mark.parametrize("torn", [0, 20])
def test_zero_bytes_at_the_end_are_removed(path: Path, zeros: int, torn: int) -> None:
    whole = two_trials(path)
    path.write_bytes(whole + b'{"op_code":4,"worker_id":'[:torn] + bytes(zeros))
    study = study_in(path)
    assert path.read_bytes() == whole
    finish(study, 2.0)
    done = TrialState.COMPLETE
    assert trials(plain(path)) == [(0, done, 0.0), (1, done, 1.0), (2, done, 2.0)]


@pytest.mark.parametrize("left", [b'{"op', b"\0" * 4096, b'{"op_code":6,"worker_id":"x"}'])
def test_a_line_that_another_process_tore_while_this_one_is_open_is_removed(path: Path, left: bytes) -> None:
    whole = two_trials(path)
    ours = study_in(path)
    with path.open("ab") as file:
        file.write(left)
    assert [value for *_, value in trials(ours)] == [0.0, 1.0]
    finish(ours, 2.0)
    assert path.read_bytes().startswith(whole + b'{"op_code"')
    assert [value for *_, value in trials(ours)] == [value for *_, value in trials(plain(path))] == [0.0, 1.0, 2.0]


def test_a_last_record_longer_than_what_is_read_at_once_is_kept_or_removed_whole(path: Path) -> None:
    study = study_in(path)
    before = path.read_bytes()
    study.set_user_attr("log", "x" * 200_000)
    whole = path.read_bytes()
    assert study_in(path).user_attrs == {"log": "x" * 200_000}
    path.write_bytes(whole[:-3])
    assert study_in(path).user_attrs == {}
    assert path.read_bytes() == before


def test_an_empty_file_and_one_of_zeros_are_new_studies(path: Path) -> None:
    for content in (b"", b"\0", b"\0" * 100_000, b"{"):
        path.write_bytes(content)
        assert trials(study_in(path)) == []


@pytest.mark.parametrize(
    "damage", [b"\0\0\0\0", b"\xff\xfe", b'{"op_code":99}', b"{}", b"[]", b"7", b"", b'{"op_code":4}']
)
def test_damage_elsewhere_is_told_with_its_line_and_nothing_is_changed(path: Path, damage: bytes) -> None:
    lines = two_trials(path).split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]))
    damaged = path.read_bytes()
    said = rf"`sweep\.storage` must be .* but {re.escape(str(path))} is damaged in line 3\. .*\(head -n 2\)"
    with pytest.raises(ConfigError, match=said):
        study_in(path)
    assert path.read_bytes() == damaged


def in_another_process(work: Callable[[], None]) -> None:
    """Runs it in a process whose limits and death are its own."""
    process = FORK.Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def fill(study: optuna.Study) -> None:
    for number in range(9):
        study.set_user_attr(str(number), "x" * 50)


@pytest.mark.parametrize("room", [0, 1, 100, 250])
def test_a_full_disk_tears_nothing_is_told_and_the_study_goes_on_when_there_is_room(path: Path, room: int) -> None:
    whole = two_trials(path)

    def write() -> None:
        study = study_in(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + room, resource.RLIM_INFINITY))
        said = rf"^The study could not be written to {re.escape(str(path))}: File too large\. .* the same command again"
        with pytest.raises(RunFailed, match=said):
            fill(study)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        written = path.read_bytes()
        assert written.startswith(whole)
        assert written.endswith(b"\n")
        assert finish(study, 2.0) == 2  # the same study, still open

    in_another_process(write)
    assert [value for *_, value in trials(plain(path))] == [0.0, 1.0, 2.0]


def test_what_the_system_writes_in_pieces_arrives_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    two_trials(path)
    monkeypatch.undo()
    assert [value for *_, value in trials(plain(path))] == [0.0, 1.0]


def test_signals_in_the_middle_of_writing_tear_nothing(path: Path) -> None:
    def write() -> None:
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        study = study_in(path)
        for number in range(100):
            study.set_user_attr("n", [number] * 2000)
        signal.setitimer(signal.ITIMER_REAL, 0)

    in_another_process(write)
    assert plain(path).user_attrs == {"n": [99] * 2000}


def test_four_processes_that_write_at_once_lose_nothing(path: Path) -> None:
    study_in(path)

    def write(process: int) -> None:
        study = study_in(path)
        for number in range(50):
            study.set_user_attr(f"{process}-{number}", number)
            finish(study, process)

    processes = [FORK.Process(target=write, args=(process,)) for process in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    study = plain(path)
    assert study.user_attrs == {f"{process}-{number}": number for process in range(4) for number in range(50)}
    assert sorted(value for *_, value in trials(study)) == [float(p) for p in range(4) for _ in range(50)]
    assert [number for number, *_ in trials(study)] == list(range(200))


@pytest.mark.slow
def test_a_writer_that_is_killed_a_hundred_times_leaves_all_that_it_had_finished(path: Path) -> None:
    study_in(path)
    told = path.with_name("told")
    told.write_text("")

    def write() -> None:
        study = study_in(path)
        with told.open("a") as file:
            while True:
                number = finish(study, 1.0)
                file.write(f"{number}\n")
                file.flush()

    for kill in range(100):
        process = FORK.Process(target=write)
        process.start()
        time.sleep(0.001 * (kill % 37))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    study = study_in(path)
    ended = {trial.number for trial in study.trials if trial.state == TrialState.COMPLETE}
    assert {int(line) for line in told.read_text().splitlines()} <= ended
    assert finish(study, 2.0) == len(plain(path).trials) - 1


def test_what_ends_a_trial_is_on_the_disk_at_once_and_the_rest_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_in(path)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(path.read_text().splitlines()[-1]))
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.report(1.0, 0)
    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    study.ask()
    assert synced == []
    study.tell(trial.number, 1.0)
    (line,) = synced
    assert json.loads(line)["state"] == TrialState.COMPLETE


def test_where_files_cannot_be_locked_a_study_works_without(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    two_trials(path)
    assert [value for *_, value in trials(plain(path))] == [0.0, 1.0]
