"""The values of a column as numbers, as times, or as the names of categories, whatever kind of file they came from."""

from __future__ import annotations

import datetime
import re
import shlex
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

DATE_FORMATS = (
    "ISO8601",
    *(date + time for date in ("%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y") for time in ("", " %H:%M", " %H:%M:%S")),
)
"""How dates are written, tried in this order: 02/03/2024 is in February unless another row cannot be read so."""

NUMBERS_FROM = 0.9
"""A column of texts of which at least this share are numbers holds numbers; the others are mistakes, and said so."""

COMMA_NUMBER = r"\s*[+-]?(?=[\d,])(?:\d*|[1-9]\d{0,2}(?:\.\d{3})+)(?:,\d+)?(?:[eE][+-]?\d+)?\s*"
"""A number with a decimal comma, and perhaps a point before each three digits: 3.113,15."""

CYCLES = {"month": 12, "weekday": 7, "hour": 24}
"""What of a date comes round again, and after how many."""


def clean(values: pd.Series[Any], missing: Sequence[str]) -> pd.Series[Any]:
    """The values with missing ones marked as such, and with the type of what they are.

    Args:
        values: A column as it was read.
        missing: Texts that stand for a missing value, beside the usual ones.
    """
    import pandas as pd

    if missing:
        values = values.mask(_is_one_of(values, missing))
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    if pd.api.types.is_timedelta64_dtype(values.dtype):
        values = values.dt.total_seconds()
    if values.dtype == object:
        known = values.dropna()
        if len(known) and isinstance(known.iloc[0], datetime.date):
            return pd.to_datetime(values, errors="coerce")
        if len(known) and pd.api.types.infer_dtype(known) == "boolean":
            return values.astype("boolean")
    return values


def _is_one_of(values: pd.Series[Any], texts: Sequence[str]) -> pd.Series[Any]:
    return to_texts(values).isin([_text(text) for text in texts])


def points_for_commas(frame: pd.DataFrame, *, missing: Sequence[str], known: Container[str]) -> pd.DataFrame:
    """Columns of numbers such as 3.113,15 as 3113.15; `frame.attrs["decimal_comma"]` names them.

    Args:
        frame: Texts.
        missing: Texts that stand for a missing value, which stay as they are.
        known: Columns that were written so in training, where 3.113 is three thousand without a comma in any row.
    """
    found = []
    for name in frame.columns:
        values = frame[name].mask(_is_one_of(frame[name], missing)).dropna()
        fits = values.str.fullmatch(COMMA_NUMBER)
        has_comma = values[fits].str.contains(",", regex=False).any()
        # 3.5 beside 3.113, and no comma: now it is written with points
        has_points = not has_comma and values[~fits].str.fullmatch(r"\s*[+-]?\d*\.\d+\s*").any()
        if (name in known and not has_points) or (has_comma and fits.mean() >= NUMBERS_FROM):
            found.append(name)
            numbers = values[fits].str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
            frame[name] = numbers.reindex(frame.index).fillna(frame[name])
    frame.attrs["decimal_comma"] = found
    return frame


def to_numbers(values: pd.Series[Any]) -> Array:
    """Numbers, NaN where a value is missing or none."""
    import pandas as pd

    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def to_texts(values: pd.Series[Any]) -> pd.Series[Any]:
    """Each value as a category's name, missing ones as None: 3, 3.0 and "3" are one, and so are True and "true"."""
    import pandas as pd

    codes, found = pd.factorize(values)
    names = np.array([*map(_text, found), None], dtype=object)  # None has code -1, that of a missing value
    return pd.Series(names[codes], index=values.index, dtype=object)


def _text(value: Any) -> str:
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.capitalize()
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", text)


def date_format(known: pd.Series[Any]) -> str | None:
    """The first format that every value is written in, or None.

    Args:
        known: Texts, none of them missing.
    """
    import pandas as pd

    if not re.match(r"\d{1,4}[-./]\d", str(known.iloc[0])):
        return None

    def fits(texts: pd.Series[Any], written: str) -> bool:
        return bool(pd.to_datetime(texts, format=written, errors="coerce", utc=True).notna().all())

    return next((f for f in DATE_FORMATS if fits(known.head(100), f) and fits(known, f)), None)


def seconds(values: pd.Series[Any], written: str) -> Array:
    """Seconds since 1970, NaN where a value is missing or no date; a time without a zone is taken as UTC.

    Args:
        values: Dates, or texts.
        written: The format of texts.
    """
    import pandas as pd

    is_date = pd.api.types.is_datetime64_any_dtype(values.dtype)
    dates = pd.to_datetime(values, utc=True, errors="coerce", format=None if is_date else written)
    since: pd.Series[Any] = dates - pd.Timestamp(0, tz="UTC")
    return np.asarray(since.dt.total_seconds(), dtype=np.float64)


def phases(times: Array) -> dict[str, Array]:
    """Where in its month, weekday and hour cycle each time is, in radians; NaN where there is none.

    Args:
        times: Seconds since 1970.
    """
    import pandas as pd

    dates = pd.DatetimeIndex(pd.to_datetime(times, unit="s"))
    parts = {"month": dates.month - 1, "weekday": dates.day_of_week, "hour": dates.hour}
    return {cycle: 2 * np.pi * np.asarray(part, dtype=np.float64) / CYCLES[cycle] for cycle, part in parts.items()}


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
    words = r"(?!(?:true|false|null|nan|inf)$)[a-z_]\w*"
    if all(re.fullmatch(words, name, re.ASCII | re.IGNORECASE) for name in listed):
        return f"{key}=[{','.join(listed)}]"
    quoted = [re.sub(r'(\\*)"', r'\1\1\\"', name) for name in listed]
    override = f"{key}=[" + ",".join('"' + re.sub(r"(\\+)$", r"\1\1", name) + '"' for name in quoted) + "]"
    if override.isprintable():
        return shlex.quote(override)
    escaped = override.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in escaped) + "'"
