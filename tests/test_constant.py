"""The loss of the best constant prediction is that of formulas and of scipy, for each loss and its weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from scipy.optimize import linprog, minimize_scalar
from torch import Tensor, nn

from tunelab.analysis.evidence import Curve, Evidence
from tunelab.analysis.rules_of_data import labels_random
from tunelab.callbacks.constant import constant_losses
from tunelab.fitting import build
from tunelab.losses import CrossEntropy, Focal, Hinge

TRAIN, VAL = np.array([70.0, 20.0, 10.0]), np.array([5.0, 4.0, 1.0])
WEIGHTS = [1.0, 2.5, 7.0]


def weighted(loss: Any, weights: list[float] | None) -> Any:
    if weights is not None:
        loss.weight = torch.tensor(weights)
    return loss


def cross(of: NDArray[np.float64], by: NDArray[np.float64]) -> float:
    """The cross-entropy of shares under other shares."""
    return float(-(of / of.sum() * np.log(by / by.sum())).sum())


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_of_cross_entropy_it_is_that_of_the_weighted_shares(weights: list[float] | None) -> None:
    w = np.array(weights or [1.0] * 3)
    found = constant_losses(weighted(CrossEntropy(class_weights=weights), weights), TRAIN, VAL)
    assert found == pytest.approx((cross(TRAIN * w, TRAIN * w), cross(VAL * w, TRAIN * w)), rel=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_label_smoothing_counts_in_training_alone(weights: list[float] | None) -> None:
    w, s = np.array(weights or [1.0] * 3), 0.3
    in_training, in_validation = constant_losses(weighted(CrossEntropy(s, weights), weights), TRAIN, VAL)
    # sum_k n_k [ (1 - s) w_k (-log p_k) + s/3 sum_j w_j (-log p_j) ] / sum_k n_k w_k: least where p follows the factors
    factors = (1 - s) * TRAIN * w + TRAIN.sum() * s / 3 * w
    expected = -(factors * np.log(factors / factors.sum())).sum() / (TRAIN * w).sum()
    assert in_training == pytest.approx(expected, rel=1e-6)
    assert in_validation == pytest.approx(cross(VAL * w, TRAIN * w), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("weights", [None, [1.0, 4.0]])
def test_of_the_focal_loss_it_is_the_least_over_a_probability(gamma: float, weights: list[float] | None) -> None:
    w, counts, scored = np.array(weights or [1.0] * 2), np.array([80.0, 20.0]), np.array([6.0, 4.0])

    def at(p: float, n: Any) -> float:
        q = np.array([p, 1 - p])
        return float((n * w * (1 - q) ** gamma * -np.log(q)).sum() / (n * w).sum())

    best = min(
        (minimize_scalar(at, bounds=b, args=(counts,), method="bounded") for b in ((1e-4, 0.5), (0.5, 1 - 1e-4))),
        key=lambda found: found.fun,
    )
    found = constant_losses(weighted(Focal(gamma, weights), weights), counts, scored)
    assert found == pytest.approx((best.fun, at(best.x, scored)), rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_of_the_hinge_loss_it_is_what_a_linear_program_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, margin = int(rng.integers(2, 8)), float(rng.uniform(0.3, 2.0))
    counts = rng.integers(1, 200, classes).astype(float)
    weights = rng.uniform(0.1, 5.0, classes).tolist() if seed % 2 else None
    a = counts * np.array(weights or [1.0] * classes) / (counts.sum() * classes)
    pairs = [(k, j) for k in range(classes) for j in range(classes) if j != k]
    rows = np.zeros((len(pairs), classes + len(pairs)))
    for row, (k, j) in enumerate(pairs):
        rows[row, [k, j, classes + row]] = -1, 1, -1  # margin - x_k + x_j <= slack
    costs = np.concatenate([np.zeros(classes), [a[k] for k, _ in pairs]])
    bounds = [(None, None)] * classes + [(0, None)] * len(pairs)
    truth = linprog(costs, rows, np.full(len(pairs), -margin), bounds=bounds).fun
    found = constant_losses(weighted(Hinge(margin, weights), weights), counts, None)
    assert found == (pytest.approx(truth, rel=1e-6), None)


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_of_a_regression_it_is_that_of_mean_median_and_a_search(scale: float) -> None:
    rng = np.random.default_rng(0)
    y, v = scale * rng.exponential(size=401), scale * rng.exponential(size=50) + 1
    train, val = torch.tensor(y), torch.tensor(v)
    assert constant_losses(nn.MSELoss(), train, val) == pytest.approx((y.var(), ((v - y.mean()) ** 2).mean()), rel=1e-5)
    middle = np.median(y)
    expected = (np.abs(y - middle).mean(), np.abs(v - middle).mean())
    assert constant_losses(nn.L1Loss(), train, val) == pytest.approx(expected, rel=1e-5)

    def huber(c: float, of: Any) -> float:
        d = np.abs(of - c)
        return float(np.where(d < 0.7, d**2 / 2, 0.7 * (d - 0.35)).mean())

    best = minimize_scalar(huber, bounds=(0, y.max()), args=(y,), method="bounded", options={"xatol": 1e-8})
    assert constant_losses(nn.HuberLoss(delta=0.7), train, val) == pytest.approx((best.fun, huber(best.x, v)), rel=1e-5)


class TenTimesBrier(nn.Module):
    """A loss of the user's own, on a scale of its own, that remembers how often it was asked."""

    asked = 0

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.asked += 1
        return 10 * ((logits.softmax(1) - nn.functional.one_hot(labels, logits.shape[1])) ** 2).sum(1).mean()


def test_a_loss_of_the_users_own_is_asked_as_a_copy() -> None:
    loss, p = TenTimesBrier(), TRAIN / TRAIN.sum()
    brier = 10 * ((TRAIN / TRAIN.sum()) * (((p[None] - np.eye(3)) ** 2).sum(1))).sum()
    assert constant_losses(loss, TRAIN, None)[0] == pytest.approx(brier, rel=1e-6)
    assert loss.asked == 0


# ---- the verdict


def _evidence(loss: tuple[float, float], val: list[float], **scores: list[float]) -> Evidence:
    """A run whose training loss falls to half of a constant prediction's, with these validations."""
    steps, epochs = tuple(range(10, 210, 10)), tuple(range(20))
    values = {"train/loss": [loss[0]] * 10 + [loss[0] / 2] * 10, "val/loss": val, **scores}
    curves = {name.replace("_", "/"): Curve(steps, epochs, tuple(v)) for name, v in values.items()}
    facts = {"chance_loss": loss[0], "chance_val_loss": loss[1], "val_examples": 100, "majority_val_share": 0.5}
    return Evidence(curves, {}, {}, {"status": "finished"}, facts)


def test_labels_are_random_only_where_validation_never_beat_the_constant_prediction_of_its_own_examples() -> None:
    val = [1.4] + [1.6] * 19
    assert labels_random(_evidence((1.0, 1.0), val)) is not None
    # the validation part is harder for a constant, too: 1.4 is far better
    assert labels_random(_evidence((1.0, 2.0), val)) is None


def test_labels_are_not_random_where_a_score_beats_every_constant() -> None:
    val = [1.0] + [1.6] * 19  # too sure of its answers, most of which are right
    assert labels_random(_evidence((1.0, 1.0), val, val_accuracy=[0.5] * 10 + [0.7] * 10)) is None
    assert labels_random(_evidence((1.0, 1.0), val, val_accuracy=[0.5] * 10 + [0.6] * 10)) is not None  # by chance
    assert labels_random(_evidence((1.0, 1.0), val, val_r2=[-1.0] * 19 + [0.4])) is None


@pytest.mark.parametrize(
    "words",
    [
        ("data=breast_cancer", "loss=focal", "loss.class_weights=[5,1]"),
        ("data=breast_cancer", "loss=hinge", "loss.class_weights=[1,9]"),
        ("data=diabetes", "loss=huber", "loss.delta=0.3"),
    ],
)
def test_a_run_notes_both_for_its_own_loss(fit: Any, words: tuple[str, ...]) -> None:
    _, folder = fit(*words, "size=tiny", "epochs=1", "logger=[]", "callbacks=[]", "test=false", "threads=1")
    noted = json.loads((folder / "facts.json").read_text())
    cfg = OmegaConf.load(folder / "config.yaml")
    data, loss = build(cfg.data), build(cfg.loss)
    data.setup("fit")
    if hasattr(loss, "adapt"):
        loss.adapt(data.spec)
    (_, train), (_, val) = data.parts["train"], data.parts["val"]
    if data.spec.class_names:
        train, val = (torch.bincount(labels).double().numpy() for labels in (train, val))
    assert (noted["chance_loss"], noted["chance_val_loss"]) == pytest.approx(constant_losses(loss, train, val))
