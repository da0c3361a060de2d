"""What a search leaves behind: results.csv, what is said of failures, one look at the test set, and a row per trial."""

import csv
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import TrialState, create_trial

from tunelab.errors import RunFailed
from tunelab.sweep.found import headlines, show_repeats
from tunelab.sweep.hparams import write_row
from tunelab.sweep.repeats import repeated
from tunelab.sweep.results import Results, look, nothing_found, others, table
from tunelab.sweep.space import read_space

REPOSITORY = Path(__file__).parents[1]
TRAIN = REPOSITORY / "train.py"
SPACE = read_space(OverridesParser.create().parse_overrides(["lr=0.1,0.2,0.3", "model.heads=1,2"]), {}, 0)


def trial(number, state, value=None, curve=None, params=None, **said):
    params = params or {"lr": 0.1}
    made = create_trial(
        state=state,
        value=value,
        params=params,
        distributions={key: SPACE[key].distribution for key in params},
        intermediate_values=curve or {},
        user_attrs=said,
    )
    made.number = number
    return made


def plan(folder="outputs/sweeps/a", *, test=True):
    recipes = SimpleNamespace(unchanged=lambda: SimpleNamespace(test=test))
    dials = {"trial_timeout": 60}
    return SimpleNamespace(space=SPACE, objective="val/loss", folder=Path(folder), recipes=recipes, dials=dials)


# ---- results.csv


def test_the_table_has_every_trial_best_first_then_pruned_then_failed():
    trials = [
        trial(0, TrialState.COMPLETE, 0.5, epoch=2, epochs=3, seconds=1.5),
        trial(1, TrialState.FAIL, kind="failed", cause='He said "no",\nthen died'),
        trial(2, TrialState.COMPLETE, 0.3, params={"lr": 0.2, "model.heads": 2}, epoch=3, epochs=3, seconds=2.0),
        trial(3, TrialState.PRUNED, 0.9, curve={1: 0.8, 2: 0.9}, epoch=1, epochs=2, seconds=1.0),
        trial(4, TrialState.RUNNING, curve={1: 0.1}),
        trial(5, TrialState.COMPLETE, 0.3, epoch=1, epochs=3, seconds=2.0),
    ]
    rows = list(csv.DictReader(io.StringIO(table(trials, plan(), "minimize"), newline="")))
    shared = ["trial", "state", "val/loss", "epoch", "epochs", "seconds"]
    assert list(rows[0]) == [*shared, "lr", "model.heads", "folder", "cause"]
    assert [(row["trial"], row["state"]) for row in rows] == [
        *(("2", "finished"), ("5", "finished"), ("0", "finished")),
        *(("3", "pruned"), ("1", "failed"), ("4", "running")),
    ]
    assert list(rows[0].values()) == ["2", "finished", "0.3", "3", "3", "2.0", "0.2", "2", "outputs/sweeps/a/2", ""]
    assert (rows[3]["val/loss"], rows[3]["epoch"], rows[3]["model.heads"]) == ("0.8", "1", "")
    assert rows[4]["cause"] == 'He said "no",\nthen died'


def test_processes_that_write_the_results_of_one_search_at_once_do_not_take_each_others_files(tmp_path):
    recipes = SimpleNamespace(unchanged=lambda: SimpleNamespace(logger={"tensorboard": {}}))
    of_all = SimpleNamespace(space=SPACE, objective="val/loss", folder=tmp_path, recipes=recipes)
    ended = [trial(n, TrialState.COMPLETE, 0.5, epoch=2, epochs=3, seconds=1.5) for n in range(3)]
    study = SimpleNamespace(direction=SimpleNamespace(name="MINIMIZE"))

    def write(_):
        for _ in range(20):
            Results(of_all, SimpleNamespace(study=study, all=lambda: ended)).refresh(now=True)

    with ThreadPoolExecutor(4) as pool:  # each opens the lock's file anew, as a process does
        list(pool.map(write, range(4)))
    assert (tmp_path / "results.csv").read_text() == table(ended, of_all, "minimize")
    assert sorted(path.parent.parent.name for path in tmp_path.glob("*/tensorboard/*")) == ["0", "1", "2"]


# ---- nothing found


def test_causes_are_counted_and_the_end_of_one_log_is_shown():
    failed = [trial(n, TrialState.FAIL, cause="no disk\nsecond line", log="a\nb") for n in range(3)]
    said = nothing_found(
        [*failed, trial(3, TrialState.FAIL, cause="no luck", log="c\nd"), trial(4, TrialState.PRUNED, 1)]
    )
    assert said.splitlines() == [
        "No trial has finished: 4 failed, 1 pruned.",
        "",
        "trials  cause",
        "     3  no disk",
        "     1  no luck",
        "",
        "The end of the log of trial 3:",
        "  c",
        "  d",
    ]


def test_that_nothing_has_finished_is_said_where_nothing_failed_either():
    assert nothing_found([trial(0, TrialState.PRUNED, 1.0)]).startswith("No trial has finished: 1 pruned.")
    assert nothing_found([]).startswith("No trial has finished: none has begun.")


def test_pruned_and_failed_trials_are_counted_by_cause_and_those_tried_again_are_not():
    causes = ["The loss became NaN at step 2.", "The loss became NaN at step 17.", "no disk", "passed"]
    failed = [trial(n, TrialState.FAIL, cause=cause) for n, cause in enumerate(causes)]
    again = trial(4, TrialState.COMPLETE, 0.5, retry_of=3)
    assert others([*failed, again, trial(5, TrialState.PRUNED, 1.0)]) == [
        "1 pruned, 3 failed:",
        "trials  cause",
        "     2  The loss became NaN at step 2.",
        "     1  no disk",
    ]
    assert others([again, trial(5, TrialState.PRUNED, 1.0)]) == ["1 pruned"]
    assert others([again]) == []


# ---- the headline


def test_a_best_epoch_of_the_best_trial_is_said_to_be_optimistic():
    best = trial(2, TrialState.COMPLETE, 0.3, params={"lr": 0.2}, epoch=3, epochs=5)
    assert headlines(best, 4, [], plan()) == {
        "best trial": "2: lr=0.2",
        "val/loss": "0.3000 in epoch 3 of 5 (optimistic: the best of 5 epochs and of 4 trials)",
    }
    only = trial(0, TrialState.COMPLETE, 0.3, params={"lr": 0.2}, epoch=1, epochs=1)
    assert headlines(only, 1, [], plan())["val/loss"] == "0.3000 in epoch 1 of 1"


def test_of_a_search_over_folds_the_mean_is_the_headline_with_its_standard_error_and_not_the_easiest_fold(capsys):
    space = read_space(OverridesParser.create().parse_overrides(["lr=0.1,0.2", "fold=0/3,1/3,2/3"]), {}, 0)
    of_folds = SimpleNamespace(space=space, objective="val/accuracy")
    scores = [(0.1, 1.0), (0.1, 0.9), (0.1, 0.95), (0.2, 0.5), (0.2, 0.6), (0.2, 0.4)]
    ended = []
    for number, (lr, value) in enumerate(scores):
        params = {"lr": lr, "fold": f"{number % 3}/3"}
        made = create_trial(
            value=value,
            params=params,
            distributions={key: space[key].distribution for key in params},
            user_attrs={"epoch": 2, "epochs": 2},
        )
        made.number = number
        ended.append(made)
    found = repeated(ended, space, "maximize")
    assert headlines(ended[0], 6, found, of_folds) == {
        "best": "lr=0.1",
        "val/accuracy": "0.9500, mean over 3 folds, standard error 0.029 "
        "(optimistic: the best of 2 epochs and of 2 configurations)",
        "its best run": "trial 0: lr=0.1 fold=0/3, val/accuracy 1.0000 in epoch 2 of 2: one run may be luck",
    }
    show_repeats(found, of_folds)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "folds  lr   mean val/accuracy  standard error  sd      min     max",
        "3      0.1  0.9500             0.0289          0.0500  0.9000  1.0000",
        "3      0.2  0.5000             0.0577          0.1000  0.4000  0.6000",
    ]


# ---- the test set


class Worker:
    """Scores a trial's test set, and counts how often it was asked."""

    def __init__(self):
        self.asked = []

    def call(self, name, folder, *, seconds):
        assert seconds == 60
        self.asked.append((name, folder.name))
        if folder.name == "9":
            raise RunFailed("`checkpoint` must be one that a/9 has, got best. Train it with callbacks=[checkpoint].")
        return {"test/loss": 0.25, "test/accuracy": 0.75}


def test_the_test_set_is_looked_at_once_for_each_winner_and_each_look_is_kept():
    worker, trials = Worker(), SimpleNamespace(study=optuna.create_study())
    first, second = trial(1, TrialState.COMPLETE, 0.5), trial(2, TrialState.COMPLETE, 0.4)
    assert look(plan(), trials, worker, first) == {"test/loss": "0.2500"}
    assert look(plan(), trials, worker, first) == {"test/loss": "0.2500"}
    assert worker.asked == [("test_score", "1")]
    (said,) = look(plan(), trials, worker, second).values()
    assert said == "0.2500 (look 2 at the test set, after trial 1: the more looks, the less it says)"
    kept = trials.study.user_attrs["test_looks"]
    assert [(each["trial"], each["scores"]["test/accuracy"]) for each in kept] == [(1, 0.75), (2, 0.75)]


def test_it_is_not_looked_at_where_the_user_does_not_want_it_or_no_checkpoint_is_there():
    worker, trials = Worker(), SimpleNamespace(study=optuna.create_study())
    assert look(plan(test=False), trials, worker, trial(1, TrialState.COMPLETE, 0.5)) == {
        "test": "not scored, as test=false says"
    }
    assert worker.asked == []
    (said,) = look(plan(), trials, worker, trial(9, TrialState.COMPLETE, 0.5)).values()
    assert said.startswith("not scored: `checkpoint` must be one that")
    assert "test_looks" not in trials.study.user_attrs


# ---- TensorBoard


def rows_of(folder):
    """The hparams of each event file of a trial, in the order in which TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams import metadata

    for path in sorted((folder / "tensorboard").iterdir()):
        for record in RawEventFileLoader(str(path)).Load():
            for value in Event.FromString(record).summary.value:
                content = value.metadata.plugin_data.content
                if value.tag == metadata.SESSION_START_INFO_TAG:
                    info = metadata.parse_session_start_info_plugin_data(content).hparams
                    yield {name: getattr(each, each.WhichOneof("kind")) for name, each in info.items()}
                if value.tag == metadata.SESSION_END_INFO_TAG:
                    yield metadata.parse_session_end_info_plugin_data(content).status


def test_a_trial_that_never_began_has_a_row_with_its_values_and_that_it_failed(tmp_path):
    write_row(tmp_path, {"lr": 0.1, "compile": True, "optimizer": "sgd", "fold": None}, "failed")
    values, status = rows_of(tmp_path)
    assert values == {"lr": 0.1, "compile": True, "optimizer": "sgd", "state": "failed"}
    assert status == 2  # STATUS_FAILURE


def test_the_row_of_a_trial_keeps_all_that_its_run_wrote_and_is_read_first(tmp_path):
    from tunelab.loggers import TensorBoard

    logger = TensorBoard(str(tmp_path))
    logger.log_knobs({"lr": 0.1, "model": "mlp"})
    logger.close()
    write_row(tmp_path, {"lr": 0.1}, "pruned")
    first, status, *_ = rows_of(tmp_path)
    assert first == {"lr": 0.1, "model": "mlp", "state": "pruned"}
    assert status == 1  # STATUS_SUCCESS


# ---- a whole small search


def rows_in(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))


def run(folder, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TRAIN), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


def test_a_small_search_leaves_its_table_its_winner_and_one_look_at_the_test_set(tmp_path):
    done = run(tmp_path, "-m", "data=iris", "size=tiny", "epochs=1", "lr=1e-3,0.1", "name=small")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "sweeps" / "small"
    rows = rows_in(folder / "results.csv")
    assert [row["state"] for row in rows] == ["finished", "finished"]
    assert float(rows[0]["val/accuracy"]) >= float(rows[1]["val/accuracy"])
    results = [json.loads((folder / row["trial"] / "result.json").read_text(encoding="utf-8")) for row in rows]
    assert [result["objective"]["best"] for result in results] == [float(row["val/accuracy"]) for row in rows]
    assert set(results[0]["test"]) == {"test/loss", "test/accuracy"}
    assert results[1]["test"] is None
    assert results[0]["val_examples"] == 15
    assert f"best trial     {rows[0]['trial']}: lr={float(rows[0]['lr']):g}\n" in done.stdout
    assert f"test/accuracy  {results[0]['test']['test/accuracy']:.4f}\n" in done.stdout
    assert "python train.py --config-dir outputs/sweeps/small experiment=best\n" in done.stdout
    assert len([line for line in done.stderr.splitlines() if line.startswith("trial ")]) == 2


@pytest.mark.server
@pytest.mark.slow
def test_tensorboard_shows_every_trial_with_its_objective_and_how_it_ended(tmp_path):
    from test_tensorboard import post, tensorboard

    done = run(tmp_path, "-m", "data=iris", "size=tiny", "epochs=2", "optimizer=sgd", "lr=0.1,1e30", "name=both")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "sweeps" / "both"
    write_row(folder / "2", {"lr": 0.5}, "failed")  # one that never began
    with tensorboard(folder) as address:
        question = {
            "experimentName": "",
            "allowedStatuses": ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING", "STATUS_UNKNOWN"],
            "colParams": [{"metric": {"group": "", "tag": "best/val/accuracy"}}],
            "startIndex": 0,
            "sliceSize": 9,
        }
        path = f"{address}/experiment/defaultExperimentId/data/plugin/hparams/session_groups"
        groups = post(path, question)["sessionGroups"]
    shown = {group["sessions"][0]["name"].split("/")[0]: group for group in groups}
    assert {name: group["hparams"]["state"] for name, group in shown.items()} == {
        "0": "finished",
        "1": "failed",
        "2": "failed",
    }
    assert shown["0"]["hparams"]["data"] == "iris"
    best = json.loads((folder / "0" / "result.json").read_text(encoding="utf-8"))["objective"]["best"]
    assert shown["0"]["sessions"][0]["metricValues"][0]["value"] == pytest.approx(best)
    assert [shown[name]["sessions"][0]["status"] for name in "012"] == ["STATUS_SUCCESS", *["STATUS_FAILURE"] * 2]


@pytest.mark.slow
def test_the_winner_runs_again_bit_for_bit_and_its_test_set_is_not_looked_at_twice(tmp_path):
    import torch

    search = ["-m", "data=digits", "size=tiny", "epochs=2", "lr=1e-3,1e-2", "dropout=0,0.1", "name=small"]
    assert run(tmp_path, *search, "sweep.n_jobs=2").returncode == 0
    folder = tmp_path / "outputs" / "sweeps" / "small"
    best = folder / rows_in(folder / "results.csv")[0]["trial"]
    looks = (best / "evaluations.jsonl").read_text(encoding="utf-8")
    assert len(looks.splitlines()) == 1
    assert run(tmp_path, *search).returncode == 0
    assert (best / "evaluations.jsonl").read_text(encoding="utf-8") == looks
    again = run(tmp_path, "--config-dir", str(folder), "experiment=best", "hydra.run.dir=again")
    assert again.returncode == 0, again.stderr
    columns = ("step", "epoch", "train/loss", "val/loss", "val/accuracy")
    metrics = [
        [[row[key] for key in columns] for row in rows_in(path / "metrics.csv")] for path in (best, tmp_path / "again")
    ]
    assert metrics[0][-1][-1] != ""
    assert [row for row in metrics[1] if row in metrics[0]] == metrics[0]
    weights = [
        torch.load(path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for path in (best, tmp_path / "again")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0] | weights[1])
    results = [json.loads((path / "result.json").read_text(encoding="utf-8")) for path in (best, tmp_path / "again")]
    assert results[0]["test"] == results[1]["test"]


@pytest.mark.slow
def test_a_search_in_which_all_fails_says_why_and_ends_with_1(tmp_path):
    done = run(tmp_path, "-m", "data=iris", "size=tiny", "epochs=2", "optimizer=sgd", "lr=1e30,1e20", "name=bad")
    assert done.returncode == 1
    assert "     2  The loss became NaN at step 2 (epoch 1, batch 2 of 2)." in done.stderr
    assert "The end of the log of trial 1:" in done.stderr
    assert (tmp_path / "outputs" / "sweeps" / "bad" / "results.csv").read_text(encoding="utf-8").count(",failed,") == 2
