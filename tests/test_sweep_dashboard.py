"""optuna-dashboard and Optuna itself open a sweep's study as it is."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from test_sweep_trials import SPACE, trials_in

from tunelab.sweep.storage import open_storage

SAID = {"epoch": 2, "epochs": 3, "seconds": 4.5}
FAILED = {"kind": "failed", "cause": "ValueError: no", "log": "line 1\nline 2"}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of a finished, a pruned and a failed trial and one that waits."""
    trials = trials_in(tmp_path, open_storage(None, tmp_path))
    complete, pruned, failed, waiting = (claim for _ in range(4) if (claim := trials.next()))
    for epoch, value in enumerate([0.9, 0.5, float("nan")]):
        trials.report(complete, epoch, value)
    trials.report(pruned, 0, 2.0)
    trials.end(complete, TrialState.COMPLETE, 0.5, **SAID)
    trials.end(pruned, TrialState.PRUNED, **SAID)
    trials.end(failed, TrialState.FAIL, **FAILED)
    trials.give_back(waiting)
    return tmp_path / "study.journal"


def test_optuna_loads_the_study_from_its_file(study: Path) -> None:
    loaded = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(study))))
    frame = loaded.trials_dataframe()
    assert list(frame["state"]) == ["COMPLETE", "PRUNED", "FAIL", "WAITING"]
    assert list(frame["value"].dropna()) == [0.5, 2.0]
    assert list(frame["user_attrs_cause"].dropna()) == ["ValueError: no"]
    assert loaded.best_trial.number == 0
    assert {f"params_{knob.key}" for knob in SPACE.knobs} <= set(frame.columns)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return json.load(answer)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.server
def test_the_dashboard_shows_each_trial_with_its_values_reports_and_cause(study: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    port = free_port()
    command = [str(Path(sys.executable).with_name("optuna-dashboard")), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen([*command, str(study)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            address = f"http://127.0.0.1:{port}/api/studies"
            until = time.monotonic() + 600
            while True:
                try:
                    (summary,) = get(address)["study_summaries"]
                    break
                except OSError:
                    assert time.monotonic() < until, "it does not answer"
                    time.sleep(0.2)
            shown = get(f"{address}/{summary['study_id']}?after=0")
        finally:
            server.terminate()
    assert summary["study_name"] == "s"
    assert [trial["state"] for trial in shown["trials"]] == ["Complete", "Pruned", "Fail", "Waiting"]
    assert [trial.get("values") for trial in shown["trials"]] == [[0.5], [2.0], None, None]
    reports = [(report["step"], report["value"]) for report in shown["trials"][0]["intermediate_values"]]
    assert reports == [(0, 0.9), (1, 0.5), (2, "nan")]
    attributes = [{a["key"]: a["value"] for a in trial["user_attrs"]} for trial in shown["trials"]]
    assert attributes == [{name: str(what) for name, what in said.items()} for said in (SAID, SAID, FAILED, {})]
    values = {parameter["name"]: parameter["param_external_value"] for parameter in shown["trials"][0]["params"]}
    first = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(study)))).trials[0]
    assert values == {name: str(value) for name, value in first.params.items()}
