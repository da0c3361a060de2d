"""A column read as it was recorded, in training and for every later row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunelab.data.dates import seconds
from tunelab.data.gaps import is_missing
from tunelab.data.numbers import PERCENT, Notation
from tunelab.data.values import Array, has_texts, tidy, to_numbers, to_texts
from tunelab.spec import Column

if TYPE_CHECKING:
    import pandas as pd


def read_texts(values: pd.Series[Any], column: Column, missing: Sequence[str]) -> pd.Series[Any]:
    """Each value as a category's name, None where it is missing.

    Args:
        values: As the file has them.
        column: How it is read.
        missing: Texts that stand for a missing value in every column.
    """
    values = tidy(values)
    return to_texts(values.mask(is_missing(values, column, missing)))


def read_numbers(values: pd.Series[Any], column: Column, missing: Sequence[str]) -> tuple[Array, NDArray[np.bool_]]:
    """The numbers or seconds of a column, and where a value is missing; NaN where it is missing or unreadable.

    Args:
        values: As the file has them.
        column: How it is read.
        missing: Texts that stand for a missing value in every column.
    """
    values = tidy(values)
    gone = is_missing(values, column, missing)
    if column.kind == "date":
        return seconds(values.mask(gone), column.date_format), gone
    if not has_texts(values):
        numbers = to_numbers(values)
        if column.unit in PERCENT:  # 0.5 may be 50 %
            numbers = np.where(numbers == 0, 0.0, np.nan)
    else:
        numbers = _parsed(values, Notation(column.decimal_comma, column.thousands, column.unit))
    return np.where(gone, np.nan, numbers), gone


def _parsed(values: pd.Series[Any], notation: Notation) -> Array:
    import pandas as pd

    if notation == Notation():
        numbers = to_numbers(values)
        left = np.isnan(numbers) & values.notna().to_numpy(dtype=bool)
        if not left.any():
            return numbers
    codes, found = pd.factorize(values)
    return np.array([*(_number(value, notation) for value in found), np.nan])[codes]


def _number(value: Any, notation: Notation) -> float:
    if isinstance(value, str):
        return notation.value(value.strip())
    return float(value) if isinstance(value, (int, float, np.number)) else np.nan
