"""What stands for a missing value in a column: the usual words, and those that give themselves away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunelab.data.values import Array, plain_text, to_texts
from tunelab.spec import Column

if TYPE_CHECKING:
    import pandas as pd

_USUAL = "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null"
USUAL = frozenset(_USUAL.split("|"))
"""What pandas takes for a missing value, beside the empty cell."""

_PLACEHOLDERS = (
    "?|??|???|-|--|---|.|..|...|*|**|_|/|\\|\u2013|\u2014|\u2026|missing|unknown|unkn|unk|undefined|undef|unspecified|"
    "not available|not applicable|not known|not given|not specified|not reported|not recorded|no data|no value|nodata|"
    "none|null|nil|nan|-nan|na|n.a.|n.a|n/a|n.d.|n/d|nd|<na>|(null)|(none)|(blank)|blank|empty|tbd|tba|void|#n/a|"
    "#n/a n/a|#na|#value!|#div/0!|#ref!|#num!|#name?|#null!|1.#ind|-1.#ind|1.#qnan|-1.#qnan|k.a.|k. a.|keine angabe|"
    "unbekannt|fehlt|inconnu|desconocido|sin dato|s/d|0000-00-00|0000-00-00 00:00:00|00/00/0000|9999-12-31|"
    "9999-12-31 00:00:00|31/12/9999|31.12.9999|12/31/9999"
)
PLACEHOLDERS = frozenset(_PLACEHOLDERS.split("|"))
"""Words, in small letters, that mean a missing value where the rest of a column is numbers or dates."""

NINES = (-999, -9999, -99999, -999999, -9999999)
"""Numbers that stand for a missing value where they come again, far from all others."""

NINES_AS_TEXT = frozenset(str(number) for number in NINES)

MARKS_APART = (*(-n for n in NINES), -99, -1000, -200, 99, 1e20, 1e30, -1e20, -1e30)
"""Numbers that may stand for one: said, and not changed."""


def is_missing(values: pd.Series[Any], column: Column, missing: Sequence[str]) -> NDArray[np.bool_]:
    """Where a value is missing, or stands for a missing one.

    Args:
        values: As the file has them.
        column: How it is read.
        missing: Texts that stand for a missing value in every column.
    """
    import pandas as pd

    gone = values.isna().to_numpy(dtype=bool)
    is_number = pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)
    words = {plain_text(word) for word in (*missing, *column.placeholders)}
    if is_number and not words:
        return gone
    if not is_number:
        words |= {"", *(USUAL if column.usual_missing else ())}
    return gone | to_texts(values).isin(words).to_numpy(dtype=bool)


def words_for_missing(words: Iterable[str], kept: Iterable[str]) -> list[str]:
    """Those of some words that mean a missing value where the rest is numbers or dates.

    Args:
        words: Texts of a column.
        kept: Texts that the user says are values.
    """
    values = {plain_text(word) for word in kept}
    return [word for word in words if word.casefold() in PLACEHOLDERS and plain_text(word) not in values]


def numbers_for_missing(rows: Mapping[float, int], kept: Iterable[str]) -> tuple[str, ...]:
    """Numbers such as -999 that come again, farther from all others than those are from each other.

    Args:
        rows: Each number of a column, and in how many rows it stands.
        kept: Numbers that the user says are values.
    """
    values = {plain_text(word) for word in kept}
    marks = [n for n in NINES if rows.get(n, 0) > 1 and str(n) not in values and _stands_apart(n, rows)]
    return tuple(str(number) for number in marks)


def may_be_missing(rows: Mapping[float, int], kept: Iterable[str]) -> str:
    """A number that may stand for a missing value and may be one: 99 or 9999 apart from all others; or nothing."""
    values = {plain_text(word) for word in kept}
    found = [n for n in MARKS_APART if rows.get(n, 0) > 1 and f"{n:g}" not in values and _stands_apart(n, rows)]
    return f"{found[0]:g}" if found else ""


def _stands_apart(number: float, rows: Mapping[float, int]) -> bool:
    others: Array = np.array([other for other in rows if other not in NINES and other != number])
    if len(others) < 3:
        return False
    gap = np.abs(others - number).min()
    return bool(gap > others.max() - others.min())
