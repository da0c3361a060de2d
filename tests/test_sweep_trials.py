"""Whose a trial is, what comes next and how it ended: in memory, in a journal and in a database."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tunelab.errors import ConfigError, RunFailed
from tunelab.sweep.owner import Owner, alone, others_run
from tunelab.sweep.samplers import Grid, QuasiRandom, Random
from tunelab.sweep.space import Space, Value, read_space
from tunelab.sweep.storage import open_storage
from tunelab.sweep.trials import OWNER, RETRY, Claim, Trials

FORK = multiprocessing.get_context("fork")
COMPLETE, FAIL, PRUNED, RUNNING, WAITING = (
    TrialState.COMPLETE,
    TrialState.FAIL,
    TrialState.PRUNED,
    TrialState.RUNNING,
    TrialState.WAITING,
)

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
optuna.logging.set_verbosity(optuna.logging.ERROR)


def space_of(*overrides: str) -> Space:
    return read_space(OverridesParser.create().parse_overrides(list(overrides)), {"optimizer": ["sgd", "adamw"]}, 0)


SPACE = space_of(
    "lr=tag(log,interval(1e-5,1e-1))", "width=choice(32,64,128)", "optimizer=sgd,adamw", "momentum=0.5,0.9"
)
FINITE = space_of("lr=0.1,0.01,0.001", "width=32,64", "optimizer=sgd,adamw", "momentum=0.5,0.9")


def active(options: Mapping[str, Value]) -> set[str]:
    """AdamW has no momentum."""
    return {"lr", "width", *options, *(["momentum"] if options["optimizer"] == "sgd" else [])}


@pytest.fixture(params=["memory", "journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], BaseStorage]]:
    """Opens the study's storage, as a new process would, but for the one in memory."""
    memory = InMemoryStorage()
    opened: list[BaseStorage] = []

    def opener() -> BaseStorage:
        if request.param == "memory":
            return memory
        opened.append(open_storage(f"sqlite:///{tmp_path}/study.db" if request.param == "sqlite" else None, tmp_path))
        return opened[-1]

    yield opener
    for storage in opened:
        close(storage)


@event.listens_for(Engine, "connect")
def write_later(connection: Any, record: Any) -> None:
    """A disk's pace is not what is tested."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


def close(storage: BaseStorage) -> None:
    backend = getattr(storage, "_backend", None)
    if hasattr(backend, "engine"):
        storage.remove_session()
        backend.engine.dispose()


def trials_in(
    folder: Path,
    storage: BaseStorage,
    *,
    sampler: BaseSampler | None = None,
    pruner: BasePruner | None = None,
    most: int = 8,
    first: Mapping[str, Value] | None = None,
    space: Space = SPACE,
) -> Trials:
    sampler = sampler or Random(seed=0)
    if isinstance(sampler, Grid):
        space = FINITE
    if isinstance(sampler, (Grid, QuasiRandom, Random)):
        sampler.space = space
    study = optuna.create_study(
        study_name="s", storage=storage, sampler=sampler, pruner=pruner or NopPruner(), load_if_exists=True
    )
    return Trials(study, space, active, folder, most, first)


def run_all(trials: Trials) -> list[Claim]:
    claims = []
    while claim := trials.next():
        trials.end(claim, COMPLETE, float(claim.number))
        claims.append(claim)
    return claims


def found(trials: Trials) -> list[tuple[int, TrialState, dict[str, Value]]]:
    return [(trial.number, trial.state, trial.params) for trial in trials.all()]


Kept = Callable[[], BaseStorage]


def test_a_search_runs_the_trials_it_may_and_writes_down_how_they_ended(kept: Kept, tmp_path: Path) -> None:
    trials = trials_in(tmp_path, kept(), most=3)
    claims = [trials.next() for _ in range(3)]
    a, b, c = (claim for claim in claims if claim)
    trials.report(b, 0, 0.5)
    trials.report(b, 1, 0.25)
    trials.end(a, COMPLETE, 2.0, epoch=3, seconds=1.5)
    trials.end(b, PRUNED)
    trials.end(c, FAIL, kind="failed", cause="it broke")
    assert trials.next() is None
    seen = trials_in(tmp_path, kept()).all()
    assert [trial.state for trial in seen] == [COMPLETE, PRUNED, FAIL]
    assert [trial.value for trial in seen] == [2.0, 0.25, None]
    assert [dict(trial.user_attrs) for trial in seen] == [
        {"epoch": 3, "seconds": 1.5},
        {},
        {"kind": "failed", "cause": "it broke"},
    ]
    assert [claim.values for claim in (a, b, c)] == [trial.params for trial in seen]
    assert seen[1].intermediate_values == {0: 0.5, 1: 0.25}
    assert trials.study.best_trial.number == 0  # a pruned trial is never the best


def test_a_key_that_a_trials_options_do_not_read_is_not_among_its_values(kept: Kept, tmp_path: Path) -> None:
    claims = run_all(trials_in(tmp_path, kept(), most=20))
    options = {claim.values["optimizer"] for claim in claims}
    assert options == {"sgd", "adamw"}
    for claim in claims:
        assert claim.values.keys() == {"optimizer"} | active(claim.values)


def test_the_first_trial_has_the_recipes_own_values(kept: Kept, tmp_path: Path) -> None:
    own = {"lr": 0.02, "width": 128, "optimizer": "adamw"}
    claims = run_all(trials_in(tmp_path, kept(), first=own))
    assert [claim.number for claim in claims] == list(range(8))
    assert claims[0].values == own
    assert run_all(trials_in(tmp_path, kept(), first=own, most=9))[0].values != own


def test_a_grid_has_each_combination_once(kept: Kept, tmp_path: Path) -> None:
    trials = trials_in(tmp_path, kept(), sampler=Grid(), most=1000)
    claims = run_all(trials)
    assert [claim.number for claim in claims] == list(range(18))  # sgd has 3 x 2 x 2 of them, adamw 3 x 2
    assert len({tuple(sorted(claim.values.items())) for claim in claims}) == 18
    assert [claim.values for claim in claims] == list(Grid.combinations(trials.study.sampler, active))


def test_a_study_goes_on_where_it_ended(kept: Kept, tmp_path: Path) -> None:
    for sampler in (Random(seed=0), QuasiRandom(seed=0)):
        folder = tmp_path / type(sampler).__name__
        folder.mkdir()
        whole = [claim.values for claim in run_all(trials_in(folder, InMemoryStorage(), sampler=sampler, most=12))]
        storage = kept() if isinstance(sampler, Random) else InMemoryStorage()
        parts = [
            claim for most in (3, 7, 12) for claim in run_all(trials_in(folder, storage, sampler=sampler, most=most))
        ]
        assert [claim.values for claim in parts] == whole


# what was left behind


def test_a_trial_whose_owner_is_gone_is_taken_up_and_one_whose_owner_lives_is_not(kept: Kept, tmp_path: Path) -> None:
    theirs, ours = trials_in(tmp_path, kept(), most=2), trials_in(tmp_path, kept(), most=2)
    left = theirs.next()
    assert left is not None
    mine = ours.next()
    assert mine is not None
    assert (left.number, mine.number, ours.next()) == (0, 1, None)
    theirs.owner.close()
    again = ours.next()
    assert again is not None
    assert (again.number, again.values) == (0, left.values)
    assert ours.next() is None


def test_a_trial_is_stopped_before_its_last_epoch_and_not_in_it(kept: Kept, tmp_path: Path) -> None:
    trials = trials_in(tmp_path, kept(), most=2, pruner=MedianPruner(n_startup_trials=1))
    good, bad = trials.next(), trials.next()
    assert good is not None
    assert bad is not None
    for epoch in (1, 2, 3):
        assert not trials.report(good, epoch, 1.0, epochs=3)
    trials.end(good, COMPLETE, 1.0)
    assert not trials.report(bad, 3, 9.0, epochs=3)  # all of it is paid for
    assert trials.report(bad, 3, 9.0, epochs=4)


def test_an_interrupted_trial_waits_and_is_taken_up(kept: Kept, tmp_path: Path) -> None:
    trials = trials_in(tmp_path, kept(), most=2)
    claim = trials.next()
    assert claim is not None
    trials.report(claim, 0, 1.0)
    trials.give_back(claim)
    assert [state for _, state, _ in found(trials)] == [WAITING]
    again = trials_in(tmp_path, kept(), most=2).next()
    assert again == claim


@pytest.mark.parametrize("sampler", [Random, QuasiRandom])
@pytest.mark.parametrize("count", range(5))
def test_a_trial_whose_process_ended_while_it_was_sampled_gets_the_values_it_would_have_had(
    kept: Kept, tmp_path: Path, sampler: type[Random] | type[QuasiRandom], count: int
) -> None:
    whole = run_all(trials_in(tmp_path, InMemoryStorage(), sampler=sampler(seed=0), most=2))
    trials = trials_in(tmp_path, kept(), sampler=sampler(seed=0), most=2)
    trial = trials.study.ask()
    for key, value in list(whole[0].values.items())[:count]:
        distribution = SPACE[key].distribution
        trials._storage.set_trial_param(trial._trial_id, key, distribution.to_internal_repr(value), distribution)
    claims = run_all(trials_in(tmp_path, kept(), sampler=sampler(seed=0), most=2))
    assert [claim.values for claim in claims] == [claim.values for claim in whole]
    assert [claim.number for claim in claims] == [0, 1]


def test_a_trial_that_the_user_put_into_the_queue_has_their_values_and_others_beside(
    kept: Kept, tmp_path: Path
) -> None:
    trials = trials_in(tmp_path, kept(), most=1)
    trials.study.enqueue_trial({"width": 64, "optimizer": "sgd"})
    trials.study.enqueue_trial({"lr": 0.05, "width": 32.0, "optimizer": "adamw", "momentum": 0.9})
    a, b = run_all(trials)
    assert (a.values["width"], a.values["optimizer"], a.values.keys()) == (
        64,
        "sgd",
        {"lr", "width", "optimizer", "momentum"},
    )
    assert b.values == {"lr": 0.05, "width": 32, "optimizer": "adamw"}  # which has no momentum
    assert [values for *_, values in found(trials)] == [a.values, b.values]


def test_a_trial_that_the_user_put_into_the_queue_of_a_grid_is_one_of_it(kept: Kept, tmp_path: Path) -> None:
    trials = trials_in(tmp_path, kept(), sampler=Grid(), most=1000)
    trials.study.enqueue_trial({"width": 64, "optimizer": "adamw"})
    claims = run_all(trials)
    assert claims[0].values == {"lr": 0.1, "width": 64, "optimizer": "adamw"}
    assert len({tuple(sorted(claim.values.items())) for claim in claims}) == len(claims) == 18


@pytest.mark.parametrize(
    ("given", "typed"),
    [
        ({"lr": 5.0}, "lr=5.0"),
        ({"width": 33}, "width=33"),
        ({"optimizer": "sgd", "lr": "high"}, "optimizer=sgd lr=high"),
        ({"depth": 3}, "depth=3"),
    ],
)
@pytest.mark.parametrize("sampler", [Random(0), Grid()], ids=["random", "grid"])
def test_values_that_the_search_does_not_have_fail_in_words_and_it_goes_on(
    kept: Kept, tmp_path: Path, given: dict[str, Any], typed: str, sampler: BaseSampler
) -> None:
    trials = trials_in(tmp_path, kept(), sampler=sampler, most=2)
    trials.study.enqueue_trial(given)
    (claim,) = run_all(trials)
    assert claim.number == 1
    failed = trials.all()[0]
    assert failed.state == FAIL
    assert failed.user_attrs["cause"] == f"this search does not have {typed}"
    assert trials.try_again() == 0


def test_failures_that_may_have_passed_are_tried_again_once_with_the_same_values(kept: Kept, tmp_path: Path) -> None:
    trials = trials_in(tmp_path, kept(), most=4)
    claims = [claim for _ in range(4) if (claim := trials.next())]
    for claim, kind in zip(claims, ["failed", "diverged", "refused", ""], strict=True):
        trials.end(claim, FAIL if kind else COMPLETE, None if kind else 1.0, **({"kind": kind} if kind else {}))
    assert trials.next() is None
    assert trials.try_again() == 2
    assert trials.try_again() == 0  # another process on the study
    again = [claim for _ in range(2) if (claim := trials.next())]
    assert [claim.number for claim in again] == [4, 5]
    assert [claim.values for claim in again] == [claims[0].values, claims[2].values]
    assert [trials.all()[number].user_attrs[RETRY] for number in (4, 5)] == [0, 2]
    trials.end(again[0], FAIL, kind="failed")
    trials.end(again[1], COMPLETE, 2.0)
    assert trials.next() is None
    assert trials.try_again() == 1
    third = trials.next()
    assert third is not None
    assert (third.number, third.values) == (6, claims[0].values)


def test_who_runs_a_trial_is_not_among_what_a_user_sees_of_it(kept: Kept, tmp_path: Path) -> None:
    trials = trials_in(tmp_path, kept())
    trials.next()
    (trial,) = trials.all()
    assert trial.user_attrs == {}
    assert trial.system_attrs == {OWNER: trials.owner.name}


# several processes


def test_an_owner_is_alive_until_its_process_ends(tmp_path: Path) -> None:
    name, go = FORK.SimpleQueue(), FORK.SimpleQueue()

    def live() -> None:
        name.put(Owner(tmp_path).name)
        go.get()

    process = FORK.Process(target=live)
    process.start()
    theirs, ours = name.get(), Owner(tmp_path)
    assert ours.is_alive(ours.name)
    assert ours.is_alive(theirs)
    assert not ours.is_alive("somebody else")
    assert not ours.is_alive(None)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not ours.is_alive(theirs)
    ours.close()
    assert list((tmp_path / ".owners").iterdir()) == []


def test_owners_that_come_and_go_at_once_are_alive_to_each_other_from_their_beginning_on(tmp_path: Path) -> None:
    def live(number: int) -> bool:
        seen = True
        for _ in range(100):
            owner = Owner(tmp_path)  # its file is opened anew, as a process does
            with alone(tmp_path):
                seen &= others_run(tmp_path) and (owner.folder / owner.name).exists()
            owner.close()
        return seen

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(live, range(4)))


def test_where_files_cannot_be_locked_what_others_run_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    storage = open_storage(None, tmp_path)
    left = trials_in(tmp_path, storage, most=2).next()
    again = trials_in(tmp_path, storage, most=2).next()
    assert left is not None
    assert again is not None
    assert (again.number, again.values) == (left.number, left.values)


def work(folder: Path, url: str | None, sampler: BaseSampler, most: int) -> None:
    """What a process on a study does: it ends trials, and writes down that it did."""
    trials = trials_in(folder, open_storage(url, folder), sampler=sampler, most=most)
    chance = random.Random()
    with (folder / "ended").open("a") as file:
        while claim := trials.next():
            trials.report(claim, 0, 0.0)
            time.sleep(chance.random() * 0.002)
            file.write(f"{claim.number}\n")
            file.flush()
            trials.end(claim, COMPLETE, float(claim.number))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "qmc", "grid", "tpe"])
@pytest.mark.parametrize("stored", ["journal", "sqlite"])
def test_four_processes_that_are_killed_run_each_trial_once_and_leave_the_study_as_if_undisturbed(
    tmp_path: Path, kind: str, stored: str
) -> None:
    make: dict[str, Callable[[], BaseSampler]] = {
        "random": lambda: Random(0),
        "qmc": lambda: QuasiRandom(0),
        "grid": Grid,
        "tpe": lambda: TPESampler(seed=0, n_startup_trials=1000),
    }
    most = 18 if kind == "grid" else 60 if stored == "sqlite" else 200
    url = f"sqlite:///{tmp_path}/study.db" if stored == "sqlite" else None
    storage = open_storage(url, tmp_path)
    trials_in(tmp_path, storage, sampler=make[kind]()).owner.close()
    close(storage)
    chance, kills = random.Random(0), 6 if kind == "grid" else 25
    processes: list[Any] = []
    while kills or any(process.is_alive() for process in processes):
        while len(processes) < 4 and kills:
            processes.append(FORK.Process(target=work, args=(tmp_path, url, make[kind](), most)))
            processes[-1].start()
        time.sleep(chance.random() * (0.06 if stored == "journal" else 0.3))
        processes = [process for process in processes if process.is_alive()]
        if kills and processes:
            victim = processes.pop(chance.randrange(len(processes)))
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
        kills = max(0, kills - 1)
    work(tmp_path, url, make[kind](), most)
    storage = open_storage(url, tmp_path)
    trials = trials_in(tmp_path, storage, sampler=make[kind](), most=most)
    assert trials.next() is None
    assert [(number, state) for number, state, _ in found(trials)] == [(number, COMPLETE) for number in range(most)]
    ended = [int(line) for line in (tmp_path / "ended").read_text().split()]
    assert set(ended) == set(range(most))
    assert len(ended) - most <= 25  # a kill between the end of a trial and its record
    if kind != "tpe":
        whole = run_all(trials_in(tmp_path, InMemoryStorage(), sampler=make[kind](), most=most))
        assert [values for *_, values in found(trials)] == [claim.values for claim in whole]
    close(storage)


# pruning


PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "none": NopPruner,
    "median": MedianPruner,
    "percentile": lambda: PercentilePruner(25.0),
    "successive_halving": SuccessiveHalvingPruner,
    "hyperband": lambda: HyperbandPruner(max_resource=20),
    "patient": lambda: PatientPruner(MedianPruner(), patience=3),
}
CURVES = space_of("a=interval(0,1)", "b=interval(0.1,0.5)", "c=interval(0,1)")


def curve(values: Mapping[str, Value], epoch: int, sign: int) -> float:
    """A learning curve with a floor, a speed and some waves; some have no value now and then."""
    if values["c"] > 0.9 and epoch % 5 == 3:
        return math.nan
    return sign * float(values["a"] + math.exp(-values["b"] * epoch) + 0.1 * math.sin(9 * values["c"] * epoch))


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("sampler", [RandomSampler, TPESampler])
def test_the_trials_that_are_pruned_are_those_of_optunas_own_loop(
    tmp_path: Path, name: str, direction: str, sampler: type[RandomSampler] | type[TPESampler]
) -> None:
    sign, epochs, count = (1 if direction == "minimize" else -1), 20, 40

    def objective(trial: optuna.Trial) -> float:
        values = {key: trial.suggest_float(key, d.low, d.high) for key, d in distributions.items()}
        for epoch in range(epochs):
            trial.report(curve(values, epoch, sign), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return curve(values, 0, sign)

    distributions: dict[str, Any] = {knob.key: knob.distribution for knob in CURVES.knobs}
    theirs = optuna.create_study(study_name="s", direction=direction, sampler=sampler(seed=1), pruner=PRUNERS[name]())
    theirs.optimize(objective, n_trials=count)

    ours = optuna.create_study(study_name="s", direction=direction, sampler=sampler(seed=1), pruner=PRUNERS[name]())
    trials = Trials(ours, CURVES, lambda options: {"a", "b", "c"}, tmp_path, count, None)
    while claim := trials.next():
        if any(trials.report(claim, epoch, curve(claim.values, epoch, sign)) for epoch in range(epochs)):
            trials.end(claim, PRUNED)
        else:
            trials.end(claim, COMPLETE, curve(claim.values, 0, sign))
    assert [shown(trial) for trial in ours.trials] == [shown(trial) for trial in theirs.trials]
    assert ours.best_trial.number == theirs.best_trial.number
    pruned = sum(trial.state == PRUNED for trial in ours.trials)
    assert (pruned == 0) if name == "none" else (3 <= pruned < count)


def shown(trial: FrozenTrial) -> str:
    return json.dumps([trial.number, trial.state, trial.params, trial.values, trial.intermediate_values])


@pytest.mark.parametrize("name", PRUNERS)
def test_a_study_opened_anew_for_each_trial_prunes_the_same_ones(kept: Kept, tmp_path: Path, name: str) -> None:
    def search(folder: Path, *, anew: Callable[[], BaseStorage]) -> list[str]:
        folder.mkdir()
        storage = anew()
        while True:
            trials = trials_in(folder, storage, pruner=PRUNERS[name](), most=12, space=CURVES)
            trials._active = lambda options: {"a", "b", "c"}
            if (claim := trials.next()) is None:
                return [shown(trial) for trial in trials.all()]
            pruned = any(trials.report(claim, epoch, curve(claim.values, epoch, 1)) for epoch in range(10))
            trials.end(claim, PRUNED if pruned else COMPLETE, None if pruned else 1.0)
            storage = anew()

    memory = InMemoryStorage()
    once = search(tmp_path / "memory", anew=lambda: memory)
    assert search(tmp_path / "kept", anew=kept) == once


def test_a_trial_that_is_taken_up_is_judged_at_each_epoch_as_the_first_time(kept: Kept, tmp_path: Path) -> None:
    trials = trials_in(tmp_path, kept(), pruner=MedianPruner(n_startup_trials=1), most=2)
    good, bad = trials.next(), trials.next()
    assert good is not None
    assert bad is not None
    for epoch, value in enumerate([5.0, 4.0, 1.0]):
        trials.report(good, epoch, value)
    trials.end(good, COMPLETE, 1.0)
    first = [trials.report(bad, epoch, 4.5) for epoch in range(3)]
    trials.give_back(bad)
    later = trials_in(tmp_path, kept(), pruner=MedianPruner(n_startup_trials=1), most=2)
    again = later.next()
    assert again is not None
    assert [later.report(again, epoch, 4.5) for epoch in range(3)] == first == [False, True, True]
    assert later.all()[1].intermediate_values == {0: 4.5, 1: 4.5, 2: 4.5}


@pytest.mark.parametrize(
    "pruner",
    [
        lambda: SuccessiveHalvingPruner(min_resource=2, reduction_factor=2),
        lambda: HyperbandPruner(min_resource=2, max_resource=8, reduction_factor=2),
    ],
    ids=["successive_halving", "hyperband"],
)
def test_a_trial_that_is_killed_after_its_pruner_gave_it_up_does_not_escape(
    kept: Kept, tmp_path: Path, pruner: Callable[[], BasePruner]
) -> None:
    trials = trials_in(tmp_path, kept(), pruner=pruner(), most=20)
    said: list[bool] = []
    while True not in said:  # each is worse than those before
        claim = trials.next()
        assert claim is not None
        said = [trials.report(claim, epoch, float(claim.number)) for epoch in range(8)]
        if True not in said:
            trials.end(claim, COMPLETE, float(claim.number))
    trials.owner.close()
    later = trials_in(tmp_path, kept(), pruner=pruner(), most=20)
    again = later.next()
    assert again is not None
    assert again.number == claim.number
    assert [later.report(again, epoch, float(claim.number)) for epoch in range(8)] == said
    assert sorted(set(said)) == [False, True]


# where a study may be kept


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("study.db", "must be the URL of a database, got study.db. Write sqlite:///study.db or"),
        ("", "must be the URL of a database, got . Write"),
        ("nosuch://host/database", "must be the URL of a database, got nosuch://host/database."),
        ("sqlite://", "must be the URL of a database, got sqlite://. Write sqlite:///study.db or"),
        (
            "mysql://me:secret@host/database",
            "must be a database whose driver is installed, got mysql://me:***@host/database, which needs MySQLdb. "
            "Type pip install mysqlclient.",
        ),
        ("redis://localhost", "must be the URL of a database, got redis://localhost."),
        (
            "postgresql://me@host:port/database",
            "must be the URL of a database, got postgresql://me@host:port/database.",
        ),
        (
            "mssql+pymssql://me:secret@host/database",
            "must be a database whose driver is installed, got mssql+pymssql://me:***@host/database, which needs "
            "pymssql. Type pip install pymssql.",
        ),
        (
            "postgresql://me:secret@host/database",
            "must be a database whose driver is installed, got postgresql://me:***@host/database, which needs psycopg. "
            "Type pip install 'psycopg[binary]'.",
        ),
        (
            "sqlite:////nowhere/study.db",
            "must be a database that can be opened, got sqlite:////nowhere/study.db: unable to open database file.",
        ),
    ],
)
def test_a_storage_that_cannot_be_is_refused_in_words(
    tmp_path: Path, url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for driver in ("MySQLdb", "psycopg", "pymssql"):
        monkeypatch.setitem(sys.modules, driver, None)  # as if it were not installed
    with pytest.raises(ConfigError, match=re.escape(f"`sweep.storage` {said}")):
        open_storage(url, tmp_path)


def test_a_file_that_is_no_database_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database" * 100)
    with pytest.raises(
        ConfigError, match=r"must be a database that can be opened, got .*: file is not a database\. Mend"
    ):
        open_storage(f"sqlite:///{tmp_path}/notes.txt", tmp_path)


def test_a_database_that_is_locked_or_lost_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunelab.sweep.storage.SECONDS_TO_WAIT", 0.05)
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", tmp_path)
    trials = trials_in(tmp_path, storage)
    claim = trials.next()
    assert claim is not None
    other = sqlite3.connect(tmp_path / "study.db")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(
        RunFailed, match=r"^The study in sqlite:.*study\.db could not be reached: database is locked\. "
    ):
        trials.report(claim, 0, 1.0)
    other.close()
    trials.report(claim, 0, 1.0)
    trials.end(claim, COMPLETE, 1.0)
    assert [(trial.state, trial.intermediate_values) for trial in trials.all()] == [(COMPLETE, {0: 1.0})]
    close(storage)
