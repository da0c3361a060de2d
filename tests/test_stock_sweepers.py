"""The sweepers and launchers that are not ours: Hydra's basic one, Optuna's plugin, joblib; and ours through joblib."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from test_command import in_process_of_its_own

SMALL = ("data=iris", "size=tiny", "epochs=1", "threads=1")
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
ANY_LR = "lr=tag(log,interval(1e-3,1e-1))"

pytestmark = pytest.mark.slow


def scores(folder: Path) -> dict[str, float]:
    """The best objective of each run below a folder, by the name of its own."""
    return {p.parent.name: json.loads(p.read_text())["objective"]["best"] for p in folder.glob("*/result.json")}


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_hydras_own_sweeper_and_the_joblib_launcher_run_two_at_once(tmp_path: Path) -> None:
    words = ("hydra/sweeper=basic", *JOBLIB, "lr=1e-3,1e-2", "hydra.sweep.dir=sweep", *SMALL)
    outcome = in_process_of_its_own(tmp_path, "-m", *words)
    assert outcome.code == 0, outcome.text
    records = [json.loads((tmp_path / "sweep" / name / "run.json").read_text()) for name in "01"]
    assert ["lr=0.001" in record["overrides"] for record in records] == [True, False]
    assert all(record["command"].startswith("python ") and " -m " in record["command"] for record in records)
    lrs = [OmegaConf.load(tmp_path / "sweep" / name / "config.yaml").lr for name in "01"]
    assert lrs == [1e-3, 1e-2]


def test_optunas_own_sweeper_takes_its_sampler_and_the_joblib_launcher(tmp_path: Path) -> None:
    sampler = ("hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0")
    optuna = ("hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=4")
    words = (*optuna, *sampler, "hydra.sweeper.n_jobs=2", *JOBLIB, "hydra.sweep.dir=sweep", ANY_LR, *SMALL)
    outcome = in_process_of_its_own(tmp_path, "-m", *words)
    assert outcome.code == 0, outcome.text
    found = scores(tmp_path / "sweep")
    assert sorted(found) == ["0", "1", "2", "3"]
    told = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert told["best_value"] == max(found.values())


def test_optunas_own_sweeper_is_refused_a_search_for_the_worst(tmp_path: Path) -> None:
    words = ("hydra/sweeper=optuna", "hydra.sweeper.direction=minimize", "hydra.sweeper.n_trials=2", ANY_LR, *SMALL)
    outcome = in_process_of_its_own(tmp_path, "-m", *words)
    assert outcome.code == 1
    assert "Add hydra.sweeper.direction=maximize." in outcome.text


def test_ours_searches_through_another_launcher_and_goes_on_with_the_same_command(tmp_path: Path) -> None:
    words = ("sweep=random", "sweep.n_jobs=2", *JOBLIB, "name=cluster", ANY_LR, *SMALL)
    values = []
    for n_trials in (2, 3):
        outcome = in_process_of_its_own(tmp_path, "-m", f"sweep.n_trials={n_trials}", *words)
        assert outcome.code == 0, outcome.text
        rows = table(tmp_path / "outputs/sweeps/cluster/results.csv")
        found = scores(tmp_path / "outputs/sweeps/cluster")
        assert {row["trial"]: float(row["val/accuracy"]) for row in rows} == found
        assert sorted(found) == [str(number) for number in range(n_trials)]
        values.append({row["trial"]: row["lr"] for row in rows})
    assert values[0].items() <= values[1].items()
    lrs = {n: str(OmegaConf.load(tmp_path / f"outputs/sweeps/cluster/{n}/config.yaml").lr) for n in values[1]}
    assert lrs == values[1]
    assert list(tmp_path.rglob("config.yaml")) == list(tmp_path.glob("outputs/sweeps/cluster/*/config.yaml"))


def test_a_run_that_ends_badly_under_another_launcher_fails_alone(tmp_path: Path) -> None:
    words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "lr=1e-3,1e30", "name=cluster", *SMALL)
    outcome = in_process_of_its_own(tmp_path, "-m", *words, "optimizer=sgd", "epochs=3")
    assert outcome.code == 0, outcome.text
    rows = table(tmp_path / "outputs/sweeps/cluster/results.csv")
    assert [(row["trial"], row["state"]) for row in rows] == [("0", "finished"), ("1", "failed")]
    journal = (tmp_path / "outputs/sweeps/cluster/study.journal").read_text(encoding="utf-8")
    assert '"kind":"diverged"' in journal.replace(" ", "")  # which is not tried again
    assert "best trial 0 of 2" in outcome.text
    assert "To run it again: python train.py repeat=outputs/sweeps/cluster/0\n" in outcome.text
    assert "To score it: python train.py evaluate run=outputs/sweeps/cluster/0\n" in outcome.text


def test_another_launcher_takes_no_other_runs_folder_for_a_trials(tmp_path: Path) -> None:
    words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "name=cluster", *SMALL)
    assert in_process_of_its_own(tmp_path, "-m", "lr=1e-3,1e-2", *words).code == 0
    folder = tmp_path / "outputs/sweeps/cluster"
    (folder / "study.journal").unlink()
    left = {path: path.read_bytes() for path in folder.glob("*/result.json")}
    outcome = in_process_of_its_own(tmp_path, "-m", "lr=1e-1,1e-2", *words)
    assert outcome.code == 1
    assert "`outputs/sweeps/cluster/0` must be free for trial 0, got the run of lr=0.001" in outcome.text
    assert {path: path.read_bytes() for path in folder.glob("*/result.json")} == left
    (folder / "study.journal").unlink()
    outcome = in_process_of_its_own(tmp_path, "-m", "lr=1e-3,1e-2", *words)  # the same runs, of which nothing was heard
    assert outcome.code == 0
    assert [row["state"] for row in table(folder / "results.csv")] == ["finished", "finished"]
    assert {path: path.read_bytes() for path in folder.glob("*/result.json")} == left


def test_a_pruner_is_refused_where_nothing_is_heard_of_a_trial_before_its_end(tmp_path: Path) -> None:
    outcome = in_process_of_its_own(tmp_path, "-m", "pruner=median", "hydra/launcher=joblib", "lr=1e-3,1e-2", *SMALL)
    assert outcome.code == 1
    assert "`pruner` must be none where Hydra's launcher runs the trials. Leave pruner= out." in outcome.text
    assert list(tmp_path.iterdir()) == []
