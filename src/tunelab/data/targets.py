"""The column to predict: classes or numbers, and what neither of them may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunelab.data.gaps import USUAL, is_missing
from tunelab.data.numbers import NUMBERS_FROM
from tunelab.data.reading import ReadingRules, same_but_case
from tunelab.data.recorded import read_numbers
from tunelab.data.scales import collapsed
from tunelab.data.values import (
    Array,
    first_of,
    in_order,
    on_one_line,
    one_spelling,
    plain_text,
    tidy,
    to_numbers,
    to_texts,
    typed_list,
)
from tunelab.errors import ConfigError
from tunelab.spec import Column, DataSpec

if TYPE_CHECKING:
    import pandas as pd

MOST_CLASSES, MOST_FRACTIONAL = 100, 20
"""More different whole numbers than the first, or others than the second, are numbers to predict and not classes."""

ROWS_OF_A_CLASS = 5
"""Whole numbers from 0 or 1 on without a gap, each in as many rows as this on average, are classes of any number."""

SHOWN_CLASSES = 10


def known_targets(values: pd.Series[Any], column: Column, missing: Sequence[str]) -> NDArray[np.bool_]:
    """Where the target is known.

    Args:
        values: As the file has them.
        column: How they are read.
        missing: Texts that stand for a missing value in every column.
    """
    return ~is_missing(tidy(values), column, missing)


def wants_classes(values: pd.Series[Any], column: Column, task: str, *, is_listed: bool) -> bool:
    """Whether the target holds classes: what the task takes, or what the values look like if it does not say.

    Args:
        values: The target, none of it missing.
        column: How it is read.
        task: The dotted name of the task's class.
        is_listed: Whether the user says that its numbers are codes.

    Raises:
        ConfigError: If the values do not fit the task, or are not finite.
    """
    name, numbers = on_one_line(values.name), _numbers(values, column)
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
    are_numbers = not texts.any() and not is_listed
    different = np.unique(numbers)
    whole = are_numbers and bool((numbers == np.rint(numbers)).all())
    many = len(different) > (MOST_CLASSES if whole else MOST_FRACTIONAL) or 2 * len(different) > len(values)
    if "classif" in kind and are_numbers and many and not _are_codes(different, len(values)):
        raise ConfigError(
            f"`task` must fit the data, got classification for {name}, which has {len(different):,} distinct "
            "numbers. Try task=regression loss=mse objective=val/rmse; if they are classes, "
            f"{typed_list('data.categorical', [str(values.name)])}."
        )
    return "classif" in kind or ("regress" not in kind and not (are_numbers and many))


def _are_codes(different: Array, rows: int) -> bool:
    """Whether the numbers count classes: 0, 1, 2, … or 1, 2, 3, …, each again and again."""
    counted = different[0] in (0, 1) and bool((np.diff(different) == 1).all())
    return counted and rows >= ROWS_OF_A_CLASS * len(different)


def _numbers(values: pd.Series[Any], column: Column) -> Array:
    return read_numbers(values, column, ())[0] if column.kind == "number" else to_numbers(values)


def class_codes(
    values: pd.Series[Any], rules: ReadingRules, *, is_text: bool = True, judged: bool = True
) -> tuple[Any, tuple[str, ...]]:
    """The class of each row, integers in [0, classes) of shape (rows,), and the name of each class.

    Args:
        values: The target, none of it missing.
        rules: What the user says of how the file is to be read.
        is_text: Whether the file is text alone, where a missing value is a word as well.
        judged: Whether they are to be learned from; a model that knows its classes is scored on any number of them.

    Raises:
        ConfigError: If there is one class only, or nearly one for each row; or if a word may be a class and may mean
            a missing value, or two words may be one class.
    """
    import pandas as pd

    name, texts = on_one_line(values.name), to_texts(values)
    if is_text and judged:
        _ask_whether_missing(name, texts, rules)
    if rules.ignore_case:
        texts = one_spelling(texts)
    elif rules.ignore_case is None and judged and (same := same_but_case(texts.unique().tolist())):
        raise ConfigError(
            f"`data.ignore_case` must say whether {' and '.join(same)} are one class of {name}. Type "
            "data.ignore_case=true if they are, or data.ignore_case=false if they are not."
        )
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


def _ask_whether_missing(name: str, texts: pd.Series[Any], rules: ReadingRules) -> None:
    kept = {plain_text(word) for word in rules.not_missing}
    counts = texts.value_counts()
    words = [str(word) for word in counts.index if word in USUAL and word not in kept]
    if words:
        raise ConfigError(
            f"`data.missing` must say whether {first_of(words)} in {name} is a class or a missing value, in "
            f"{int(counts[words].sum()):,} of {len(texts):,} rows. If it is a class, type "
            f"{typed_list('data.not_missing', words)}; to leave these rows out, {typed_list('data.missing', words)}."
        )


def numbers_to_predict(values: pd.Series[Any], column: Column, *, judged: bool = True) -> Array:
    """The number of each row.

    Args:
        values: The target, none of it missing.
        column: How it is read.
        judged: Whether they are to be learned from; a model is scored on any.

    Raises:
        ConfigError: If it is always the same, or one number is so large that the others are one beside it.
    """
    name, numbers = on_one_line(values.name), _numbers(values, column)
    if judged and not np.ptp(numbers / 2) > 0:
        raise ConfigError(
            f"`data.target` must vary, got {name}, which is {values.iloc[0]} in every row. Choose another column."
        )
    if judged and (far := collapsed(numbers)) is not None:
        raise ConfigError(
            f"`data.target` must have numbers of one size in {name}, got {values.iloc[far]} in row "
            f"{values.index[far] + 1}, beside which all the others are one. Mend the file; if it means a missing "
            f"value, type {typed_list('data.missing', [values.iloc[far]])}."
        )
    return numbers


def target_in_words(spec: DataSpec, targets: Any) -> str:
    """What the target holds, in words: its classes and their rows, or its least and its greatest number."""
    if not spec.class_names:
        return f"{spec.target.note if spec.target else 'number'} from {targets.min():g} to {targets.max():g}"
    rows = np.bincount(targets, minlength=len(spec.class_names))
    shown = ", ".join(
        f"{on_one_line(name)} {count:,}" for name, count in zip(spec.class_names[:SHOWN_CLASSES], rows, strict=False)
    )
    more = ", …" if len(spec.class_names) > SHOWN_CLASSES else ""
    return f"{len(spec.class_names)} classes: {shown}{more}"
