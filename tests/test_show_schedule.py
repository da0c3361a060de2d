"""The lr of every step, without training: equal to what a run logs, and what is odd about it in words."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import options
from test_command import typed

import tunelab
from tunelab.tuning.schedule import Schedule, sparkline

TINY = ("data=iris", "size=tiny", "threads=1", "name=test")
FAST = ("one_cycle", "cosine_restarts", "plateau")

Fit = Callable[..., tuple[dict[str, Any], Path]]


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNELAB_COMMAND", raising=False)  # which a test before may have left


def logged(folder: Path) -> list[dict[str, float]]:
    """The lr of each step in a run's metrics.csv, by column."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if k.split("/")[0] == "lr" and v} for row in csv.DictReader(file)]
    return [row for row in rows if row]


def shown(*overrides: str) -> tuple[Schedule, list[dict[str, float]]]:
    answer = tunelab.show_schedule(*overrides)
    rates = [{k: v for k, v in row.items() if k.split("/")[0] == "lr"} for row in answer.rows()]
    return answer, rates


def check_equal(fit: Fit, *overrides: str) -> Schedule:
    result, folder = fit(*TINY, "trainer.log_every_n_steps=1", *overrides)
    answer, rates = shown(*TINY, *overrides)
    assert rates == logged(folder)
    assert len(rates) == result["steps"]
    return answer


@pytest.mark.parametrize(
    "scheduler", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in options("scheduler")]
)
def test_each_step_has_the_lr_that_a_run_logs(scheduler: str, fit: Fit) -> None:
    patient = ["scheduler.patience=3"] if scheduler == "plateau" else []  # none of its falls is within 4 epochs
    check_equal(fit, "epochs=4", f"scheduler={scheduler}", "warmup_fraction=0.3", *patient)


def test_groups_whose_lr_differs_are_curves_of_their_own_as_a_run_logs_them(fit: Fit) -> None:
    rule = "parameter_groups.rules=[{match: head.*, lr: 0.1}]"
    answer = check_equal(fit, "epochs=3", "weight_decay=0.01", rule)
    assert set(answer.groups) == {"decayed", "undecayed", "decayed/head.*", "undecayed/head.*"}
    assert set(answer.rates) == {"the rest", "head.*"}
    for rest, head in zip(answer.rates["the rest"], answer.rates["head.*"], strict=True):
        assert head == pytest.approx(0.1 * rest, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=muon", "size.depth=2"),
        ("parameter_groups.layer_decay=0.5", "size.depth=3"),
        ("optimizer=schedule_free", "warmup_steps=2"),
        ("optimizer=lbfgs",),
        ("optimizer=sam",),
        ("trainer.accumulate_grad_batches=2", "batch_size=16"),
        ("+trainer.max_steps=5",),
        ("regularization=[swa]",),
        ("batch_growth=factor", "batch_growth.every_epochs=1", "batch_size=16", "warmup_steps=3"),
        ("batch_growth=factor", "batch_growth.every_epochs=1", "batch_size=16", "batch_growth.by=accumulation"),
    ],
    ids=lambda overrides: overrides[-1],
)
def test_so_it_is_with_every_optimizer_and_length_of_a_step(overrides: tuple[str, ...], fit: Fit) -> None:
    check_equal(fit, "epochs=4", *overrides)


@pytest.mark.slow
def test_layers_whose_lr_decays_are_named_by_their_layer() -> None:
    answer, _ = shown(*TINY, "epochs=2", "weight_decay=0.1", "parameter_groups.layer_decay=0.5", "size.depth=2")
    assert {name: rates[0] for name, rates in answer.rates.items()} == {
        "layer0": 2.5e-4,
        "layer1": 5e-4,
        "layer2": 1e-3,
    }


@pytest.mark.slow
def test_muon_shows_the_matrices_and_the_rest() -> None:
    answer, _ = shown(*TINY, "epochs=2", "optimizer=muon", "size.depth=2")
    assert {name: rates[0] for name, rates in answer.rates.items()} == {"matrices": 0.02, "rest": 1e-3}


def test_a_sparkline_has_a_block_for_each_step_or_the_mean_of_those_of_a_column(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]) == "▁▂▃▄▅▆▇██"
    monkeypatch.setenv("COLUMNS", "10")
    assert sparkline([0.0, 1.0] * 50) == "▅" * 10
    assert sparkline([1.0] * 50 + [0.25] * 50) == "█" * 5 + "▃" * 5
    assert sparkline([0.0, 0.0]) == "▁▁"


ODD = {
    "stays constant: every_epochs=30 is not before the end of epochs=6.\n\n"
    "python train.py {} scheduler=step scheduler.every_epochs=2": ("epochs=6", "scheduler=step"),
    "It ends at 79 % of its peak; the factor below would end at 1 %.\n\n"
    "python train.py {} scheduler=exponential scheduler.factor=0.398": ("epochs=5", "scheduler=exponential"),
    "It ends at 50 % of its peak, as eta_min says.\n\npython train.py {} scheduler.eta_min=1e-05": (
        "epochs=40",
        "scheduler.eta_min=5e-4",
    ),
    "It rises for 6 of 12 steps, more than a third of the run: shorten that.\n\n"
    "python train.py {} warmup_fraction=0.05": ("epochs=6", "warmup_steps=6"),
    "No step warms up: 0.1 of 4 steps is none.\n\npython train.py {} warmup_steps=1": (
        "epochs=2",
        "warmup_fraction=0.1",
    ),
    "24 of 40 steps have an lr below a thousandth of the peak: they change nothing.\n\n"
    "python train.py {} scheduler=step scheduler.every_epochs=6": (
        "epochs=20",
        "scheduler=step",
        "scheduler.every_epochs=2",
    ),
}


@pytest.mark.parametrize(
    "sentence", [each if i < 1 else pytest.param(each, marks=pytest.mark.slow) for i, each in enumerate(ODD)]
)
def test_what_is_odd_is_said_with_what_to_type(sentence: str) -> None:
    overrides = ODD[sentence]
    answer, _ = shown(*TINY, *overrides)
    assert sentence.format(f"{' '.join(TINY)} {overrides[0]}") in answer.said()


def test_a_schedule_without_oddity_is_told_in_two_lines_and_its_command() -> None:
    answer, _ = shown(*TINY, "epochs=5", "warmup_steps=2")
    assert answer.said().splitlines() == [
        "10 steps in 5 epochs: lr 0.000333 at first, 0.001 at step 3 (epoch 2), 3.81e-05 at the last step",
        "▃▆██▇▆▅▃▂▁",
        "",
        "python train.py data=iris size=tiny threads=1 name=test epochs=5 warmup_steps=2",
    ]


@pytest.mark.slow
def test_plateau_says_that_its_falls_are_not_in_it() -> None:
    answer, _ = shown(*TINY, "epochs=11", "scheduler=plateau", "regularization=[early_stopping]")
    assert answer.said().splitlines()[3:5] == [
        "The falls are not in it: each time val/accuracy has not improved for 10 validations, the lr is multiplied by "
        "0.1.",
        "It may end before: early_stopping decides by the validation.",
    ]


@pytest.mark.slow
def test_the_curve_stands_in_tensorboard_and_the_words_on_the_screen(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = typed(tmp_path, *TINY, "epochs=3", "hydra.run.dir=here", script="scripts/show_schedule.py")
    answer, _ = shown(*TINY, "epochs=3")
    assert outcome.out.startswith(answer.said())
    events = EventAccumulator(str(tmp_path / "here" / "tensorboard")).Reload().Scalars("lr")
    assert [e.step for e in events] == [1, 2, 3, 4, 5, 6]
    assert [e.value for e in events] == pytest.approx(answer.rates["lr"])
