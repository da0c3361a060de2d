"""Columns of any kind as numbers: what each becomes is fitted on the training part, then the same for every row."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunelab.data.values import (
    NUMBERS_FROM,
    Array,
    clean,
    date_format,
    first_of,
    in_order,
    on_one_line,
    phases,
    seconds,
    to_numbers,
    to_texts,
    typed_list,
)
from tunelab.errors import ConfigError, did_you_mean
from tunelab.spec import Column, DataSpec

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("tunelab")

MANY_ROWS = 20
"""From more rows than these, a value of its own for nearly each tells that a column may only name the row."""


# ---- fitting

Fitted = tuple[Column, float, float]
"""A column, and the mean and standard deviation of its first feature."""


def fit_columns(
    train: pd.DataFrame, *, categorical: Iterable[str], max_categories: int, missing: Sequence[str], key: str
) -> tuple[tuple[Column, ...], Array, Array]:
    """What each column becomes, from the training rows alone.

    Args:
        train: The training rows without the target.
        categorical: Columns of numbers that are codes.
        max_categories: How many values of a column have an input of their own, the most frequent ones.
        missing: Texts that stand for a missing value, beside the usual ones.
        key: What the user typed the file as, for the messages.

    Returns:
        The columns; and the mean and the standard deviation of each feature: those of the training rows for numbers
        and dates, 0 and 1 for the others.

    Raises:
        ConfigError: If a column of numbers has something else in it, or no column is left to learn from.
    """
    chosen = set(categorical)
    fitted = [_fit_column(clean(train[name], missing), name in chosen, max_categories, key) for name in train.columns]
    columns = tuple(column for column, _, _ in fitted)
    if not any(column.features for column in columns):
        raise ConfigError(
            f"`{key}` must have a column to learn from beside the target, but "
            + ("; ".join(f"{on_one_line(c.name)} is {c.note}" for c in columns[:3]) or "there is no other")
            + "."
        )
    means, stds = [], []
    for column, mean, std in fitted:
        others = max(0, len(column.features) - 1)
        means += ([mean] if column.features else []) + [0.0] * others
        stds += ([std] if column.features else []) + [1.0] * others
    return columns, np.array(means), np.array(stds)


def _fit_column(values: pd.Series[Any], listed: bool, max_categories: int, key: str) -> Fitted:
    import pandas as pd

    name, types = str(values.name), pd.api.types
    known = values.dropna()
    if reason := _why_dropped(known, gaps=len(values) - len(known), name=name):
        return Column(name, "dropped", f"dropped, {reason}"), 0.0, 1.0
    column = Column(name, "category", "", has_missing=len(known) < len(values))
    if types.is_datetime64_any_dtype(values.dtype):
        return _fit_date(values, replace(column, kind="date"))
    if not listed and not types.is_bool_dtype(values.dtype):
        if types.is_numeric_dtype(values.dtype) or np.isfinite(to_numbers(known)).mean() >= NUMBERS_FROM:
            return _fit_number(values, replace(column, kind="number"), key)
        if found := date_format(known):
            return _fit_date(values, replace(column, kind="date", date_format=found))
    return _fit_category(known, column, max_categories, listed), 0.0, 1.0


def _why_dropped(known: pd.Series[Any], *, gaps: int, name: str) -> str:
    if not len(known):
        return "every value is missing"
    if known.dtype == object and known.map(lambda value: isinstance(value, (list, dict, bytes, np.ndarray))).any():
        return "its values are neither numbers nor texts nor dates"
    if not gaps and known.nunique() == 1:
        return f"every value is {on_one_line(known.iloc[0])}"
    if re.fullmatch(r"Unnamed: \d+", name):
        return "it has no name in the header"
    return ""


def _fit_number(values: pd.Series[Any], column: Column, key: str) -> Fitted:
    numbers = _numbers(values, key)
    known = numbers[~np.isnan(numbers)]
    note = "number"
    if len(known) > MANY_ROWS and len(np.unique(known)) == len(known) and (known == np.rint(known)).all():
        note += f" (every value is different: if it only names the row, {typed_list('data.drop', [column.name])})"
    return _fill(numbers, replace(column, note=note), as_text=f"{np.median(known):g}")


def _fit_date(values: pd.Series[Any], column: Column) -> Fitted:
    times = seconds(values, column.date_format)
    known = times[~np.isnan(times)]
    varying = [cycle for cycle, found in phases(known).items() if len(np.unique(found)) > 1]
    note = f"date as {', '.join(['seconds', *varying])}"
    if column.date_format != "ISO8601":
        note += f", read as {column.date_format}"
    median = str(np.datetime64(int(np.median(known)), "s")).replace("T", " ").removesuffix(" 00:00:00")
    return _fill(times, replace(column, note=note, cycles=tuple(varying)), as_text=median)


def _fill(numbers: Array, column: Column, *, as_text: str) -> Fitted:
    """A column of numbers with its median for the missing ones, its mean and its standard deviation."""
    missing = np.isnan(numbers)
    median = float(np.median(numbers[~missing]))
    if missing.any():
        column = replace(column, note=f"{column.note}, {missing.sum():,} missing -> median {as_text}")
    filled = np.where(missing, median, numbers)
    std = float(filled.std()) if np.ptp(filled) > 0 else 1.0
    return replace(column, fill=median), float(filled.mean()), std


def _fit_category(known: pd.Series[Any], column: Column, max_categories: int, listed: bool) -> Column:
    counts = to_texts(known).value_counts()
    if len(counts) == len(known) and not listed:
        return Column(column.name, "dropped", "dropped, every value is different")
    frequent = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))[:max_categories]
    names = tuple(in_order(str(text) for text, _ in frequent))
    nearly_all_differ = not listed and len(known) > MANY_ROWS and 2 * len(counts) > len(known)
    note = f"{len(counts):,} categories{f' of {len(known):,} rows' if nearly_all_differ else ''}, one-hot"
    if len(counts) > len(names):
        note += f" for the {len(names)} most frequent"
    note += ", and one for missing" if column.has_missing else ""
    if nearly_all_differ:
        note += f" ({typed_list('data.drop', [column.name])} leaves it out)"
    return replace(column, categories=names, note=note)


# ---- encoding


def encode(frame: pd.DataFrame, spec: DataSpec, key: str = "input") -> NDArray[np.float32]:
    """Raw rows as the model takes them.

    Args:
        frame: With the columns that the model was trained on, in any order and with others beside them.
        spec: With its columns and statistics, or with features that are columns of numbers.
        key: What the user typed the rows as, for the messages.

    Returns:
        Shape (rows, *input_shape).

    Raises:
        ConfigError: If a column is missing, or holds what it may not.
    """
    names = [str(name) for name in frame.columns]
    if absent := [name for name in spec.raw_names if name not in names]:
        raise ConfigError(
            f"`{key}` must have the {len(spec.raw_names)} columns that the model was trained on, but {len(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} missing: {first_of(absent)}.{did_you_mean(absent[0], names)} "
            f"It needs {first_of(spec.raw_names)}."
        )
    if repeated := [name for name in spec.raw_names if names.count(name) > 1]:
        raise ConfigError(
            f"`{key}` must have a name of its own for each column, got {on_one_line(repeated[0])} more than once."
        )
    if frame.empty:
        raise ConfigError(f"`{key}` must have at least one row, got none.")
    frame = frame.set_axis(names, axis=1)
    if not spec.columns:
        return spec.normalize(np.column_stack([_complete(frame[name], key) for name in spec.feature_names]))
    result = np.empty((len(frame), len(spec.feature_names)), dtype=np.float32)
    start = 0
    for column in spec.columns:
        if column.features:  # a block at a time: the whole table in float64 would be twice as large
            end = start + len(column.features)
            block = _block(clean(frame[column.name], spec.missing), column, key)
            result[:, start:end] = (block - spec.input_mean[start:end]) / spec.input_std[start:end]
            start = end
    return result


def _block(values: pd.Series[Any], column: Column, key: str) -> Array:
    """The features of a column, not yet standardised, shape (rows, features)."""
    import pandas as pd

    missing = values.isna().to_numpy(dtype=bool)
    if column.kind == "category":
        texts = to_texts(values)
        codes = pd.Index(column.categories).get_indexer(pd.Index(texts))
        parts = [codes[:, None] == np.arange(len(column.categories))]
        if key == "input" and (unknown := (codes < 0) & ~missing).any():
            which, of = f"{unknown.sum()} of {len(texts)} rows", texts[unknown].iloc[0]
            name, such = on_one_line(column.name), on_one_line(of)
            log.warning("%s: %s have a value that was rare or unseen in training, such as %s", name, which, such)
    else:
        is_date = column.kind == "date"
        numbers = _dates(values, column, key) if is_date else _numbers(values, key)
        parts = [np.where(missing, column.fill, numbers)[:, None]]
        found = phases(numbers) if column.cycles else {}
        for phase in (found[cycle] for cycle in column.cycles):
            # neither sine nor cosine where the date is missing
            parts.append(np.nan_to_num(np.column_stack([np.sin(phase), np.cos(phase)])))
    if column.has_missing:
        parts.append(missing[:, None])
    return np.hstack(parts, dtype=np.float64)


def _numbers(values: pd.Series[Any], key: str) -> Array:
    numbers = to_numbers(values)
    wrong = np.flatnonzero(~np.isfinite(numbers) & values.notna().to_numpy(dtype=bool))
    if len(wrong):
        raise ConfigError(_wrong(values, wrong, "finite numbers", key))
    return numbers


def _dates(values: pd.Series[Any], column: Column, key: str) -> Array:
    times = seconds(values, column.date_format)
    wrong = np.flatnonzero(np.isnan(times) & values.notna().to_numpy(dtype=bool))
    if len(wrong):
        kind = "dates" if column.date_format == "ISO8601" else f"dates written as {column.date_format}"
        raise ConfigError(_wrong(values, wrong, kind, key))
    return times


def _complete(values: pd.Series[Any], key: str) -> Array:
    """Numbers none of which may be missing: nothing was fitted that could stand for one."""
    numbers = to_numbers(values)
    if len(wrong := np.flatnonzero(~np.isfinite(numbers))):
        raise ConfigError(_wrong(values, wrong, "finite numbers", key))
    return numbers


def _wrong(values: pd.Series[Any], rows: NDArray[np.int64], rule: str, key: str) -> str:
    value, name = values.iloc[rows[0]], str(values.name)
    others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    remedy = "Mend the file."
    if key != "input":
        remedy = (
            f"Mend the file, or leave the column out by {typed_list('data.drop', [name])}; for codes write "
            f"{typed_list('data.categorical', [name])}."
        )
        remedy += (
            f" If {on_one_line(value)} means a missing value, write {typed_list('data.missing', [value])}."
            if isinstance(value, str)
            else ""
        )
    row = int(values.index[rows[0]]) + 1
    return f"`{key}` must have {rule} in {on_one_line(name)}, got {on_one_line(value)} in row {row}{others}. {remedy}"
