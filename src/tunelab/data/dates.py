"""Dates as people write them: which format a column of texts is in, and where in its cycles each date is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunelab.data.values import Array

if TYPE_CHECKING:
    import pandas as pd

CYCLES = {"month": 12, "weekday": 7, "hour": 24}
"""What of a date comes round again, and after how many."""

ISO = "ISO8601"
ENOUGH = 100
"""Texts that a format is tried on before it is tried on all."""

_ZONE = r"(?P<zone> ?(?:Z|[+-]\d{2}:?\d{2}))?"
_TIME = rf"(?P<hour>\d{{1,2}}):\d{{2}}(?P<second>:\d{{2}})?(?P<fraction>\.\d+)?(?P<half> ?[AaPp]\.?[Mm]\.?)?{_ZONE}"
_WEEKDAY = r"(?P<weekday>(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,? )?"
_DAY = rf"{_WEEKDAY}(?P<date>[^:]*?\d[^:]*?)"
_TEXT = re.compile(rf"{_DAY}(?:(?P<gap>,? |T){_TIME})?")
_ONLY_TIME = re.compile(_TIME)
_ORDERS = (
    (r"\d{4}([./ -])\d{1,2}\1\d{1,2}", ("%Y{0}%m{0}%d", "%Y{0}%d{0}%m")),
    (r"\d{1,2}([./ -])\d{1,2}\1\d{4}", ("%d{0}%m{0}%Y", "%m{0}%d{0}%Y")),
    (r"\d{1,2}([/-])\d{1,2}\1\d{2}", ("%d{0}%m{0}%y", "%m{0}%d{0}%y", "%y{0}%m{0}%d")),
    (r"\d{2}([. ])\d{2}\1\d{2}", ("%d{0}%m{0}%y", "%m{0}%d{0}%y", "%y{0}%m{0}%d")),
    (r"\d{1,2}([./ -]?)[A-Za-z]{3,9}\1\d{4}", ("%d{0}%b{0}%Y", "%d{0}%B{0}%Y")),
    (r"\d{1,2}([./ -])[A-Za-z]{3,9}\1\d{2}", ("%d{0}%b{0}%y", "%d{0}%B{0}%y")),
    (r"[A-Za-z]{3,9} \d{1,2}(,?) \d{4}", ("%b %d{0} %Y", "%B %d{0} %Y")),
    (r"\d{4}([./ -])[A-Za-z]{3,9}\1\d{1,2}", ("%Y{0}%b{0}%d", "%Y{0}%B{0}%d")),
    (r"[A-Za-z]{3,9}([ -])\d{4}", ("%b{0}%Y", "%B{0}%Y")),
)
"""The parts of a date, and the formats that may have them."""


@dataclass(frozen=True)
class FoundDates:
    """What a column of texts looks like, read as dates.

    Args:
        format: The one it is written in; empty if there is none.
        words: Texts that are no dates, and in how many rows each stands.
        misfits: Dates in another format, and in how many rows each stands.
        open: A text that is two dates as day or month come first, where no text tells; or an empty string.
        other: The format that it is written in as well, then.
    """

    format: str
    words: dict[str, int] = field(default_factory=dict)
    misfits: dict[str, int] = field(default_factory=dict)
    open: str = ""
    other: str = ""


def find_format(counts: Mapping[str, int], day_first: bool | None) -> FoundDates:
    """The format of a column of texts.

    Args:
        counts: Its texts, without those that are known to be missing, and in how many rows each stands.
        day_first: What decides where the texts leave open whether 02/03/2024 is in February or in March.
    """
    import pandas as pd

    likely = [text for text in counts if _is_likely(text)]
    if not likely or sum(counts[text] for text in likely) < 0.5 * sum(counts.values()):
        return FoundDates("")
    texts = pd.Series(likely, dtype=object)
    weights = np.array([counts[text] for text in likely])
    formats = list(dict.fromkeys(f for text in likely[:ENOUGH] for f in _formats(text)))
    read = {written: fits for written in [ISO, *formats] if (fits := _read(texts, written, weights)) is not None}
    if not read:
        return FoundDates("")
    best = max(fits[1] for fits in read.values())
    chosen = [written for written, fits in read.items() if fits[1] == best]
    if ISO in chosen:
        chosen = [ISO]
    elif any(written.startswith("%Y") for written in chosen):
        chosen = chosen[:1]
    different = [w for w in chosen if not read[w][0].equals(read[chosen[0]][0])]
    first, other, doubtful = chosen[0], "", ""
    if different and day_first is not None:
        first = next((w for w in chosen if re.sub("^%[aA],? ", "", w).startswith("%d") == day_first), chosen[0])
    elif different:
        other = different[0]
        doubtful = texts[(read[first][0] != read[other][0]).to_numpy()].iloc[0]
    misfits = {text: counts[text] for text in texts[read[first][0].isna().to_numpy()]}
    dates = set(likely)
    words = {text: rows for text, rows in counts.items() if text not in dates}
    return FoundDates(first, words, misfits, doubtful, other)


def _read(texts: pd.Series[Any], written: str, weights: NDArray[np.int64]) -> tuple[pd.Series[Any], float] | None:
    """The dates of the texts and in how many rows they stand; None where too few are written so."""
    if parse(texts.head(ENOUGH), written).isna().mean() > 0.5:
        return None
    dates = parse(texts, written)
    return dates, float(weights[dates.notna().to_numpy()].sum())


def _is_likely(text: str) -> bool:
    found = _TEXT.fullmatch(text)
    date = found["date"].strip() if found else ""
    if any(re.fullmatch(order, date) for order, _ in _ORDERS) or _ONLY_TIME.fullmatch(text):
        return True
    return re.match(r"\d{4}-\d{2}(-\d{2}|$)", text) is not None


def _formats(text: str) -> list[str]:
    """The formats that a text may be written in."""
    if only := _ONLY_TIME.fullmatch(text):
        return [_time_format(only)]
    found = _TEXT.fullmatch(text)
    if found is None:
        return []
    weekday = ""
    if found["weekday"]:
        name = found["weekday"].rstrip(", ")
        weekday = found["weekday"].replace(name, "%a" if len(name) == 3 else "%A")
    time = found["gap"] + _time_format(found) if found["gap"] else ""
    written = []
    for order, formats in _ORDERS:
        if matched := re.fullmatch(order, found["date"].strip()):
            written += [weekday + one.format(matched[1]) + time for one in formats]
    return written


def _time_format(found: re.Match[str]) -> str:
    seconds = (":%S" if found["second"] else "") + (".%f" if found["fraction"] else "")
    half = found["half"] or ""
    zone = found["zone"] or ""
    spaced = " %p" if half.startswith(" ") else "%p"
    return (f"%I:%M{seconds}{spaced}" if half else f"%H:%M{seconds}") + (
        (" %z" if zone.startswith(" ") else "%z") if zone else ""
    )


def parse(texts: pd.Series[Any], written: str) -> pd.Series[Any]:
    """The dates of texts, in UTC; NaT where a text is none in this format."""
    import pandas as pd

    if "%p" in written:
        texts = texts.str.replace(r"([AaPp])\.?([Mm])\.?", r"\1\2", regex=True)
    return pd.to_datetime(texts, format=written, errors="coerce", utc=True)


def seconds(values: pd.Series[Any], written: str) -> Array:
    """Seconds since 1970, NaN where a value is missing or no date; a time without a zone is taken as UTC.

    Args:
        values: Dates, or texts.
        written: The format of texts.
    """
    import pandas as pd

    is_date = pd.api.types.is_datetime64_any_dtype(values.dtype)
    dates = pd.to_datetime(values, utc=True, errors="coerce") if is_date else parse(values, written)
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
