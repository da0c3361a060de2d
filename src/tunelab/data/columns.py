"""Columns of any kind as numbers: what each becomes is fitted on the training part, then the same for every row."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunelab.data.dates import ISO, phases
from tunelab.data.gaps import is_missing
from tunelab.data.numbers import Notation
from tunelab.data.recorded import read_numbers, read_texts
from tunelab.data.scales import collapsed, mean_and_std, standardised, too_far
from tunelab.data.values import Array, first_of, in_order, on_one_line, one_spelling, tidy, to_numbers, typed_list
from tunelab.errors import ConfigError, did_you_mean
from tunelab.spec import Column, DataSpec

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("tunelab")

MANY_ROWS = 20
"""From more rows than these, a value of its own for nearly each tells that a column may only name the row."""


# ---- fitting

Mask = NDArray[np.bool_]
Fitted = tuple[Column, float, float]
"""A column, and the mean and standard deviation of its first feature."""


def fit_columns(
    train: pd.DataFrame,
    readings: Mapping[str, Column],
    *,
    categorical: Iterable[str] = (),
    max_categories: int,
    missing: Sequence[str],
    key: str,
) -> tuple[tuple[Column, ...], Array, Array]:
    """What each column becomes, from the training rows alone.

    Args:
        train: The training rows without the target, as the file has them.
        readings: How each column is read.
        categorical: Columns that the user says are codes.
        max_categories: How many values of a column have an input of their own, the most frequent ones.
        missing: Texts that stand for a missing value in every column.
        key: What the user typed the file as, for the messages.

    Returns:
        The columns; and the mean and the standard deviation of each feature: those of the training rows for numbers
        and dates, 0 and 1 for the others.

    Raises:
        ConfigError: If a column of numbers has something else in it, or no column is left to learn from.
    """
    listed = set(categorical)
    fitted = []
    for name in train.columns:
        values, column = tidy(train[name]), readings[name]
        if column.kind != "dropped":
            gone = is_missing(values, column, missing)
            reason = _why_dropped(values[~gone], gaps=int(gone.sum()), name=column.name)
            column = replace(column, kind="dropped", note=f"dropped, {reason}") if reason else column
            column = replace(column, has_missing=bool(gone.any()))
        if column.kind in ("number", "date"):
            fitted.append(_fit_numbers(values, column, missing, key))
            continue
        if column.kind == "category":
            column = _fit_category(read_texts(values, column, missing), column, max_categories, name in listed)
        fitted.append((column, 0.0, 1.0))
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


def _why_dropped(known: pd.Series[Any], *, gaps: int, name: str) -> str:
    if not len(known):
        return "every value is missing"
    if not gaps and known.nunique() == 1:
        return f"every value is {on_one_line(known.iloc[0])}"
    if re.fullmatch(r"Unnamed: \d+", name):
        return "it has no name in the header"
    return ""


def _fit_numbers(values: pd.Series[Any], column: Column, missing: Sequence[str], key: str) -> Fitted:
    numbers = _readable(values, column, missing, key)[0]
    known = np.flatnonzero(~np.isnan(numbers))
    if (far := collapsed(numbers[known])) is not None:
        raise ConfigError(_too_far(values.iloc[known[far]], column.name, key))
    return _fit_date(numbers, column) if column.kind == "date" else _fit_number(numbers, column)


def _fit_number(numbers: Array, column: Column) -> Fitted:
    known = numbers[~np.isnan(numbers)]
    note = column.note
    if len(known) > MANY_ROWS and len(np.unique(known)) == len(known) and (known == np.rint(known)).all():
        note += f" (every value is different: if it only names the row, {typed_list('data.drop', [column.name])})"
    return _fill(numbers, replace(column, note=note), as_text=f"{np.median(known):g}")


def _fit_date(times: Array, column: Column) -> Fitted:
    known = times[~np.isnan(times)]
    varying = [cycle for cycle, found in phases(known).items() if len(np.unique(found)) > 1]
    read_as = "" if column.date_format == ISO else f", read as {column.date_format}"
    if "%y" in column.date_format:
        years = [str(np.datetime64(int(time), "s"))[:4] for time in (known.min(), known.max())]
        read_as += f", from {years[0]} to {years[1]}"
    note = f"date as {', '.join(['seconds', *varying])}{read_as}"
    median = str(np.datetime64(int(np.median(known)), "s")).replace("T", " ").removesuffix(" 00:00:00")
    return _fill(times, replace(column, note=note, cycles=tuple(varying)), as_text=median)


def _fill(numbers: Array, column: Column, *, as_text: str) -> Fitted:
    """A column of numbers with its median for the missing ones, its mean and its standard deviation."""
    missing = np.isnan(numbers)
    median = float(np.median(numbers[~missing]))
    if missing.any():
        words = f" ({first_of(column.placeholders)})" if column.placeholders else ""
        column = replace(column, note=f"{column.note}, {missing.sum():,} missing{words} -> median {as_text}")
    filled = np.where(missing, median, numbers)
    mean, std = mean_and_std(filled)
    return replace(column, fill=median), mean, std


def _fit_category(texts: pd.Series[Any], column: Column, max_categories: int, listed: bool) -> Column:
    known = texts.dropna()
    counts = (one_spelling(known) if column.ignore_case else known).value_counts()
    hint = f"; {column.note}" if column.note else ""
    if len(counts) == len(known) and not listed:
        return replace(column, kind="dropped", note=f"dropped, every value is different{hint}")
    frequent = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))[:max_categories]
    names = tuple(in_order(str(text) for text, _ in frequent))
    nearly_all_differ = not listed and len(known) > MANY_ROWS and 2 * len(counts) > len(known)
    note = f"{len(counts):,} categories{f' of {len(known):,} rows' if nearly_all_differ else ''}, one-hot"
    if len(counts) > len(names):
        note += f" for the {len(names)} most frequent"
    note += ", and one for missing" if column.has_missing else ""
    if nearly_all_differ:
        note += f" ({typed_list('data.drop', [column.name])} leaves it out)"
    return replace(column, categories=names, note=f"{note}{hint}")


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
        with np.errstate(over="ignore"):
            inputs = spec.normalize(np.column_stack([_complete(frame[name], key) for name in spec.feature_names]))
        for values, name in zip(inputs.reshape(len(inputs), -1).T, spec.feature_names, strict=True):
            _check_size(values, frame[name], key)
        return inputs
    result = np.empty((len(frame), len(spec.feature_names)), dtype=np.float32)
    start = 0
    for column in spec.columns:
        if column.features:  # a block at a time: the whole table in float64 would be twice as large
            end = start + len(column.features)
            block = _block(frame[column.name], column, spec.missing, key)
            scaled = standardised(block, *(np.array(s[start:end]) for s in (spec.input_mean, spec.input_std)))
            _check_size(scaled, frame[column.name], key)
            result[:, start:end] = scaled
            start = end
    return result


def _block(values: pd.Series[Any], column: Column, meaning_missing: Sequence[str], key: str) -> Array:
    """The features of a column, not yet standardised, shape (rows, features)."""
    import pandas as pd

    if column.kind == "category":
        texts = read_texts(values, column, meaning_missing)
        missing = texts.isna().to_numpy(dtype=bool)
        names = [name.casefold() if column.ignore_case else name for name in column.categories]
        codes = pd.Index(names).get_indexer(pd.Index(texts.str.casefold() if column.ignore_case else texts))
        parts = [codes[:, None] == np.arange(len(names))]
        if key == "input" and (unknown := (codes < 0) & ~missing).any():
            which, of = f"{unknown.sum()} of {len(texts)} rows", texts[unknown].iloc[0]
            name, such = on_one_line(column.name), on_one_line(of)
            log.warning("%s: %s have a value that was rare or unseen in training, such as %s", name, which, such)
    else:
        numbers, missing = _readable(values, column, meaning_missing, key)
        parts = [np.where(missing, column.fill, numbers)[:, None]]
        found = phases(numbers) if column.cycles else {}
        for phase in (found[cycle] for cycle in column.cycles):
            # neither sine nor cosine where the date is missing
            parts.append(np.nan_to_num(np.column_stack([np.sin(phase), np.cos(phase)])))
    if column.has_missing:
        parts.append(missing[:, None])
    return np.hstack(parts, dtype=np.float64)


def _readable(values: pd.Series[Any], column: Column, missing: Sequence[str], key: str) -> tuple[Array, Mask]:
    """The numbers or seconds of a column, and where they are missing."""
    numbers, gone = read_numbers(values, column, missing)
    if len(wrong := np.flatnonzero(~np.isfinite(numbers) & ~gone)):
        if column.kind == "date":
            rule = "dates" if column.date_format == ISO else f"dates written as {column.date_format}"
        else:
            written = Notation(column.decimal_comma, column.thousands, column.unit).in_words()
            rule = f"finite numbers {written}".rstrip()
        raise ConfigError(_wrong(values, wrong, rule, key))
    return numbers, gone


def _check_size(scaled: NDArray[np.floating[Any]], values: pd.Series[Any], key: str) -> None:
    """Refuses numbers so far from those of the training rows that the model cannot compute with them."""
    if len(far := too_far(scaled)):
        raise ConfigError(_wrong(values, far, "numbers of the size that they have in training", key))


def _complete(values: pd.Series[Any], key: str) -> Array:
    """Numbers none of which may be missing: nothing was fitted that could stand for one."""
    numbers = to_numbers(values)
    if len(wrong := np.flatnonzero(~np.isfinite(numbers))):
        raise ConfigError(_wrong(values, wrong, "finite numbers", key))
    return numbers


def _too_far(value: Any, name: str, key: str) -> str:
    return (
        f"`{key}` must have numbers of one size in {on_one_line(name)}, got {on_one_line(value)}, beside which all the "
        f"others are one. If it means a missing value, write {typed_list('data.missing', [value])}; or mend the file, "
        f"or leave the column out by {typed_list('data.drop', [name])}."
    )


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
