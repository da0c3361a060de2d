"""What the values of a file leave open, each question a sentence with the key to type."""

from __future__ import annotations

from collections.abc import Mapping

from tunelab.data.dates import ISO, FoundDates, parse
from tunelab.data.numbers import (
    COMMA,
    KNOWN_UNITS,
    MANY_NUMBERS,
    NUMBERS_FROM,
    POINT,
    Found,
    is_currency,
    other_values,
    take_apart,
)
from tunelab.data.values import first_of, on_one_line, typed_list, typed_mapping


def _remedies(name: str) -> str:
    return f"Or leave the column out by {typed_list('data.drop', [name])}."


def ask_decimal(name: str, text: str) -> str:
    """A question where a number is another one as its only mark is read."""
    value = other_values(text)
    return (
        f"`data.decimal` must say whether {text} in {on_one_line(name)} is {value['point']} or {value['comma']}: no "
        f"value of the column tells. Type data.decimal=point for {value['point']}, or data.decimal=comma for "
        f"{value['comma']}; for this column alone, {typed_mapping('data.decimal', name, 'point')}."
    )


def ask_day_first(name: str, found: FoundDates) -> str:
    """A question where a date is another one as its day or its month comes first."""
    import pandas as pd

    def day(written: str) -> str:
        return str(parse(pd.Series([found.open], dtype=object), written).iloc[0].date())

    day_first, other = found.format, found.other
    if not day_first.startswith("%d"):
        day_first, other = other, day_first
    return (
        f"`data.day_first` must say whether {found.open} in {on_one_line(name)} is {day(day_first)} or {day(other)}: "
        f"no value of the column tells. Type data.day_first=true for {day(day_first)}, or data.day_first=false for "
        f"{day(other)}; for this column alone, {typed_mapping('data.day_first', name, 'true')}."
    )


def ask_missing(name: str, words: Mapping[str, int], total: int, kind: str = "numbers") -> str:
    """A question where words among numbers or dates may mean a missing value, and something else."""
    return (
        f"`data.missing` must say what {first_of(words)} in {on_one_line(name)} means, in {sum(words.values()):,} of "
        f"{total:,} rows where the others are {kind}. If it is a missing value, type "
        f"{typed_list('data.missing', words)}; "
        f"if the values are codes, {typed_list('data.categorical', [name])}. {_remedies(name)}"
    )


def ask_units(name: str, found: Found, counts: Mapping[str, int]) -> str | None:
    """A question where the numbers of a column have several units; None where they are no numbers with units."""
    numeric = sum(found.misfits.values())
    units = [unit for unit in found.units if unit]
    known = all(is_currency(unit) or unit in KNOWN_UNITS for unit in units)
    if not units or len(found.units) < 2 or not known or numeric < NUMBERS_FROM * sum(counts.values()):
        return None
    texts = {apart.unit: text for text in found.misfits if (apart := take_apart(text))}
    return (
        f"`data.path` must have one unit in {on_one_line(name)}, got "
        f"{' and '.join(on_one_line(texts[unit]) for unit in found.units[:2])}. Write one unit into the file, or type "
        f"{typed_list('data.categorical', [name])} if the values are codes. {_remedies(name)}"
    )


def ask_notation(name: str, found: Found, counts: Mapping[str, int]) -> str | None:
    """A question where a column has many numbers and no notation for all; None where it has something else."""
    numeric = {text: apart.body for text in found.misfits if (apart := take_apart(text))}
    numeric = {text: body for text, body in numeric.items() if POINT.fullmatch(body) or COMMA.fullmatch(body)}
    few = len(numeric) <= MANY_NUMBERS or len(found.units) > 1
    if few or sum(counts[text] for text in numeric) < NUMBERS_FROM * sum(counts.values()):
        return None
    point = next((text for text, body in numeric.items() if not COMMA.fullmatch(body)), "")
    comma = next((text for text, body in numeric.items() if not POINT.fullmatch(body)), "")
    return (
        f"`data.path` must have numbers of one notation in {on_one_line(name)}, got "
        f"{' and '.join(on_one_line(text) for text in (point, comma) if text)}. Write one notation into the file, or "
        f"type {typed_list('data.categorical', [name])} if the values are codes. {_remedies(name)}"
    )


def ask_dates(name: str, found: FoundDates, total: int) -> str:
    """A question where the dates of a column are of several formats."""
    written = "2024-01-31 or the like" if found.format == ISO else found.format
    return (
        f"`data.path` must have dates of one format in {on_one_line(name)}, got {first_of(found.misfits)} in "
        f"{sum(found.misfits.values()):,} of {total:,} rows, where others are written as {written}. Write one format "
        f"into the file, or type {typed_list('data.categorical', [name])} if the values are codes. {_remedies(name)}"
    )
