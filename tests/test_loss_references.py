"""Every loss file with each of its keys, beside its formula written in numpy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import options
from numpy.typing import NDArray

from tunelab.fitting import build
from tunelab.spec import DataSpec

Array = NDArray[Any]
CLASSES, EXAMPLES = 4, 30
COUNTS = (5, 20, 1, 74)
BALANCED = np.array([100 / (CLASSES * count) for count in COUNTS])
GIVEN = np.array([0.5, 2.0, 3.0, 1.0])


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _weights(class_weights: Any) -> Array:
    return np.ones(CLASSES) if class_weights is None else BALANCED if class_weights == "balanced" else GIVEN


def _cross_entropy(scores: Array, labels: Array, label_smoothing: float = 0.0, class_weights: Any = None) -> float:
    w, log_p = _weights(class_weights), _log_softmax(scores)
    wanted = (1 - label_smoothing) * np.eye(CLASSES)[labels] + label_smoothing / CLASSES  # Szegedy et al. 2016
    return float(-(w * wanted * log_p).sum() / w[labels].sum())  # with weights as torch defines the mean


def _focal(scores: Array, labels: Array, gamma: float = 2.0, class_weights: Any = None) -> float:
    w, log_p = _weights(class_weights)[labels], _log_softmax(scores)[np.arange(len(labels)), labels]
    return float(-(w * (1 - np.exp(log_p)) ** gamma * log_p).sum() / w.sum())  # Lin et al. 2017, equation 5


def _hinge(scores: Array, labels: Array, margin: float = 1.0, class_weights: Any = None) -> float:
    true = scores[np.arange(len(labels)), labels][:, None]
    short = np.maximum(0, margin - true + scores) * (1 - np.eye(CLASSES)[labels])  # Weston and Watkins 1999
    return float((_weights(class_weights)[labels] * short.sum(axis=1)).mean() / CLASSES)


def _huber(outputs: Array, targets: Array, delta: float = 1.0) -> float:
    away = np.abs(outputs - targets)
    return float(np.where(away <= delta, away**2 / 2, delta * (away - delta / 2)).mean())  # Huber 1964


FORMULAS: dict[str, Callable[..., float]] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "hinge": _hinge,
    "huber": _huber,
    "mae": lambda outputs, targets: float(np.abs(outputs - targets).mean()),
    "mse": lambda outputs, targets: float(((outputs - targets) ** 2).mean()),
}
WEIGHTED = [{"class_weights": None}, {"class_weights": "balanced"}, {"class_weights": GIVEN.tolist()}]
CASES: dict[str, list[dict[str, Any]]] = {
    "cross_entropy": [{"label_smoothing": s, **w} for s in (0.0, 0.1, 0.7) for w in WEIGHTED],
    "focal": [{"gamma": g, **w} for g in (0.0, 0.5, 2.0, 5.0) for w in WEIGHTED],
    "hinge": [{"margin": m, **w} for m in (0.1, 1.0, 3.0) for w in WEIGHTED],
    "huber": [{"delta": delta} for delta in (0.1, 1.0, 2.5)],
    "mae": [{}],
    "mse": [{}],
}


def test_every_loss_file_and_each_of_its_keys_has_a_reference_here(compose):
    assert sorted(FORMULAS) == sorted(CASES) == options("loss")
    for option, cases in CASES.items():
        assert {key for case in cases for key in case} == set(compose(f"loss={option}").loss) - {"_target_"}, option


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("option", "keys"), [(option, keys) for option, cases in CASES.items() for keys in cases], ids=str
)
def test_a_loss_file_is_its_formula(option, keys, training, compose):
    random = np.random.default_rng(3)
    of_classes = option in ("cross_entropy", "focal", "hinge")
    outputs = 2 * random.normal(size=(EXAMPLES, CLASSES) if of_classes else EXAMPLES)
    targets = random.integers(CLASSES, size=EXAMPLES) if of_classes else random.normal(size=EXAMPLES)
    loss = build(compose(f"loss={option}").loss, **keys).train(training)
    if of_classes:
        names = tuple("abcd")
        loss.adapt(DataSpec("table", (1,), CLASSES, ("x",), names, (0.0,), (1.0,), class_counts=COUNTS))
    # smoothing acts in training alone
    own = {key: value for key, value in keys.items() if training or key != "label_smoothing"}
    expected = FORMULAS[option](outputs, targets, **own)
    assert loss(torch.tensor(outputs), torch.tensor(targets)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("option", sorted(FORMULAS))
def test_a_loss_file_as_it_stands_is_its_formula_with_the_papers_constants(option, compose):
    random = np.random.default_rng(4)
    of_classes = option in ("cross_entropy", "focal", "hinge")
    outputs = 2 * random.normal(size=(EXAMPLES, CLASSES) if of_classes else EXAMPLES)
    targets = random.integers(CLASSES, size=EXAMPLES) if of_classes else random.normal(size=EXAMPLES)
    loss = build(compose(f"loss={option}").loss)
    assert loss(torch.tensor(outputs), torch.tensor(targets)).item() == pytest.approx(
        FORMULAS[option](outputs, targets), rel=1e-12
    )
