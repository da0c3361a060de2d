"""debug=…: does it run at all, can the model learn a batch by heart, where does NaN begin."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import options
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from test_command import refused, typed

Fit = Callable[..., tuple[dict[str, Any], Path]]

KINDS = {
    "a table of classes": ("data=wine", "size=tiny"),
    "a table of numbers": ("data=diabetes", "size=tiny"),
    "images": ("data=digits", "model=cnn", "size=tiny"),
    "a sequence": ("data=waves", "model=transformer", "size=tiny"),
}
kinds = pytest.mark.parametrize("words", [pytest.param(words, id=name) for name, words in KINDS.items()])


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


class Batches(Callback):
    """The inputs that the steps were given."""

    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.inputs.append(batch[0].clone())


# ---- one batch


@kinds
def test_one_batch_makes_one_step_one_validation_and_one_test(fit: Fit, words: tuple[str, ...]) -> None:
    result, folder = fit(*words, "debug=one_batch")
    assert (result["status"], result["epochs"], result["steps"]) == ("finished", 1, 1)
    (row,) = rows(folder)
    assert {"train/loss", "val/loss", "test/loss", "gradients/norm", "lr"} <= row.keys()
    assert (folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("experiment", options("experiment"))
def test_one_batch_works_on_every_experiment(fit: Fit, experiment: str) -> None:
    result, _ = fit(f"experiment={experiment}", "debug=one_batch")
    assert (result["status"], result["steps"]) == ("finished", 1)


@pytest.mark.parametrize("dial", ["warmup_steps=100", "warmup_fraction=0.1"])
def test_one_batch_leaves_no_room_for_a_warm_up_that_is_typed(tmp_path: Path, dial: str) -> None:
    outcome = typed(tmp_path, "data=wine", "size=tiny", "debug=one_batch", dial)
    assert "`warmup_" in refused(outcome, 1) if dial == "warmup_steps=100" else outcome.code == 0, outcome.text


# ---- overfit


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("data=digits", "size=base"), id="digits, mlp"),
        pytest.param(("data=wine",), id="wine, mlp"),
        pytest.param(("data=diabetes",), id="diabetes, mlp"),
        pytest.param(("data=digits", "model=cnn"), id="digits, cnn", marks=pytest.mark.slow),
        pytest.param(("data=waves", "model=transformer"), id="waves, transformer", marks=pytest.mark.slow),
    ],
)
def test_a_healthy_model_learns_one_batch_by_heart(fit: Fit, words: tuple[str, ...]) -> None:
    result, folder = fit(*words, "debug=overfit")
    assert result["train_loss"] < 0.01
    losses = [row["train/loss"] for row in rows(folder) if "train/loss" in row]
    assert len(losses) == result["steps"] == result["epochs"]  # one step an epoch, each written


def test_overfit_gives_the_same_batch_over_and_over(fit_with: Callable[..., Any]) -> None:
    seen = Batches()
    fit_with([seen], "data=wine", "size=tiny", "debug=overfit", "epochs=5")
    assert len(seen.inputs) == 5
    assert all(torch.equal(inputs, seen.inputs[0]) for inputs in seen.inputs)


def test_a_model_that_cannot_learn_stays_above(fit: Fit) -> None:
    result, _ = fit("data=wine", "size=tiny", "init=zeros", "debug=overfit")
    assert result["train_loss"] > 0.5  # every unit of a layer learns the same


# ---- anomaly

OWN = """
import torch
from torch import nn

class Rooted(nn.Module):
    def forward(self, outputs, targets):
        return torch.sqrt(outputs * 0).mean()  # its derivative at 0 is infinite, times 0
"""


@pytest.fixture
def own_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    (tmp_path / "own_rooted.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TUNELAB_TRUST", "own_rooted")
    return (
        "data=wine",
        "size=tiny",
        "epochs=1",
        "loss._target_=own_rooted.Rooted",
        "~loss.class_weights",
        "~loss.label_smoothing",
    )


def test_anomaly_names_the_operation_whose_gradient_became_nan(
    tmp_path: Path, own_loss: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = typed(tmp_path, *own_loss, "debug=anomaly")
    assert outcome.code == 1, outcome.text
    assert "A gradient became NaN at step 1 (epoch 1, batch 1 of 3)." in outcome.text
    assert "MulBackward0" in outcome.text
    assert "torch.sqrt(outputs * 0).mean()" in outcome.text  # the line where it was computed


def test_without_anomaly_the_line_of_the_nan_is_not_shown(tmp_path: Path, own_loss: tuple[str, ...]) -> None:
    outcome = typed(tmp_path, *own_loss)
    assert "became NaN at step 1 (epoch 1, batch 1 of 3)." in outcome.text
    assert "torch.sqrt" not in outcome.text


@kinds
def test_anomaly_lets_healthy_runs_be(fit: Fit, words: tuple[str, ...]) -> None:
    result, _ = fit(*words, "debug=anomaly", "epochs=1", "trainer.limit_train_batches=2")
    assert result["status"] == "finished"


# ---- in two processes


@pytest.mark.slow
@pytest.mark.parametrize("debug", options("debug"))
def test_debugging_works_in_two_processes(tmp_path: Path, debug: str) -> None:
    words = ("data=wine", "size=tiny", "epochs=3", "trainer=ddp", f"debug={debug}", "hydra.run.dir=run")
    outcome = typed(tmp_path, *words)
    assert outcome.code == 0, outcome.text
    assert "2 processes" in outcome.text
