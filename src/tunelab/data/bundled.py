"""Real data sets that scikit-learn ships: no network needed."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunelab.data.arrays import ArrayData, Arrays
from tunelab.data.memory import Parts
from tunelab.errors import ConfigError
from tunelab.spec import DataSpec


class BundledData(ArrayData):
    """A data set of scikit-learn.

    Args:
        dataset: digits, breast_cancer, diabetes, iris or wine.
        **split: What `ArrayData` takes.
    """

    def __init__(self, dataset: str, **split: Any) -> None:
        super().__init__(**split)
        self.dataset = dataset

    def read(self) -> tuple[DataSpec, Parts]:
        return self.from_arrays(_arrays(self.dataset))


def _arrays(dataset: str) -> Arrays:
    if dataset == "digits":
        return _digits()
    from sklearn import datasets  # takes a third of a second: only when used

    readers = {
        "breast_cancer": datasets.load_breast_cancer,
        "diabetes": lambda: datasets.load_diabetes(scaled=False),
        "iris": datasets.load_iris,
        "wine": datasets.load_wine,
    }
    if dataset not in readers:
        names = ", ".join(["digits", *readers])
        raise ConfigError(f"`data.dataset` must be one of {names}, got {dataset}. Try data=digits.")
    bunch = readers[dataset]()
    return Arrays(
        inputs=bunch.data.astype(np.float64),
        targets=bunch.target,
        feature_names=tuple(str(name) for name in bunch.feature_names),
        class_names=tuple(str(name) for name in getattr(bunch, "target_names", ())),
        kind="table",
    )


def _digits() -> Arrays:
    """What `sklearn.datasets.load_digits` reads, from its file: the first run of a newcomer need not import sklearn."""
    rows = _digits_rows().copy()
    return Arrays(
        inputs=rows[:, :-1].reshape(-1, 1, 8, 8),  # (examples, channels, height, width)
        targets=rows[:, -1].astype(int),
        feature_names=tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8)),
        class_names=tuple(str(digit) for digit in range(10)),
        kind="image",
    )


@cache  # the trials of a sweep share their process
def _digits_rows() -> NDArray[np.float64]:
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    rows: NDArray[np.float64] = np.loadtxt(
        Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=","
    )
    return rows
