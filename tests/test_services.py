"""Weights & Biases and MLflow by one word: what a run writes to them is what its csv has, and its speed."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_command import in_process_of_its_own, typed

from tunelab.errors import ConfigError
from tunelab.services import Mlflow, Wandb

SMALL = ("data=wine", "size=tiny", "epochs=2", "trainer.log_every_n_steps=2", "trainer.enable_progress_bar=false")
WANDB = ("logger=[csv,wandb]", "logger.wandb.offline=true")
MLFLOW = ("logger=[csv,mlflow]", "logger.mlflow.tracking_uri=sqlite:///services/mlflow.db")
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs the extra {name}")
    for name in ("wandb", "mlflow")
}
# mlflow's own tables ask sqlalchemy for a loader that its newest version deprecates
quiet_mlflow = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


Curves = dict[tuple[str, int], float]
"""Values by metric and step."""

TIMED = {"throughput/samples_per_second", "throughput/memory_mb"}
"""What depends on the clock: it stays out of metrics.csv, which a repeat must equal bit for bit."""


def curves(folder: Path) -> Curves:
    """What the csv of a run has, but for its column of epochs."""
    return {
        (name, int(row["step"])): value
        for row in rows(folder)
        for name, value in row.items()
        if name not in ("step", "epoch")
    }


def untimed(curves: Curves, steps: list[int]) -> Curves:
    """What the csv must have of them, too; what it must not have is there at the end of each epoch."""
    timed = {key for key in curves if key[0] in TIMED}
    assert timed == {(name, step) for name in TIMED for step in steps}
    return {key: value for key, value in curves.items() if key not in timed}


# ---- Weights & Biases


def records(path: Path) -> Iterator[Any]:
    """The records of wandb's own file: the log format of LevelDB, after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, whole, position = path.read_bytes(), b"", 7
    while position + 7 <= len(content):
        left = 32768 - position % 32768  # of the block
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a record in one piece, or the last piece of one
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    """What wandb has kept of each run below a folder: its id, name, config, history and exit code."""
    runs = []
    for path in sorted(folder.rglob("*.wandb")):
        run: dict[str, Any] = {"config": {}, "history": []}
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run |= {"id": record.run.run_id, "name": record.run.display_name, "project": record.run.project}
            if kind in ("run", "config"):
                update = record.run.config.update if kind == "run" else record.config.update
                run["config"] |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in update}
            if kind == "history":
                items = record.history.item
                run["history"].append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
            if kind == "exit":
                run["exit"] = record.exit.exit_code
        runs.append(run)
    return runs


def wandb_curves(run: dict[str, Any]) -> Curves:
    return {
        (name, int(line["step"])): value
        for line in run["history"]
        for name, value in line.items()
        if name not in ("step", "epoch") and not name.startswith("_")
    }


@pytest.mark.slow
@needs["wandb"]
def test_wandb_offline_has_the_knobs_and_every_value_of_the_csv(tmp_path: Path) -> None:
    outcome = in_process_of_its_own(tmp_path, *SMALL, *WANDB, "lr=0.003", "name=trial", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.text
    assert "wandb" not in outcome.text.lower()  # one voice
    (run,) = offline_runs(tmp_path)
    assert (run["project"], run["name"], run["exit"]) == ("tunelab", "trial run", 0)
    chosen = {"lr": 0.003, "data": "wine", "optimizer": "adamw", "epochs": 2, "logger": "csv,wandb"}
    assert chosen.items() <= run["config"].items()
    assert untimed(wandb_curves(run), [3, 6]) == pytest.approx(curves(tmp_path / "run"))
    assert ("test/accuracy", 6) in wandb_curves(run)


@pytest.mark.slow
@needs["wandb"]
def test_two_runs_of_one_process_are_two_runs_of_wandb_and_a_resumed_one_is_the_same(tmp_path: Path) -> None:
    sweep = ("-m", "hydra/sweeper=basic", "lr=1e-3,1e-2", "hydra.sweep.dir=sweep")
    outcome = typed(tmp_path, *sweep, *SMALL, *WANDB)
    assert outcome.code == 0, outcome.text
    first, second = offline_runs(tmp_path)
    assert first["id"] != second["id"]
    assert [run["config"]["lr"] for run in (first, second)] == [1e-3, 1e-2]
    outcome = typed(tmp_path, "resume=sweep/0", "epochs=3")
    assert outcome.code == 0, outcome.text
    again, more = offline_runs(tmp_path / "sweep" / "0")
    assert again["id"] == more["id"] == first["id"]
    assert more["config"]["epochs"] == 3
    whole = curves(tmp_path / "sweep" / "0")
    assert untimed(wandb_curves(more), [9]) == pytest.approx({key: value for key, value in whole.items() if key[1] > 6})


@pytest.mark.slow
@needs["wandb"]
def test_wandb_without_a_login_writes_files_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where a login would be kept
    outcome = in_process_of_its_own(tmp_path, *SMALL, "logger=[csv,wandb]", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.text
    assert outcome.text.count("logger=wandb cannot reach Weights & Biases: No API key configured.") == 1
    (run,) = offline_runs(tmp_path)
    assert untimed(wandb_curves(run), [3, 6]) == pytest.approx(curves(tmp_path / "run"))


# ---- MLflow


def mlflow_runs(folder: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/services/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))


def mlflow_curves(folder: Path, run: Any) -> Curves:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/services/mlflow.db")
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics if name != "epoch"}
    return {(name, metric.step): metric.value for name, history in histories.items() for metric in history}


@pytest.mark.slow
@needs["mlflow"]
@quiet_mlflow
def test_mlflow_has_the_knobs_and_every_value_of_the_csv(tmp_path: Path) -> None:
    outcome = typed(tmp_path, *SMALL, *MLFLOW, "lr=0.003", "name=trials", "hydra.run.dir=first")
    assert outcome.code == 0, outcome.text
    assert "mlflow" not in outcome.text.lower()  # one voice
    (run,) = mlflow_runs(tmp_path)
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert run.data.tags["folder"] == str(tmp_path / "first")
    chosen = {"lr": "0.003", "data": "wine", "optimizer": "adamw", "epochs": "2"}
    assert chosen.items() <= run.data.params.items()
    assert untimed(mlflow_curves(tmp_path, run), [3, 6]) == pytest.approx(curves(tmp_path / "first"))
    assert "test/accuracy" in run.data.metrics
    # a second run of the same name is a second run of the experiment
    assert typed(tmp_path, *SMALL, *MLFLOW, "name=trials", "hydra.run.dir=second").code == 0
    first, second = mlflow_runs(tmp_path)
    assert first.info.experiment_id == second.info.experiment_id
    assert (first.info.run_name, second.info.run_name) == ("first", "second")
    # a resumed run goes on as the same one
    outcome = typed(tmp_path, "resume=first", "epochs=3")
    assert outcome.code == 0, outcome.text
    first, second = mlflow_runs(tmp_path)
    assert first.info.status == "FINISHED"
    assert untimed(mlflow_curves(tmp_path, first), [3, 6, 9]) == pytest.approx(curves(tmp_path / "first"))


@pytest.mark.slow
@needs["mlflow"]
@quiet_mlflow
def test_a_run_that_fails_is_marked_as_failed_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunelab.callbacks import Clock

    def stop(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Clock, "on_train_batch_end", stop)
        assert typed(tmp_path, *SMALL, *MLFLOW, "hydra.run.dir=run").code == 130
    (run,) = mlflow_runs(tmp_path)
    assert run.info.status == "FAILED"


# ---- without, and together


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_service_that_is_not_installed_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, package, raising=False)
    make = {
        "wandb": lambda: Wandb(str(tmp_path), project="p", name="n", offline=True),
        "mlflow": lambda: Mlflow(str(tmp_path), experiment="e", tracking_uri="sqlite:///mlflow.db"),
    }
    with pytest.raises(ConfigError, match=rf'Type pip install "tunelab\[{package}\]", or leave it out'):
        make[package]()


@pytest.mark.slow
@needs["wandb"]
@needs["mlflow"]
@quiet_mlflow
def test_all_loggers_at_once_hold_the_same_values(tmp_path: Path) -> None:
    everything = ("logger=[csv,tensorboard,wandb,mlflow]", WANDB[1], MLFLOW[1])
    outcome = typed(tmp_path, *SMALL, *everything, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.text
    (of_mlflow,), (of_wandb,) = mlflow_runs(tmp_path), offline_runs(tmp_path)
    assert mlflow_curves(tmp_path, of_mlflow) == pytest.approx(wandb_curves(of_wandb))
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
