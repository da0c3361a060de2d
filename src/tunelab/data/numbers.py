"""Numbers as people write them: which notation a column of texts is in, and what its texts are in it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

CURRENCY_SIGNS = "$¢£¤¥฿₠-₿﷼"
CURRENCY = (
    rf"(?:[A-Z]{{0,3}}[{CURRENCY_SIGNS}]"
    r"|(?:USD|EUR|GBP|CHF|INR|JPY|CNY|RMB|AUD|CAD|NZD|SEK|NOK|DKK|PLN|CZK|HUF|BRL|MXN|ZAR|TRY|RUB|KRW|SGD|HKD|ILS)"
    r"|(?:Rs|kr|Kr|Fr|zł|Kč|Ft|TL)\.?)"
)
UNIT = rf"(?:[%‰°]|[^\W\d_]|[{CURRENCY_SIGNS}])(?:[^\d()]{{0,14}}[^\d()\s])?[23]?"
_TEXT = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?P<before>{CURRENCY})\s*(?P<second>[+-]?)\s*)?"
    r"(?P<body>\d(?:[\d.,' ]*\d)?[.,]?|[.,]\d+)(?P<exponent>[eE][+-]?\d+)?"
    rf"(?:\s*(?P<after>{UNIT}))?"
)
_BRACKETED = re.compile(rf"(?P<before>(?:{CURRENCY})?)\s*\((?P<inside>[^()+-]+)\)\s*(?P<after>(?:{UNIT})?)")
_SIGNS = str.maketrans(
    dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-")
    | dict.fromkeys("\u00a0\u202f\u2009\u2007\u2008\u2002\u2003", " ")
    | dict.fromkeys("\u2019\u2018\u02bc\u00b4`", "'")
)
"""The minus signs, spaces and apostrophes that are written in place of the plain ones."""

POINT = re.compile(
    r"(?P<whole>\d+|[1-9]\d{0,2}(?:(?P<mark>[, '])\d{3})(?:(?P=mark)\d{3})*|[1-9]\d?(?:,\d{2})+,\d{3})?"
    r"(?P<fraction>\.\d*)?"
)
"""1,234.5 or 1234.5, and as in India 12,34,567.5."""
COMMA = re.compile(r"(?P<whole>\d+|[1-9]\d{0,2}(?:(?P<mark>[. '])\d{3})(?:(?P=mark)\d{3})*)?(?P<fraction>,\d*)?")
"""1.234,5 or 1234,5."""

PLAIN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)

MARKS = {",": "a comma", ".": "a point", " ": "a space", "'": "an apostrophe"}
_UNITS = (
    "% ‰ kg g mg µg lb lbs oz t km m cm mm mi ft in inch yd l ml cl gal h hr hrs hour min mins minute s sec ms day "
    "week month year yr k K M B G bn Bn mn Mn mio Mio mrd Mrd million billion thousand KB kB MB GB TB W kW MW kWh Wh "
    "Hz kHz MHz GHz °C °F °"
)
KNOWN_UNITS = frozenset(_UNITS.split())
"""Units of which several in one column are numbers of different sizes, and not letters of codes such as 12A."""

NUMBERS_FROM = 0.9
"""A column of texts of which at least this share are numbers holds numbers; the others are mistakes, and said so."""

MANY_NUMBERS = 20
"""A column with more different numbers than these is no column of codes, whatever words stand beside them."""

TRIED_UNITS = 3
"""The most frequent units, one of which nearly all numbers must have: none beside it, or a zero without it."""

PERCENT = ("%", "‰")


@dataclass(frozen=True)
class Apart:
    """A text taken apart: sign, digits with their marks, exponent, and unit."""

    sign: str
    body: str
    exponent: str
    unit: str


@dataclass(frozen=True)
class Notation:
    """How the numbers of a column are written.

    Args:
        decimal_comma: Whether the comma is before the decimals, and a point between thousands.
        thousands: The mark seen between thousands, if any.
        unit: What stands before or after each number.
    """

    decimal_comma: bool = False
    thousands: str = ""
    unit: str = ""

    def value(self, text: str) -> float:
        """The number that a text is, NaN if it is none in this notation."""
        return self.value_of(take_apart(text))

    def value_of(self, apart: Apart | None) -> float:
        """The number of a text taken apart, NaN if it is none in this notation."""
        if apart is None or not self.has_unit(apart):
            return math.nan
        found = (COMMA if self.decimal_comma else POINT).fullmatch(apart.body)
        if found is None or not self._is_plain(found):
            return math.nan
        digits = re.sub(r"\D", "", found["whole"] or "") + (found["fraction"] or "").replace(",", ".")
        return float(f"{apart.sign}{digits}{apart.exponent}")

    def has_unit(self, apart: Apart) -> bool:
        """Whether a number has the unit of the column; a zero needs none, nor does an amount of money."""
        if apart.unit == self.unit:
            return True
        return not apart.unit and (is_currency(self.unit) or not apart.body.strip("0.,"))

    def _is_plain(self, found: re.Match[str]) -> bool:
        """Whether the marks between thousands are those of the column, or can be nothing else."""
        whole = found["whole"] or ""
        mark = next((c for c in whole if not c.isdigit()), "")
        if not mark or mark in " '" or self.decimal_comma or mark == self.thousands:
            return True
        return whole.count(mark) > 1 or found["fraction"] is not None

    def in_words(self) -> str:
        """What is unusual of it, or an empty string."""
        marks = [f"{MARKS[self.thousands]} between thousands"] if self.thousands else []
        marks += ["a decimal comma"] if self.decimal_comma else []
        said = [f"in {self.unit}"] if self.unit else []
        return " ".join([*said, f"with {' and '.join(marks)}"] if marks else said)


def take_apart(text: str) -> Apart | None:
    """Sign, digits, exponent and unit of a text such as -1,234.50 kg, $(12) or −5 %; None if it has no such form."""
    text = (text if text.isascii() and "`" not in text else text.translate(_SIGNS)).strip()
    negative = ""
    if "(" in text and (bracketed := _BRACKETED.fullmatch(text)):
        text, negative = f"{bracketed['before']}{bracketed['inside'].strip()}{bracketed['after']}", "-"
    found = _TEXT.fullmatch(text)
    if found is None or (found["sign"] and found["second"]):
        return None
    units = [part for part in (found["before"], _singular(found["after"] or "")) if part]
    sign = negative or found["sign"] or found["second"] or ""
    return Apart(sign.replace("+", ""), found["body"], found["exponent"] or "", " ".join(units))


def _singular(unit: str) -> str:
    unit = unit.rstrip(".")
    return unit[:-1] if len(unit) > 3 and unit.endswith("s") else unit


def is_currency(unit: str) -> bool:
    return re.fullmatch(CURRENCY, unit) is not None


# ---- which notation a column is in


@dataclass(frozen=True)
class Found:
    """What a column of texts looks like, read as numbers.

    Args:
        notation: The one it is written in; None if its numbers are not written in one.
        words: Texts that are no numbers at all, and in how many rows each stands.
        misfits: Texts that are numbers in another notation or unit, and in how many rows each stands.
        numbers: The number of each text that is one.
        rows: In how many rows a number in the notation stands.
        open: A text that is another number as its comma or point is read, where no text tells; or an empty string.
        units: The units of the numbers where there is no single one.
    """

    notation: Notation | None
    words: dict[str, int]
    misfits: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    open: str = ""
    units: tuple[str, ...] = ()


Decimal = Literal["point", "comma"]


def find_notation(counts: Mapping[str, int], decimal: Decimal | None) -> Found:
    """The notation of a column of texts.

    Args:
        counts: Its texts, without those that are known to be missing, and in how many rows each stands.
        decimal: What decides where the texts leave open whether a mark is before decimals or between thousands.
    """
    if _are_plain(counts):
        return Found(Notation(), {}, numbers={text: float(text) for text in counts}, rows=sum(counts.values()))
    apart = {text: take_apart(text) for text in counts}
    words = {text: counts[text] for text, parts in apart.items() if parts is None}
    numeric = {text: parts for text, parts in apart.items() if parts is not None}
    if not numeric:
        return Found(None, words)
    unit, units = _unit(numeric, counts)
    if unit is None:
        return Found(None, words, {text: counts[text] for text in numeric}, units=units)
    of_unit = {text: parts for text, parts in numeric.items() if Notation(unit=unit).has_unit(parts)}
    bodies = [(parts.body, counts[text]) for text, parts in of_unit.items()]
    total = sum(counts[text] for text in numeric)
    as_point, as_comma = (_share(pattern, bodies, total) for pattern in (POINT, COMMA))
    doubtful = next((text for text, parts in of_unit.items() if _is_open(parts.body)), "")
    tied = as_point == as_comma and as_point >= NUMBERS_FROM
    is_open = bool(tied and doubtful and decimal is None)
    comma = as_comma > as_point or (tied and decimal == "comma" and bool(doubtful))
    if max(as_point, as_comma) < NUMBERS_FROM:
        return Found(None, words, {text: counts[text] for text in numeric}, units=units)
    notation = Notation(comma, _thousands(comma, of_unit.values()), unit)
    values = {text: notation.value_of(parts) for text, parts in numeric.items()}
    known = {text: value for text, value in values.items() if not math.isnan(value)}
    misfits = {text: counts[text] for text in numeric if text not in known}
    return Found(notation, words, misfits, known, sum(counts[t] for t in known), doubtful if is_open else "", units)


def _are_plain(texts: Iterable[str]) -> bool:
    """Whether texts are numbers as Python reads them, and cannot be others: most columns are."""
    if not all(map(PLAIN.fullmatch, texts)):
        return False
    with_points = [text for text in texts if "." in text]
    return not with_points or not all(COMMA.fullmatch(text.lstrip("+-")) for text in with_points)


def _unit(texts: Mapping[str, Apart], counts: Mapping[str, int]) -> tuple[str | None, tuple[str, ...]]:
    """The unit of nearly all numbers, None if there is none such; and all their units."""
    rows: dict[str, int] = {}
    for text, parts in texts.items():
        rows[parts.unit] = rows.get(parts.unit, 0) + counts[text]
    ordered = sorted(rows, key=lambda unit: (-rows[unit], unit))
    for unit in ordered[:TRIED_UNITS]:
        notation = Notation(unit=unit)
        fitting = sum(counts[text] for text, parts in texts.items() if notation.has_unit(parts))
        if fitting >= NUMBERS_FROM * sum(rows.values()):
            return unit, tuple(ordered)
    return None, tuple(ordered)


def _share(pattern: re.Pattern[str], bodies: Iterable[tuple[str, int]], total: int) -> float:
    return sum(count for body, count in bodies if pattern.fullmatch(body)) / total


def _is_open(body: str) -> bool:
    """Whether a number is another one as its only mark is read: 1,234 or 1.234."""
    return re.fullmatch(r"[1-9]\d{0,2}[.,]\d{3}", body) is not None


def _thousands(decimal_comma: bool, texts: Iterable[Apart]) -> str:
    pattern = COMMA if decimal_comma else POINT
    found = (pattern.fullmatch(parts.body) for parts in texts)
    marks = (next((c for c in match["whole"] or "" if not c.isdigit()), "") for match in found if match)
    return next((mark for mark in sorted(filter(None, marks))), "")


def other_values(text: str) -> dict[str, str]:
    """What a text such as 1,234 is with each decimal mark, for a message."""
    digits = re.sub(r"\D", " ", text).split()
    body = take_apart(text)
    mark = "," if body and "," in body.body else "."
    joined, fraction = "".join(digits), ".".join(digits)
    return {"comma": fraction if mark == "," else joined, "point": joined if mark == "," else fraction}
