"""The values of a column as numbers or as the names of categories, whatever kind of file they came from."""

from __future__ import annotations

import datetime
import re
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]


def tidy(values: pd.Series[Any]) -> pd.Series[Any]:
    """The values with the type of what they are: numbers, booleans and dates in a column of objects, durations."""
    import pandas as pd

    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    if pd.api.types.is_timedelta64_dtype(values.dtype):
        values = values.dt.total_seconds()
    if values.dtype == object:
        known = values.dropna()
        if len(known) and isinstance(known.iloc[0], datetime.date):
            return pd.to_datetime(values, errors="coerce")
        kind = pd.api.types.infer_dtype(known) if len(known) else ""
        if kind == "boolean":
            return values.astype("boolean")
        if kind in ("decimal", "integer", "floating", "mixed-integer-float"):
            return pd.to_numeric(values)
    return values


def has_texts(values: pd.Series[Any]) -> bool:
    """Whether a column has texts, whose meaning is to be found, and not numbers, dates or booleans."""
    import pandas as pd

    return bool(values.dtype == object or pd.api.types.is_string_dtype(values.dtype))


def to_numbers(values: pd.Series[Any]) -> Array:
    """Numbers, NaN where a value is missing or none."""
    import pandas as pd

    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def to_texts(values: pd.Series[Any]) -> pd.Series[Any]:
    """Each value as a category's name, missing ones as None: 3, 3.0 and "3" are one, and so are True and "true"."""
    import pandas as pd

    codes, found = pd.factorize(values)
    names = np.array([*map(plain_text, found), None], dtype=object)  # None has code -1, that of a missing value
    return pd.Series(names[codes], index=values.index, dtype=object)


def plain_text(value: Any) -> str:
    """A value as text, without blanks around it: 3.0 is 3, and TRUE is True."""
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.capitalize()
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", text)


def one_spelling(texts: pd.Series[Any]) -> pd.Series[Any]:
    """Texts that differ in small and capital letters alone as the most frequent of them."""
    counts = texts.value_counts()
    best: dict[str, str] = {}
    for text in sorted(counts.index, key=lambda text: (-counts[text], text)):
        best.setdefault(text.casefold(), text)
    return texts.map(lambda text: best[text.casefold()])


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted, numbers by their value and before all else."""

    def place(name: str) -> tuple[bool, float, str]:
        try:
            return False, float(name), name
        except ValueError:
            return True, 0.0, name

    return sorted(names, key=place)


def first_of(names: Iterable[Any]) -> str:
    """The first three, and how many there are."""
    shown = [on_one_line(name) for name in names]
    return ", ".join(shown[:3]) + (f", … ({len(shown)})" if len(shown) > 3 else "")


def on_one_line(name: Any) -> str:
    """A name or value as it stands, or by its repr where it has a line break or another sign that is not printed."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def typed_list(key: str, names: Iterable[str]) -> str:
    """What to type for a list of names, in the quotes that a shell and Hydra need: 'data.drop=["my id"]'."""
    listed = [str(name) for name in names]
    if all(map(_is_word, listed)):
        return f"{key}=[{','.join(listed)}]"
    return _in_quotes(f"{key}=[" + ",".join(map(_quoted, listed)) + "]")


def typed_mapping(key: str, name: str, value: str) -> str:
    """What to type for a value of one column: 'data.decimal={price:comma}'."""
    return _in_quotes(f"{key}={{{name if _is_word(name) else _quoted(name)}:{value}}}")


def _is_word(name: str) -> bool:
    words = r"(?!(?:true|false|null|nan|inf)$)[a-z_]\w*"
    return re.fullmatch(words, name, re.ASCII | re.IGNORECASE) is not None


def _quoted(name: str) -> str:
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', name)
    return '"' + re.sub(r"(\\+)$", r"\1\1", escaped) + '"'


def _in_quotes(override: str) -> str:
    if override.isprintable():
        return shlex.quote(override)
    escaped = override.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in escaped) + "'"
