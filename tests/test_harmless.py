"""No logger costs a run or a trial: what it cannot write is said once, and the result is that of a run without it."""

from __future__ import annotations

import csv
import errno
import functools
import importlib
import importlib.util
import json
import os
import socket
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import Forks, server
from lightning.pytorch.loggers import Logger
from optuna.trial import TrialState
from swept import Swept, run
from test_command import Outcome, typed

from tunelab import harmless
from tunelab.errors import ConfigError
from tunelab.metrics_csv import Csv

OWN = '''
    import time
    from lightning.pytorch.loggers import Logger

    class Own(Logger):
        """Breaks in the method that it is told to."""

        def __init__(self, save_dir, breaks):
            super().__init__()
            self.breaks, self.written = breaks, []
            self.at("__init__")

        def at(self, method):
            if self.breaks in (method, "all"):
                raise OSError(28, "No space left on device")
            if self.breaks == f"hang in {method}":
                time.sleep(3600)

        @property
        def name(self):
            self.at("name")
            return "own"

        @property
        def version(self):
            self.at("version")
            return ""

        @property
        def save_dir(self):
            self.at("save_dir")
            return None

        @property
        def experiment(self):
            self.at("experiment")
            return self.written

        def log_metrics(self, metrics, step=None):
            self.at("log_metrics")
            self.written.append(metrics)

        def log_hyperparams(self, params, *args, **kwargs):
            self.at("log_hyperparams")

        def after_save_checkpoint(self, callback):
            self.at("after_save_checkpoint")

        def resume_from(self, step):
            self.at("resume_from")

        def save(self):
            self.at("save")

        def finalize(self, status):
            self.at("finalize")

        def close(self):
            self.at("close")
'''
METHODS = ("__init__", "log_hyperparams", "experiment", "log_metrics", "save", "finalize", "close")
SHORT = ("data=iris", "size=tiny", "epochs=2", "threads=1", "trainer.enable_progress_bar=false")
LOGGER = ("logger=[csv]", "+logger.own._target_=ownlogger.Own")


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with server() as forks:
        yield forks


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user with a logger of their own."""
    (tmp_path / "ownlogger.py").write_text(textwrap.dedent(OWN))
    monkeypatch.setenv("TUNELAB_TRUST", "ownlogger")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    for key in ("seconds", "samples_per_second"):
        del found[key]
    return found


def said(outcome: Outcome) -> list[str]:
    return [line for line in outcome.text.splitlines() if line.startswith("logger=")]


def test_a_logger_that_breaks_in_any_of_its_methods_costs_no_run_and_is_said_once(own: Path) -> None:
    assert typed(own, *SHORT, "logger=[csv]", "hydra.run.dir=without").code == 0
    without = result(own / "without")
    for breaks in (*METHODS, "all"):
        outcome = typed(own, *SHORT, *LOGGER, f"+logger.own.breaks={breaks}", f"hydra.run.dir={breaks}")
        assert outcome.code == 0, outcome.text
        assert said(outcome) == [
            "logger=own could not write, and the run goes on without what is missing there: "
            "OSError: [Errno 28] No space left on device"
        ], breaks
        assert {**result(own / breaks), "not_logged": None} == {**without, "not_logged": None}
        assert (own / breaks / "metrics.csv").read_text() == (own / "without" / "metrics.csv").read_text()
    assert result(own / "all")["not_logged"] == {"own": "OSError: [Errno 28] No space left on device"}
    assert "not_logged" not in without
    assert typed(own, "resume=all", "epochs=3").code == 0


@pytest.mark.slow
def test_a_logger_that_breaks_costs_no_trial_of_a_search_with_two_slots(forks: Forks, own: Path) -> None:
    before = "\n    import sys; sys.path.insert(0, os.getcwd()); os.environ['TUNELAB_TRUST'] = 'ownlogger'\n"
    words = ("epochs=1", "lr=0.1,0.01,0.001,0.0001", "sweep.n_jobs=2", *LOGGER, "+logger.own.breaks=all")
    ended = run(forks, own, *words, before=before)
    assert ended.code == 0, ended.text
    assert Swept(own).numbers(TrialState.COMPLETE) == [0, 1, 2, 3]
    assert "Traceback" not in ended.text
    (line,) = (line for line in ended.text.splitlines() if line.startswith("Trial") and "logger=own" in line)
    assert line.endswith(
        "logger=own could not write, and the search goes on without what is missing there: "
        "OSError: [Errno 28] No space left on device"
    )


@pytest.mark.parametrize("place", ["__init__", "log_metrics", "close"])
def test_a_logger_that_hangs_is_ended_and_left_out(own: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(harmless, "MAX_LOST_SECONDS", 0.3)
    outcome = typed(own, *SHORT, *LOGGER, f"+logger.own.breaks='hang in {place}'", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.text
    first, second = said(outcome)
    assert first.endswith("missing there: no answer within 0 seconds")
    assert second == "logger=own has cost 0 seconds by failures, and is left out from here on."


def test_what_is_mistaken_in_a_loggers_config_is_refused_before_the_first_step(own: Path) -> None:
    outcome = typed(own, *SHORT, *LOGGER, "+logger.own.breaks=all", "+logger.own.brakes=all", "hydra.run.dir=run")
    assert outcome.code == 1
    assert "`logger.own.brakes` must be a key that the part takes, got brakes. Did you mean" in outcome.text
    outcome = typed(own, *SHORT, *LOGGER, "hydra.run.dir=run")
    assert outcome.code == 1
    assert "`logger.own` must be given arguments that it takes: missing a required argument: 'breaks'" in outcome.text


class Plain(Logger):
    name, version = "plain", ""

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.save()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...

    def save(self) -> None:
        raise self.error

    error: BaseException = KeyError("no such thing")


def test_a_logger_stays_of_its_class_and_what_ends_the_process_passes() -> None:
    failures: dict[str, str] = {}
    logger = harmless.made("plain", functools.partial(Plain), failures)
    assert isinstance(logger, Plain)
    assert (type(logger).__name__, logger.name) == ("Plain", "plain")
    logger.log_metrics({})
    logger.log_metrics({})
    assert failures == {"plain": "KeyError: 'no such thing'"}
    logger.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics({})

    def needs() -> Logger:
        raise ImportError("pip install it")

    with pytest.raises(ConfigError, match=r"`logger\.lacks` must have what it needs installed: pip install it"):
        harmless.made("lacks", functools.partial(needs), failures)


# ---- metrics.csv


def test_metrics_that_cannot_be_written_for_a_while_are_all_there_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(folder: Path, fails: range) -> str:  # the last of the 40 steps is the end
        folder.mkdir()
        logger = Csv(str(folder))
        for step in range(40):
            with monkeypatch.context() as patch:
                if step in fails:
                    patch.setattr(Csv, "_rewrite", refuse)
                    patch.setattr(csv.DictWriter, "writerows", refuse)
                logger.log_metrics({"a": float(step), "epoch": 0}, step)
                logger.save()
                if step % 7 == 0:
                    logger.log_metrics({f"b{step}": 1.0, "epoch": 0}, step)
                    logger.save()
                if step == 39:
                    logger.close()
        return (folder / "metrics.csv").read_text()

    def refuse(self: Any, *arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole = write(tmp_path / "whole", range(0))
    assert write(tmp_path / "late", range(0, 5)) == whole
    assert write(tmp_path / "gap", range(10, 30)) == whole
    assert [message.split(" ", 1)[1] for message in caplog.messages] == [
        "cannot be written (No space left on device): its lines are kept until they can be. The run goes on."
    ] * 2
    caplog.clear()
    lost = write(tmp_path / "lost", range(30, 40))
    assert [line.split(",")[:3] for line in lost.splitlines()] == [w.split(",")[:3] for w in whole.splitlines()[:31]]
    assert caplog.messages[1] == f"{tmp_path / 'lost' / 'metrics.csv'} lacks what was logged from step 30 to step 39."


def test_half_a_line_that_a_full_disk_has_left_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Csv(str(tmp_path))
    for step in (1, 2):
        logger.log_metrics({"a": 0.5}, step)
        logger.save()
    before = (tmp_path / "metrics.csv").read_text()

    def half(writer: Any, rows: Any) -> None:
        writer.writer.writerow([3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger.log_metrics({"a": 0.25}, 3)
    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerows", half)
        logger.save()
    assert (tmp_path / "metrics.csv").read_text() == before
    logger.save()
    assert (tmp_path / "metrics.csv").read_text() == before + "3,,0.25\n"


# ---- services

MLFLOW = ("logger=[csv,mlflow]", "logger.mlflow.tracking_uri=sqlite:///services/mlflow.db")
needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs the extra mlflow")


def mlflow_runs(folder: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/services/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments))


@pytest.mark.slow
@needs_mlflow
@pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")
def test_trials_and_runs_that_begin_at_once_make_the_tables_of_mlflow_once(forks: Forks, tmp_path: Path) -> None:
    words = (*MLFLOW, "epochs=2", "sweep.n_jobs=2")
    ended = run(forks, tmp_path, *words, "lr=0.1,0.01,0.001,0.0001")
    assert ended.code == 0, ended.text
    assert Swept(tmp_path).numbers(TrialState.COMPLETE) == [0, 1, 2, 3]
    assert "could not write" not in ended.text
    assert len(mlflow_runs(tmp_path)) == 4
    (tmp_path / "two").mkdir()
    both = [forks.start(tmp_path / "two", *SHORT, *MLFLOW, f"hydra.run.dir={name}") for name in ("one", "other")]
    assert [fork.wait() for fork in both] == [0, 0], both[0].text + both[1].text
    assert not any("could not write" in fork.text for fork in both)
    assert {each.info.status for each in mlflow_runs(tmp_path / "two")} == {"FINISHED"}
    assert len(mlflow_runs(tmp_path / "two")) == 2


@needs_mlflow
def test_a_server_that_answers_nobody_costs_no_run(tmp_path: Path) -> None:
    outcome = typed(
        tmp_path, *SHORT, "logger=[csv,mlflow]", "logger.mlflow.tracking_uri=http://127.0.0.1:9", "hydra.run.dir=run"
    )
    assert outcome.code == 0, outcome.text
    (line,) = said(outcome)
    assert "`logger.mlflow.tracking_uri` must lead to a server that answers, got http://127.0.0.1:9" in line
    assert "logger.mlflow.tracking_uri=sqlite:///outputs/mlflow.db" in line
    assert result(tmp_path / "run")["status"] == "finished"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the time may be up in a __del__
@needs_mlflow
def test_a_server_that_never_answers_costs_no_more_than_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module("mlflow")  # which may take longer
    monkeypatch.setattr(harmless, "MAX_LOST_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        words = (*SHORT, "logger=[csv,mlflow]", f"logger.mlflow.tracking_uri={uri}", "hydra.run.dir=run")
        outcome = typed(tmp_path, *words)
    assert outcome.code == 0, outcome.text
    assert len(said(outcome)) == 2
    assert result(tmp_path / "run")["status"] == "finished"
