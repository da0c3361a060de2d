"""The column to predict: classes or numbers, and what neither of them may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tunelab.data.values import NUMBERS_FROM, Array, in_order, on_one_line, to_numbers, to_texts
from tunelab.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

MOST_CLASSES, MOST_FRACTIONAL = 100, 20
"""More different whole numbers than the first, or others than the second, are numbers to predict and not classes."""


def wants_classes(values: pd.Series[Any], task: str) -> bool:
    """Whether the target holds classes: what the task takes, or what the values look like if it does not say.

    Args:
        values: The target, none of it missing.
        task: The dotted name of the task's class.

    Raises:
        ConfigError: If the values do not fit the task, or are not finite.
    """
    name, numbers = on_one_line(values.name), to_numbers(values)
    infinite, texts = np.isinf(numbers), np.isnan(numbers)
    kind = task.rsplit(".")[-1].lower()
    if "regress" in kind and texts.mean() > 1 - NUMBERS_FROM:
        raise ConfigError(
            f"`task` must fit the data, got regression for {name}, which has texts such as "
            f"{on_one_line(values[texts].iloc[0])}. Try task=classification loss=cross_entropy objective=val/accuracy."
        )
    if len(wrong := np.flatnonzero(infinite | (texts if "regress" in kind else False))):
        raise ConfigError(
            f"`data.target` must have finite numbers, got {values.iloc[wrong[0]]} in row {values.index[wrong[0]] + 1} "
            f"of {name}{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}. Mend those rows or leave them "
            "out."
        )
    are_numbers = not texts.any()
    different = len(np.unique(numbers))
    whole = are_numbers and bool((numbers == np.rint(numbers)).all())
    many = different > (MOST_CLASSES if whole else MOST_FRACTIONAL) or 2 * different > len(values)
    if "classif" in kind and are_numbers and many:
        raise ConfigError(
            f"`task` must fit the data, got classification for {name}, which has {different:,} distinct "
            "numbers. Try task=regression loss=mse objective=val/rmse."
        )
    return "classif" in kind or ("regress" not in kind and not (are_numbers and many))


def class_codes(values: pd.Series[Any], *, judged: bool = True) -> tuple[Any, tuple[str, ...]]:
    """The class of each row, integers in [0, classes) of shape (rows,), and the name of each class.

    Args:
        values: The target, none of it missing.
        judged: Whether they are to be learned from; a model that knows its classes is scored on any number of them.

    Raises:
        ConfigError: If there is one class only, or nearly one for each row.
    """
    import pandas as pd

    name, texts = on_one_line(values.name), to_texts(values)
    names = in_order(texts.unique())
    if judged and len(names) == 1:
        raise ConfigError(
            f"`data.target` must have at least two classes, got {name}, which is {names[0]} in every row. "
            "Choose another column."
        )
    if judged and 2 * len(names) > len(values):
        raise ConfigError(
            f"`data.target` must have classes that come again, got {name}, which has {len(names):,} different "
            f"values in {len(values):,} rows. Choose another column."
        )
    return pd.Index(names).get_indexer(pd.Index(texts)).astype(np.int64), tuple(names)


def numbers_to_predict(values: pd.Series[Any], *, judged: bool = True) -> Array:
    """The number of each row.

    Args:
        values: The target, none of it missing.
        judged: Whether they are to be learned from; a model is scored on any.

    Raises:
        ConfigError: If it is always the same.
    """
    name, numbers = on_one_line(values.name), to_numbers(values)
    if judged and np.ptp(numbers) == 0:
        raise ConfigError(
            f"`data.target` must vary, got {name}, which is {values.iloc[0]} in every row. Choose another column."
        )
    return numbers
