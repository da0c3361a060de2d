"""Scores are those of a float64 computation, whatever the target's origin and scale, and NaN is never left out."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
import torch
import torchmetrics as tm
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassF1Score,
)

from tunelab.fitting import build
from tunelab.spec import DataSpec
from tunelab.tasks import Classification, Regression
from tunelab.tasks.scores import MeanLoss, Scores

Values = NDArray[np.float64]

METRICS: dict[str, tuple[Any, Any]] = {
    "mae": (tm.MeanAbsoluteError, sk.mean_absolute_error),
    "mse": (tm.MeanSquaredError, sk.mean_squared_error),
    "rmse": (lambda: tm.MeanSquaredError(squared=False), sk.root_mean_squared_error),
    "r2": (tm.R2Score, sk.r2_score),
    "explained_variance": (tm.ExplainedVariance, sk.explained_variance_score),
    "pearson": (tm.PearsonCorrCoef, lambda y, p: scipy.stats.pearsonr(y, p).statistic),
    "spearman": (tm.SpearmanCorrCoef, lambda y, p: scipy.stats.spearmanr(y, p).statistic),
    "concordance": (tm.ConcordanceCorrCoef, lambda y, p: _concordance(y, p)),
    "rse": (tm.RelativeSquaredError, lambda y, p: ((y - p) ** 2).sum() / ((y - y.mean()) ** 2).sum()),
    "mape": (tm.MeanAbsolutePercentageError, sk.mean_absolute_percentage_error),
}
"""Each with an independent computation."""

ORIGINS = {
    "around zero": (0.0, 1.0),
    "1e5 ± 10": (1e5, 10.0),
    "1e6 ± 10": (1e6, 10.0),
    "1e9 ± 1": (1e9, 1.0),
    "seconds since 1970": (1.7e9, 3600.0),
    "tiny": (1e-9, 1e-12),
    "huge": (-1e30, 1e28),
}


def _concordance(y: Values, p: Values) -> float:
    shift = y.mean()
    y, p = y - shift, p - shift
    covariance = np.cov(y, p)
    return float(2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (y.mean() - p.mean()) ** 2))


class _Outputs(nn.Module):
    """A model whose outputs are its inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def _task(kind: Any, spec: DataSpec, loss: nn.Module, metrics: dict[str, Any]) -> Any:
    parts: Any = dict.fromkeys(("init", "optimizer", "parameter_groups", "scheduler", "clipping"))
    task = kind(model=lambda: _Outputs(), loss=loss, metrics=metrics, regularization={}, seed=0, **parts)
    task.spec = spec
    task.configure_model()
    task.eval()
    return task


def _scored(task: Any, outputs: Tensor, targets: Tensor, batch_size: int) -> dict[str, float]:
    """What a validation in batches finds."""
    scores: Scores = task.evaluation["val"]
    for batch in zip(outputs.split(batch_size), targets.split(batch_size), strict=True):
        task._evaluate(batch, "val")
    return {name.removeprefix("val/"): float(value) for name, value in scores.compute().items()}


@pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef` will save all targets")
@pytest.mark.parametrize("origin", ORIGINS)
def test_every_metric_of_a_regression_is_that_of_float64_wherever_the_target_lies(origin: str) -> None:
    mean, std = ORIGINS[origin]
    rng = np.random.default_rng(3)
    size = 5003  # the last batch has 3 of 1000
    z = rng.standard_normal(size)
    standardised = torch.tensor(z, dtype=torch.float32)
    guesses = torch.tensor(0.7 * z + 0.5 * rng.standard_normal(size) + 0.1, dtype=torch.float32)[:, None]
    spec = DataSpec("table", (1,), 1, ("x",), (), (0.0,), (1.0,), target_mean=mean, target_std=std)
    task = _task(Regression, spec, nn.MSELoss(), {name: make for name, (make, _) in METRICS.items()})
    found = _scored(task, guesses, standardised, 1000)
    # the truth: differences are computed before the origin is added, as 1e9 ± 1 has but 7 digits of them in float64
    y, p = standardised.double().numpy(), guesses[:, 0].double().numpy()
    for name, (_, truth) in METRICS.items():
        if name in ("mae", "rmse", "mse"):
            expected = truth(y, p) * std ** (2 if name == "mse" else 1)
        elif name == "mape":
            truths = y * std + mean
            expected = np.mean(np.abs(p - y) * std / np.maximum(np.abs(truths), 1.17e-6))  # torchmetrics' own least
        else:
            expected = truth(y, p)
        assert found[name] == pytest.approx(expected, rel=1e-6), name
    assert found["loss"] == pytest.approx(sk.mean_squared_error(y, p), rel=1e-6)


def test_a_mean_over_very_many_batches_keeps_its_digits() -> None:
    mean, losses = (
        MeanLoss().to(torch.float64),
        torch.rand(4000, generator=torch.Generator().manual_seed(0)) * 1e-3 + 1e3,
    )
    for loss in losses:
        mean.update(loss, 1000)
    assert float(mean.compute()) == pytest.approx(losses.double().mean().item(), rel=1e-12)


def test_metrics_keep_float64_when_the_weights_are_converted_to_bfloat16() -> None:
    spec = DataSpec("table", (1,), 1, ("x",), (), (0.0,), (1.0,), target_mean=1e5, target_std=10.0)
    task = _task(Regression, spec, nn.MSELoss(), {"mae": tm.MeanAbsoluteError, "r2": tm.R2Score})
    task.to(torch.bfloat16)  # as trainer.precision=bf16-true does
    z = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    found = _scored(task, (z + 0.5)[:, None], z, 7)
    assert found["mae"] == pytest.approx(5.0, rel=1e-6)
    assert found["r2"] == pytest.approx(sk.r2_score(z.double(), z.double() + 0.5), rel=1e-6)


def test_scores_of_a_classification_are_those_of_scikit_learn_over_uneven_batches() -> None:
    rng = np.random.default_rng(1)
    labels = torch.tensor(rng.integers(0, 4, 3001))
    logits = torch.tensor(rng.standard_normal((3001, 4)), dtype=torch.float32) + nn.functional.one_hot(labels, 4)
    spec = DataSpec("table", (4,), 4, tuple("abcd"), tuple("pqrs"), (0.0,), (1.0,))
    metrics = {
        "accuracy": lambda: MulticlassAccuracy(4, average="micro"),
        "balanced": lambda: MulticlassAccuracy(4, average="macro"),
        "f1": lambda: MulticlassF1Score(4, average="macro"),
        "auroc": lambda: MulticlassAUROC(4),
        "ece": lambda: MulticlassCalibrationError(4, n_bins=10),
    }
    found = _scored(_task(Classification, spec, nn.CrossEntropyLoss(), metrics), logits, labels, 128)
    p = torch.softmax(logits.double(), dim=1).numpy()
    y, guess, sure = labels.numpy(), p.argmax(1), p.max(1)
    bins = np.clip((sure * 10).astype(int), 0, 9)
    ece = sum(abs((guess == y)[bins == b].mean() - sure[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    expected = {
        "loss": sk.log_loss(y, p),
        "accuracy": sk.accuracy_score(y, guess),
        "balanced": sk.balanced_accuracy_score(y, guess),
        "f1": sk.f1_score(y, guess, average="macro"),
        "auroc": sk.roc_auc_score(y, p, multi_class="ovr"),
        "ece": ece,
    }
    assert found.pop("ece") == pytest.approx(expected.pop("ece"), rel=1e-4)  # its own bins have edges in float32
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_example_without_a_prediction_is_not_left_out_of_any_mean(value: float) -> None:
    labels, logits = torch.arange(30) % 3, nn.functional.one_hot(torch.arange(30) % 3).float()
    logits[17] = value
    spec = DataSpec("table", (3,), 3, tuple("abc"), tuple("pqr"), (0.0,), (1.0,))
    metrics = {"accuracy": lambda: MulticlassAccuracy(3, average="micro")}
    task = _task(Classification, spec, nn.CrossEntropyLoss(), metrics)
    found = _scored(task, logits, labels, 8)
    assert math.isnan(found["loss"])
    assert math.isnan(found["accuracy"]) == math.isnan(value)  # of Inf there is a greatest one
    assert _scored(task, logits[:16], labels[:16], 8)["accuracy"] == 1.0  # the next validation begins anew


def test_predictions_are_as_fine_as_the_target() -> None:
    spec = DataSpec("table", (1,), 1, ("x",), (), (0.0,), (1.0,), target_mean=1e9, target_std=1.0)
    task = _task(Regression, spec, nn.MSELoss(), {})
    found = task.predictions(torch.tensor([[0.25], [0.5]]))["prediction"]
    assert found == [1e9 + 0.25, 1e9 + 0.5]


class _Subclass(Regression):
    """Measures the logarithm's inverse: not affine."""

    def metric_inputs(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return outputs.exp(), targets.exp()


def test_a_task_that_measures_something_else_decides_for_every_metric() -> None:
    spec = DataSpec("table", (1,), 1, ("x",), (), (0.0,), (1.0,))
    z = torch.randn(200, generator=torch.Generator().manual_seed(0))
    found = _scored(_task(_Subclass, spec, nn.MSELoss(), {"r2": tm.R2Score}), (0.8 * z)[:, None], z, 64)
    assert found["r2"] == pytest.approx(sk.r2_score(z.double().exp(), (0.8 * z).double().exp()), rel=1e-5)


@pytest.mark.parametrize("scale", [(1e5, 10.0), (1e6, 10.0)])
def test_r2_of_a_run_and_its_predictions_are_those_of_a_small_target(
    fit, tmp_path: Path, scale: tuple[float, float]
) -> None:
    from tunelab.predictor import load, read_rows

    mean, std = scale
    rng = np.random.default_rng(0)
    x = rng.standard_normal((240, 3))
    y = mean + std * (x @ [1.0, -0.5, 0.2] + 0.8 * rng.standard_normal(240))
    text = "\n".join(",".join(map(repr, [*map(float, row), float(v)])) for row, v in zip(x, y, strict=True))
    (tmp_path / "t.csv").write_text(f"a,b,c,y\n{text}\n")
    words = (
        "data=csv",
        f"data.path='{tmp_path / 't.csv'}'",
        "data.target=y",
        "task=regression",
        "loss=mse",
        "objective=val/r2",
    )
    result, folder = fit(*words, "size=tiny", "epochs=3", "threads=1", "lr=0.01", "logger=[csv]")
    predicted = load(folder).predict(read_rows(str(tmp_path / "t.csv")))["prediction"].to_numpy()
    assert len(np.unique(predicted)) > 230  # float32 has 33 values between 1e6 - 1 and 1e6 + 1
    with (folder / "metrics.csv").open(newline="") as file:
        r2 = [float(row["val/r2"]) for row in csv.DictReader(file) if row["val/r2"]]
    rows = build(OmegaConf.load(folder / "config.yaml").data)
    rows.setup("fit")
    standardised = ((y - rows.spec.target_mean) / rows.spec.target_std).astype(np.float32)
    for part, name in (("val", "val/r2"), ("test", "test/r2")):
        own = [int(np.flatnonzero(standardised == value)[0]) for value in rows.parts[part][1].numpy()]
        truth = sk.r2_score(y[own] - mean, predicted[own] - mean)
        said = result["objective"]["best"] if part == "val" else result["test"][name]
        assert said == pytest.approx(truth, rel=1e-5), part
    assert result["objective"]["best"] == pytest.approx(max(r2), rel=1e-9)
