"""Whole runs: their score, their folder, their repeatability; several at once."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_command import in_process_of_its_own, refused, typed

from tunelab.record import code_hash
from tunelab.spec import DataSpec

Fit = Callable[..., tuple[dict[str, Any], Path]]
TINY = ("size=tiny", "epochs=2")


def weights(folder: Path, which: str = "last") -> dict[str, torch.Tensor]:
    content = torch.load(folder / "checkpoints" / f"{which}.ckpt", weights_only=True)
    state = content["state_dict"]
    assert isinstance(state, dict)
    return state


def same_bits(first: Path, second: Path) -> bool:
    """Whether two runs have the same weights, best and last, and wrote the same metrics."""
    for which in ("best", "last"):
        one, other = weights(first, which), weights(second, which)
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            return False
    return (first / "metrics.csv").read_bytes() == (second / "metrics.csv").read_bytes()


# ---- one run


def test_the_default_recipe_learns_the_digits(fit: Fit) -> None:
    result, _ = fit("trainer.enable_progress_bar=false")
    # it reaches 0.98; of 180 test images that has a standard error of sqrt(0.98 * 0.02 / 180) = 0.010: three below
    assert result["test"]["test/accuracy"] >= 0.95


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    outcome = typed(folder, *TINY, "seed=5", "threads=1", "regularization=[l1,dropout]", "hydra.run.dir=run")
    assert outcome.folder == "run", outcome.err
    return folder / "run"


def test_a_run_folder_has_every_file(finished: Path) -> None:
    found = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    (events,) = (name for name in found if name.startswith("tensorboard/events.out.tfevents."))
    assert found - {events} == {
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "config.yaml",
        "data_spec.json",
        "facts.json",
        "members.npz",
        "metrics.csv",
        "result.json",
        "run.json",
        "train.log",
    }


def test_the_recorded_config_is_whole_and_has_no_interpolation(finished: Path) -> None:
    text = (finished / "config.yaml").read_text()
    cfg = OmegaConf.create(text)
    assert "${" not in text
    assert "???" not in text
    assert (cfg.seed, cfg.threads, cfg.epochs, cfg.objective_direction) == (5, 1, 2, "maximize")
    assert cfg.task.optimizer.lr == cfg.lr == 1e-3
    assert cfg.task.model.width == cfg.size.width == 32


def test_the_record_says_how_the_run_was_made(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    typed_overrides = [*TINY, "seed=5", "threads=1", "regularization=[l1,dropout]"]
    assert [o for o in record["overrides"] if not o.startswith("hydra.")] == typed_overrides
    assert (record["seed"], record["threads"]) == (5, 1)
    assert record["choices"]["optimizer"] == "adamw"
    assert record["choices"]["size"] == "tiny"
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"].keys() >= {"python", "tunelab", "lightning", "hydra-core", "numpy", "scikit-learn"}
    assert record["code"] == code_hash()
    assert re.fullmatch(r"[0-9a-f]{64}", record["code"])


def test_the_record_names_every_member_that_was_chosen_those_that_set_a_dial_too(finished: Path) -> None:
    choices = json.loads((finished / "run.json").read_text())["choices"]
    assert sorted(choices["regularization"]) == ["dropout", "l1"]
    assert choices["callbacks"] == ["checkpoint", "finite", "gradients", "updates", "dead_units", "lr", "throughput"]


def test_the_result_agrees_with_the_metrics(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    metrics = pd.read_csv(finished / "metrics.csv")
    scores = metrics.dropna(subset="val/accuracy")
    best = scores["val/accuracy"].max()
    assert result["objective"] == {
        "metric": "val/accuracy",
        "direction": "maximize",
        "best": best,
        "epoch": int(scores["val/accuracy"].argmax()) + 1,
    }
    assert result["test"]["test/accuracy"] == metrics["test/accuracy"].dropna().item()
    assert (result["status"], result["epochs"], result["epochs_asked"], result["steps"]) == ("finished", 2, 2, 46)
    assert result["parameters"] == 64 * 32 + 32 + 32 * 10 + 10


def test_the_data_spec_of_the_folder_is_that_of_the_checkpoint(finished: Path) -> None:
    written = DataSpec.from_json(json.loads((finished / "data_spec.json").read_text()))
    kept = DataSpec.from_json(torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)["data_spec"])
    assert written == kept
    assert (written.kind, written.input_shape, written.output_size) == ("image", (1, 8, 8), 10)


def test_tensorboard_and_the_csv_hold_the_same_scalars(finished: Path) -> None:
    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    metrics = pd.read_csv(finished / "metrics.csv")
    columns = set(metrics.columns) - {"step", "epoch"}
    assert columns <= set(events.Tags()["scalars"])
    for column in columns:
        rows = metrics.dropna(subset=column)
        written = [(event.step, event.value) for event in events.Scalars(column)]
        assert [step for step, _ in written] == rows["step"].tolist()
        assert [value for _, value in written] == pytest.approx(rows[column].tolist(), rel=1e-6)  # float32 there


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_run_without_a_part_of_the_data_says_so_in_its_result(tmp_path: Path, part: str) -> None:
    outcome = typed(tmp_path, *TINY, f"data.{part}_fraction=0", "hydra.run.dir=run")
    assert "Traceback" not in outcome.err, outcome.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    if part == "test":
        assert result["test"] is None
    else:
        assert (result["objective"]["best"], result["objective"]["epoch"]) == (None, None)


def test_a_run_may_leave_the_test_set_alone(tmp_path: Path) -> None:
    outcome = typed(tmp_path, *TINY, "test=false", "hydra.run.dir=run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"] is None
    assert "test/" not in outcome.text + (tmp_path / "run" / "metrics.csv").read_text()


def test_the_test_score_is_that_of_the_best_checkpoint_and_not_of_the_last(tmp_path: Path) -> None:
    # asked for the greatest loss, it finds it in the first epoch
    typed(tmp_path, "objective=val/loss", "objective_direction=maximize", *TINY, "hydra.run.dir=run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    scores = {}
    for which in ("best", "last"):
        outcome = typed(tmp_path, "run=run", f"checkpoint={which}", script="scripts/evaluate.py")
        scores[which] = float(re.findall(r"test/accuracy +([\d.]+)", outcome.out)[0])
    assert result["objective"]["epoch"] == 1
    assert scores["best"] == round(result["test"]["test/accuracy"], 4) != scores["last"]


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    text = refused(typed(tmp_path, "trainer=gpu", *TINY), 1)
    assert "`trainer=gpu` must have a GPU that PyTorch can use, but there is none. Try trainer=cpu." in text


# ---- the same numbers


def test_the_same_seed_gives_the_same_bits_whatever_ran_before(fit: Fit) -> None:
    words = (*TINY, "regularization=[dropout]", "trainer.enable_progress_bar=false")
    _, first = fit(*words, "seed=3")
    _, other = fit(*words, "seed=4", "model=cnn", "trainer.deterministic=false")
    _, again = fit(*words, "seed=3")
    assert same_bits(first, again)
    assert not same_bits(first, other)


def test_another_seed_gives_other_weights_on_the_same_split(fit: Fit) -> None:
    folders = [fit(*TINY, f"seed={seed}", "trainer.enable_progress_bar=false")[1] for seed in (0, 1)]
    assert not same_bits(*folders)
    assert (folders[0] / "data_spec.json").read_text() == (folders[1] / "data_spec.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("regularization=[dropout,l1]",), ("model=cnn", "clipping=norm"), ("data=diabetes",)]
)
def test_two_processes_give_the_same_bits(tmp_path: Path, words: tuple[str, ...]) -> None:
    for run in ("one", "two"):
        outcome = in_process_of_its_own(tmp_path, *TINY, *words, "threads=1", f"hydra.run.dir={run}")
        assert outcome.code == 0, outcome.err
    assert same_bits(tmp_path / "one", tmp_path / "two")


# ---- repeat


@pytest.fixture(scope="module")
def of_two_threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with more threads than the tests have, and with few steps, for two threads on a busy core are slow."""
    folder = tmp_path_factory.mktemp("original")
    words = (
        *TINY,
        "seed=7",
        "threads=2",
        "name=mine",
        "optimizer=sgd",
        "regularization=[dropout,l2]",
        "batch_size=full",
    )
    outcome = typed(folder, *words)
    assert outcome.code == 0, outcome.err
    return folder / outcome.folder


def test_a_repeated_run_is_the_same_bit_for_bit_in_a_folder_of_its_own(of_two_threads: Path, tmp_path: Path) -> None:
    outcome = typed(tmp_path, f"repeat={of_two_threads}")
    again = tmp_path / outcome.folder
    assert again.parent == tmp_path / "outputs" / "mine"
    assert same_bits(of_two_threads, again)
    assert (again / "config.yaml").read_text() == (of_two_threads / "config.yaml").read_text()
    first, second = (json.loads((folder / "run.json").read_text()) for folder in (of_two_threads, again))
    same = ("seed", "threads", "overrides", "choices", "code")
    assert {key: second[key] for key in same} == {key: first[key] for key in same}
    assert (second["seed"], second["threads"]) == (7, 2)


@pytest.mark.slow
def test_a_repetition_can_itself_be_repeated(of_two_threads: Path, tmp_path: Path) -> None:
    first = typed(tmp_path, f"repeat={of_two_threads}")
    second = typed(tmp_path, f"repeat={first.folder}")
    assert same_bits(of_two_threads, tmp_path / second.folder)


def test_a_repetition_may_have_another_name(of_two_threads: Path, tmp_path: Path) -> None:
    outcome = typed(tmp_path, f"repeat={of_two_threads}", "name=again")
    assert outcome.folder.startswith("outputs/again/")
    assert same_bits(of_two_threads, tmp_path / outcome.folder)


@pytest.mark.parametrize("words", [["lr=0.2"], ["optimizer=adam", "epochs=3"], ["seed=8"], ["threads=1"]])
def test_a_repetition_with_changes_is_refused_with_the_command_for_a_changed_run(
    of_two_threads: Path, tmp_path: Path, words: list[str]
) -> None:
    text = refused(typed(tmp_path, f"repeat={of_two_threads}", *words), 1)
    assert f"`repeat` must stand alone to be a repetition, got {' '.join(words)} beside it." in text
    command = shlex.split(re.findall(r"type: python train\.py (.*)$", text, flags=re.MULTILINE)[0])
    recorded = json.loads((of_two_threads / "run.json").read_text())["overrides"]
    changed = {word.split("=")[0] for word in words}
    assert command == [*(word for word in recorded if word.split("=")[0] not in changed), *words]
    made = OmegaConf.create(typed(tmp_path, "--cfg", "job", *command).out)
    for key, value in (word.split("=") for word in words):
        assert (
            made.optimizer._target_ == "torch.optim.Adam" if key == "optimizer" else made[key] == yaml.safe_load(value)
        )


def test_a_repetition_of_what_is_no_run_is_refused_with_the_newest_run(tmp_path: Path) -> None:
    made = typed(tmp_path, *TINY).folder
    text = refused(typed(tmp_path, "repeat=nowhere"), 1)
    assert f"`repeat` must be a run's folder, got nowhere, which does not exist. The newest is {made}." in text
    (tmp_path / "empty").mkdir()
    text = refused(typed(tmp_path, "repeat=empty"), 1)
    assert "`repeat` must be a run's folder with its config.yaml and run.json, got empty." in text


# ---- several runs


def test_a_multirun_makes_a_whole_folder_for_each_run_and_none_meets_the_test_set(tmp_path: Path) -> None:
    outcome = typed(tmp_path, "-m", "hydra/sweeper=basic", "lr=1e-2,1e-3", "optimizer=sgd,adam", *TINY)
    assert outcome.code == 0, outcome.err
    folders = sorted(tmp_path.glob("outputs/multirun/*/*/"))
    made = set()
    for folder in folders:
        cfg = OmegaConf.load(folder / "config.yaml")
        made.add((cfg.lr, cfg.optimizer._target_))
        result = json.loads((folder / "result.json").read_text())
        assert (result["status"], result["steps"], result["test"]) == ("finished", 46, None)
        assert cfg.test is False
        assert {p.name for p in folder.iterdir()} >= {"run.json", "metrics.csv", "data_spec.json", "checkpoints"}
        assert {"lr", "optimizer"} <= {
            o.split("=")[0] for o in json.loads((folder / "run.json").read_text())["overrides"]
        }
        assert "test/" not in (folder / "metrics.csv").read_text()
    assert [folder.name for folder in folders] == ["0", "1", "2", "3"]
    assert made == {(lr, f"torch.optim.{name}") for lr in (1e-2, 1e-3) for name in ("SGD", "Adam")}


def test_a_run_of_a_multirun_is_the_run_of_its_own_command(tmp_path: Path) -> None:
    typed(tmp_path, "-m", "hydra/sweeper=basic", "seed=0,1", *TINY)
    alone = typed(tmp_path, "seed=1", "test=false", *TINY).folder
    (of_several,) = tmp_path.glob("outputs/multirun/*/1")
    assert same_bits(of_several, tmp_path / alone)


@pytest.mark.slow
def test_optunas_own_sweeper_gets_the_objective_of_each_run(tmp_path: Path) -> None:
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.direction=maximize")
    outcome = typed(tmp_path, "-m", *words, "hydra.sweeper.sampler.seed=1", "lr=tag(log,interval(1e-4,1e-1))", *TINY)
    assert outcome.code == 0, outcome.err
    (told,) = tmp_path.glob("outputs/multirun/*/optimization_results.yaml")
    best = yaml.safe_load(told.read_text())
    runs = {p.parent: json.loads(p.read_text())["objective"]["best"] for p in told.parent.glob("*/result.json")}
    winner = max(runs, key=lambda folder: runs[folder])
    assert len(runs) == 3
    assert best["best_value"] == max(runs.values())
    assert best["best_params"] == {"lr": OmegaConf.load(winner / "config.yaml").lr}


def test_optunas_own_sweeper_is_told_the_direction_of_the_objective(tmp_path: Path) -> None:
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=1")
    outcome = typed(tmp_path, "-m", *words, "lr=tag(log,interval(1e-4,1e-1))", *TINY)
    if outcome.code:
        assert "hydra.sweeper.direction=maximize" in refused(outcome, 1)  # to be typed, then
        return
    (told,) = tmp_path.glob("outputs/multirun/*/optimization_results.yaml")
    scores = [json.loads(p.read_text())["objective"]["best"] for p in told.parent.glob("*/result.json")]
    assert yaml.safe_load(told.read_text())["best_value"] == max(scores)
