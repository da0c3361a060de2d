"""Which examples train, which choose the checkpoint and which score it once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tunelab.errors import ConfigError

Indices = NDArray[np.int64]


def split(
    targets: NDArray[np.generic],
    val_fraction: float,
    test_fraction: float,
    *,
    seed: int,
    stratify: bool,
    fold: str | None = None,
) -> tuple[Indices, Indices, Indices]:
    """Indices of the training, validation and test parts, each in ascending order.

    Args:
        targets: Shape (examples,).
        val_fraction: Share of the validation part, in [0, 1).
        test_fraction: Share of the test part, in [0, 1).
        seed: What the split follows from.
        stratify: Keep the share of each class the same in all parts, to within one example.
        fold: `i/k`: the test part stays, the rest is dealt into k folds, and the i-th of them (from 0) validates
            in place of `val_fraction`.

    Raises:
        ConfigError: If there are fewer examples than folds.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    groups = np.unique(targets[order], return_inverse=True)[1] if stratify else np.zeros(len(order), dtype=np.int64)
    counts = np.bincount(groups)
    rank = np.empty(len(order), dtype=np.int64)  # of each example within its class
    for group, count in enumerate(counts):
        rank[groups == group] = np.arange(count)
    n_test, n_val = round(test_fraction * len(targets)), round(val_fraction * len(targets))
    to_test = _shares(counts, n_test, np.zeros_like(counts))[groups]
    in_test = rank < to_test
    if fold is not None:
        in_val = _in_fold(order, groups, in_test, fold)
    else:
        to_val = _shares(counts, n_test + n_val, _shares(counts, n_test, np.zeros_like(counts)))[groups]
        in_val = ~in_test & (rank < to_val)
    return np.sort(order[~in_test & ~in_val]), np.sort(order[in_val]), np.sort(order[in_test])


def _in_fold(order: Indices, groups: Indices, in_test: NDArray[np.bool_], fold: str) -> NDArray[np.bool_]:
    number, folds = (int(part) for part in fold.split("/"))
    by_class = np.argsort(groups, kind="stable")  # dealt class by class, so that each fold has its share of each
    by_class = by_class[~in_test[by_class]]
    if len(by_class) < folds:
        raise ConfigError(f"`fold` must have at most {len(by_class)} folds, an example each, got {fold}. Try fold=0/5.")
    in_val = np.zeros(len(order), dtype=bool)
    in_val[by_class[number::folds]] = True
    return in_val


def _shares(counts: Indices, total: int, least: Indices) -> Indices:
    """Shares out `total` examples over classes in proportion to their counts, by the largest remainders."""
    exact = counts * total / counts.sum()
    shares: Indices = np.maximum(np.floor(exact).astype(np.int64), least)
    left = max(0, total - int(shares.sum()))
    shares[np.argsort(shares - exact, kind="stable")[:left]] += 1
    return shares


def train_each_class(codes: Indices, parts: dict[str, Indices], movable: Sequence[str]) -> list[int]:
    """Moves a row of each class that the training part lacks into it, as of a class of one row.

    Args:
        codes: The class of each example.
        parts: The indices of train, val and test; changed in place.
        movable: The parts that rows may be taken from.

    Returns:
        The classes that a row was moved of.
    """
    moved = []
    for code in np.setdiff1d(codes, codes[parts["train"]]).tolist():
        part = next((name for name in movable if (codes[parts[name]] == code).any()), None)
        if part is not None:
            row = parts[part][codes[parts[part]] == code][0]
            parts[part] = parts[part][parts[part] != row]
            parts["train"] = np.sort(np.append(parts["train"], row))
            moved.append(code)
    return moved
