"""The benchmark of a step: what its table says of what it measured, and that its contenders are there."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tunelab.fitting import build

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def test_a_ratio_is_the_median_of_the_repeats_own_so_that_a_slow_repeat_cancels() -> None:
    overhead = script("step_overhead")
    bare, slow = [100.0, 110.0, 900.0, 100.0, 105.0], [2.0, 2.2, 2.1, 1.9, 2.3]
    measured = {
        "tunelab_on": [{"wall": b * r, "cpu": b} for b, r in zip(bare, slow, strict=True)],
        "bare": [{"wall": b, "cpu": b} for b in bare],
    }
    found = overhead.ratios(measured, "tunelab_on", "bare", "wall")
    assert found == pytest.approx(slow)
    low, median, high = statistics.quantiles(slow, n=4, method="inclusive")
    line = overhead.ratio_table(measured, "mlp").splitlines()[-1]
    assert f"{median:.3f} ({low:.3f}–{high:.3f})" in line
    assert "1.000 (1.000–1.000)" in line
    assert line.endswith("| 2.2 |")
    assert "| 2.10 |" in overhead.table(measured)


def test_two_contenders_alone_have_their_ratio_whichever_they_are() -> None:
    overhead = script("step_overhead")
    measured = {"bare_fused": [{"wall": 30.0, "cpu": 3.0}], "lean": [{"wall": 60.0, "cpu": 2.0}]}
    assert "| 0.500 (0.500–0.500) | 1.500 (1.500–1.500) |  |" in overhead.ratio_table(measured, "mlp")


def test_every_row_has_a_trainer_and_every_model_its_epochs() -> None:
    overhead, contenders = script("step_overhead"), script("step_contenders")
    assert list(overhead.CONTENDERS) == list(contenders.TRAINERS)
    assert list(overhead.EPOCHS) == list(contenders.DEPTH)
    assert {name for ratio in overhead.RATIOS for name in (ratio.of, ratio.to)} <= set(overhead.CONTENDERS)


def test_the_monitors_that_a_contender_leaves_out_are_among_the_defaults() -> None:
    contenders = script("step_contenders")
    defaults = set(contenders.composed([]).callbacks)
    assert defaults >= contenders.MONITORS


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet"])
def test_the_bare_loop_trains_the_model_that_the_recipe_builds(model: str) -> None:
    contenders = script("step_contenders")
    recipe = contenders.composed(contenders.asked(model, epochs=2))
    theirs = build(recipe.model)((1, 8, 8), 10)
    ours = contenders.make_model(model)
    shapes = [{name: tuple(p.shape) for name, p in m.state_dict().items()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_the_benchmark_prints_its_table_for_the_contenders_asked_for() -> None:
    command = [sys.executable, str(BENCHMARKS / "step_overhead.py"), "--repeats", "1", "--epochs", "10"]
    outcome = subprocess.run([*command, "--only", "tunelab_off,bare"], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    rows = [line.split(" | ")[0] for line in outcome.stdout.splitlines() if line.startswith("| ")]
    assert rows == [
        *("| contender", "| ---", "| tunelab, everything off", "| bare loop"),
        *("| ratio", "| ---", "| tunelab, everything off / bare loop"),
    ]


def test_a_contender_that_does_not_exist_is_refused_with_those_that_do() -> None:
    command = [sys.executable, str(BENCHMARKS / "step_overhead.py"), "--only", "bare,tunelab"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 2
    assert "got tunelab" in outcome.stderr
    assert "tunelab_unmonitored" in outcome.stderr
