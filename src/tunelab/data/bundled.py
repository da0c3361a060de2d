"""Real data sets that scikit-learn ships: no network needed."""

from __future__ import annotations

from typing import Any

import numpy as np

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
    from sklearn import datasets  # takes a second: only when used

    readers = {
        "digits": datasets.load_digits,
        "breast_cancer": datasets.load_breast_cancer,
        "diabetes": lambda: datasets.load_diabetes(scaled=False),
        "iris": datasets.load_iris,
        "wine": datasets.load_wine,
    }
    if dataset not in readers:
        raise ConfigError(f"`data.dataset` must be one of {', '.join(readers)}, got {dataset}. Try data=digits.")
    bunch = readers[dataset]()
    inputs = bunch.data.astype(np.float64)
    if dataset == "digits":
        inputs = inputs.reshape(-1, 1, 8, 8)  # (examples, channels, height, width)
    return Arrays(
        inputs=inputs,
        targets=bunch.target,
        feature_names=tuple(str(name) for name in bunch.feature_names),
        class_names=tuple(str(name) for name in getattr(bunch, "target_names", ())),
        kind="image" if dataset == "digits" else "table",
    )
