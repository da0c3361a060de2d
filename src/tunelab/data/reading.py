"""How each column of a file is read: decided by all of its values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tunelab.data.dates import ISO, find_format
from tunelab.data.gaps import NINES_AS_TEXT, USUAL, may_be_missing, numbers_for_missing, words_for_missing
from tunelab.data.numbers import MANY_NUMBERS, NUMBERS_FROM, Decimal, Found, find_notation, take_apart
from tunelab.data.questions import ask_dates, ask_day_first, ask_decimal, ask_missing, ask_notation, ask_units
from tunelab.data.values import Array, first_of, has_texts, on_one_line, plain_text, tidy, to_numbers, typed_list
from tunelab.errors import ConfigError
from tunelab.spec import Column

if TYPE_CHECKING:
    import pandas as pd

FEW_WORDS = 3
"""Words beside many numbers that may each mean a missing value; more are categories."""


@dataclass(frozen=True)
class ReadingRules:
    """What the user says of how a file is to be read.

    Args:
        missing: Texts that stand for a missing value, beside those that are found.
        not_missing: Texts that are values, though they look like missing ones.
        categorical: Columns of numbers that are codes.
        decimal: `point` or `comma`, for all columns or by name, where a column's values leave it open.
        day_first: Whether the day comes before the month, for all columns or by name, where values leave it open.
        ignore_case: Whether Yes and yes are one; None if nobody has said so.
    """

    missing: tuple[str, ...] = ()
    not_missing: tuple[str, ...] = ()
    categorical: frozenset[str] = frozenset()
    decimal: Decimal | Mapping[str, Decimal] | None = None
    day_first: bool | Mapping[str, bool] | None = None
    ignore_case: bool | None = None

    def decimal_of(self, name: str) -> Decimal | None:
        """What decides between 1,234 as a thousand and as one and a bit."""
        return self.decimal.get(name) if isinstance(self.decimal, Mapping) else self.decimal

    def day_first_of(self, name: str) -> bool | None:
        """What decides between 02/03 as in February and as in March."""
        return self.day_first.get(name) if isinstance(self.day_first, Mapping) else self.day_first


def decide(
    frame: pd.DataFrame, rules: ReadingRules, *, target: str | None = None, is_regression: bool = False
) -> dict[str, Column]:
    """How each column is read, from all of its rows.

    Args:
        frame: The rows of all files, as they stand.
        rules: What the user says of them.
        target: The column to predict, if it is among them.
        is_regression: Whether the target holds numbers; the words of another are classes.

    Returns:
        A column for each, of the kind `number`, `date`, `category` or `dropped`; its note says how it is read.

    Raises:
        ConfigError: If two readings fit, with the key that decides.
    """
    looks = {name: _look(frame[name], rules) for name in frame.columns if name != target}
    if target is not None:
        looks[target] = _look(frame[target], rules, is_target=True, has_classes=not is_regression)
    commas = any(look.column.decimal_comma for look in looks.values())
    questions = [question for look in looks.values() for question in look.questions(commas_elsewhere=commas)]
    if questions:
        raise ConfigError(*questions)
    return {name: look.column for name, look in looks.items()}


@dataclass(frozen=True)
class _Look:
    """How a column is read, and what its values leave open.

    Args:
        column: How it is read.
        asked: What to ask in any case.
        open_number: A number that is another one as its only mark is read, where no value tells.
    """

    column: Column
    asked: tuple[str, ...] = ()
    open_number: str = ""

    def questions(self, *, commas_elsewhere: bool) -> tuple[str, ...]:
        """What to ask, each a sentence with the key to type.

        Args:
            commas_elsewhere: Whether another column has a decimal comma: then 1.234 may be a thousand.
        """
        if self.open_number and ("," in self.open_number or commas_elsewhere):
            return (*self.asked, ask_decimal(self.column.name, self.open_number))
        return self.asked


def _look(values: pd.Series[Any], rules: ReadingRules, *, is_target: bool = False, has_classes: bool = False) -> _Look:
    import pandas as pd

    name, values = str(values.name), tidy(values)
    category = Column(name, "category", "", usual_missing=False, ignore_case=bool(rules.ignore_case))
    if not has_texts(values):
        if pd.api.types.is_datetime64_any_dtype(values.dtype):
            return _Look(Column(name, "date", "date"))
        if pd.api.types.is_bool_dtype(values.dtype) or name in rules.categorical:
            return _Look(category)
        known = to_numbers(values)
        return _Look(_with_numbers_for_missing(Column(name, "number", "number"), _counted(known), rules, is_target))
    if not _all_plain(values):
        return _Look(
            replace(category, kind="dropped", note="dropped, its values are neither numbers nor texts nor dates")
        )
    counts = _texts(values, rules.missing)
    placeholders = words_for_missing(counts, rules.not_missing)
    if has_classes:
        placeholders = [word for word in placeholders if word in USUAL]
    known_counts = {text: rows for text, rows in counts.items() if text not in set(placeholders)}
    if known_counts and name not in rules.categorical:
        look = _look_for_numbers(name, known_counts, placeholders, rules, is_target)
        look = look or _look_for_dates(name, known_counts, placeholders, rules, is_target)
        if look is not None and not has_classes:
            return look
        if look is not None and look.column.kind == "number":
            return _Look(look.column)  # whatever its numbers are, each is a class
    return _Look(replace(category, note=_hints(name, counts, rules)))


def _all_plain(values: pd.Series[Any]) -> bool:
    """Whether values are texts or numbers, and not lists or bytes."""
    return not (values.dtype == object and values.map(lambda v: isinstance(v, (list, dict, bytes, np.ndarray))).any())


def _texts(values: pd.Series[Any], missing: Sequence[str]) -> dict[str, int]:
    """The texts of a column, without blanks around them, and in how many rows each stands."""
    gone = {plain_text(word) for word in missing}
    counts: dict[str, int] = {}
    for value, rows in values.dropna().value_counts(sort=False).items():
        if (text := str(value).strip()) and plain_text(text) not in gone:
            counts[text] = counts.get(text, 0) + int(rows)
    return counts


def _counted(numbers: Array) -> dict[float, int]:
    found, rows = np.unique(numbers[np.isfinite(numbers)], return_counts=True)
    return dict(zip(found.tolist(), rows.tolist(), strict=True))


# ---- numbers


def _look_for_numbers(
    name: str, counts: dict[str, int], placeholders: list[str], rules: ReadingRules, is_target: bool
) -> _Look | None:
    """The column as numbers, if its texts are numbers beside a few words; None if they are something else."""
    nines = {text: rows for text, rows in counts.items() if text in NINES_AS_TEXT and rows > 1}
    others = {text: rows for text, rows in counts.items() if text not in nines}
    found = find_notation(others, rules.decimal_of(name)) if len(others) > 2 else Found(None, {})
    if found.notation is None or not found.notation.unit or is_target:
        found = find_notation(counts, rules.decimal_of(name))
    elif nines:  # -999 beside 70 kg is no weight
        counts, placeholders = others, [*placeholders, *nines]
    if found.notation is None:
        asked_unit = ask_units(name, found, counts) or ask_notation(name, found, counts)
        return _Look(Column(name, "category", ""), (asked_unit,)) if asked_unit else None
    words, total = found.words, sum(counts.values())
    distinct = len(set(found.numbers.values()))
    mostly = found.rows >= NUMBERS_FROM * total
    kept = {plain_text(word) for word in rules.not_missing}
    if any(plain_text(word) in kept for word in words):
        return None
    if not mostly and (distinct <= MANY_NUMBERS or found.misfits or len(words) > FEW_WORDS or min(words.values()) < 2):
        return None
    asked: tuple[str, ...] = ()
    repeated = bool(words) and min(words.values()) > 1 and not _are_infinite(words)
    if repeated and not is_target and len(words) == 1 and not placeholders:
        placeholders = list(words)  # it has an input of its own, so that nothing is lost whatever it means
    elif repeated and len(words) <= FEW_WORDS:
        asked = (ask_missing(name, words, total),)
    if _codes(found.numbers):
        return None
    rows = _summed(found.numbers, counts)
    column = Column(
        *(name, "number", _note(found, counts)),
        decimal_comma=found.notation.decimal_comma,
        thousands=found.notation.thousands,
        unit=found.notation.unit,
        placeholders=tuple(sorted(placeholders)),
    )
    return _Look(_with_numbers_for_missing(column, rows, rules, is_target), asked, found.open)


def _summed(numbers: Mapping[str, float], counts: Mapping[str, int]) -> dict[float, int]:
    rows: dict[float, int] = {}
    for text, number in numbers.items():
        rows[number] = rows.get(number, 0) + counts[text]
    return rows


def _with_numbers_for_missing(column: Column, rows: dict[float, int], rules: ReadingRules, is_target: bool) -> Column:
    kept = (*rules.missing, *rules.not_missing)
    found = () if is_target else numbers_for_missing(rows, kept)
    if found:
        return replace(column, placeholders=(*column.placeholders, *found))
    if apart := may_be_missing(rows, kept):
        hint = (
            f"{column.note} ({apart} stands apart: if it means a missing value, {typed_list('data.missing', [apart])})"
        )
        return replace(column, note=hint)
    return column


def _are_infinite(words: Mapping[str, int]) -> bool:
    return any(re.fullmatch(r"[+-]?inf(inity)?", word, re.IGNORECASE) for word in words)


def _codes(texts: Iterable[str]) -> tuple[str, ...]:
    """Two texts that would be one number but for the zeros before them, as 01 and 1: codes; or nothing."""
    first: dict[str, str] = {}
    for text in texts:
        if re.fullmatch(r"[+-]?\d+", text):
            other = first.setdefault(re.sub(r"(?<!\d)0+(?=\d)", "", text), text)
            if other != text:
                return tuple(sorted([other, text]))
    return ()


def _has_zeros(text: str) -> bool:
    return re.match(r"[+-]?0\d", text) is not None


def _note(found: Found, counts: Mapping[str, int]) -> str:
    assert found.notation is not None
    unusual = found.notation.in_words()
    note = f"number {unusual}" if unusual else "number"
    if any(_has_zeros(text) for text in found.numbers):
        note += " (some begin with 0: codes belong in data.categorical)"
    return note


# ---- dates


def _look_for_dates(
    name: str, counts: dict[str, int], placeholders: list[str], rules: ReadingRules, is_target: bool
) -> _Look | None:
    found = find_format(counts, rules.day_first_of(name))
    if not found.format:
        return None
    total = sum(counts.values())
    wrong = sum(found.words.values()) + sum(found.misfits.values())
    asked: tuple[str, ...] = ()
    if found.misfits and total - wrong < NUMBERS_FROM * total:
        return _Look(Column(name, "category", ""), (ask_dates(name, found, total),))
    if found.words:
        repeated = min(found.words.values()) > 1
        if repeated and len(found.words) == 1 and not placeholders and not is_target:
            placeholders = list(found.words)
        elif total - wrong < NUMBERS_FROM * total:
            return None
        elif repeated and len(found.words) <= FEW_WORDS:
            asked = (ask_missing(name, found.words, total, kind="dates"),)
    if found.open:
        asked = (*asked, ask_day_first(name, found))
    note = "date" if found.format == ISO else f"date, read as {found.format}"
    words = tuple(sorted(placeholders))
    return _Look(Column(name, "date", note, date_format=found.format, placeholders=words), asked)


# ---- categories


def _hints(name: str, counts: Mapping[str, int], rules: ReadingRules) -> str:
    """What is worth saying of a column of words."""
    said = []
    if usual := sorted(word for word in counts if word in USUAL and word not in rules.not_missing):
        said.append(f"{first_of(usual)} taken as a value: {typed_list('data.missing', usual)} makes it missing")
    if rules.ignore_case is None and (same := same_but_case(counts)):
        said.append(f"{' and '.join(same)} are two: data.ignore_case=true makes them one")
    if name not in rules.categorical and (codes := _codes(counts)):
        said.append(f"{' and '.join(codes)} are two codes, for one begins with 0")
    numeric = [text for text in counts if text[:1].isdigit() or take_apart(text) is not None]
    if name not in rules.categorical and len(numeric) >= NUMBERS_FROM * len(counts) and len(counts) > MANY_NUMBERS:
        said.append(f"texts such as {on_one_line(numeric[0])} are in no notation of numbers or dates that is known")
    return "; ".join(said)


def same_but_case(words: Iterable[str]) -> tuple[str, ...]:
    """Words that differ in small and capital letters alone: the first such."""
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault(plain_text(word).casefold(), []).append(plain_text(word))
    return next((tuple(sorted(set(group))) for group in groups.values() if len(set(group)) > 1), ())
