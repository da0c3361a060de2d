"""Numbers as people write them: each notation is read as what it means, and what may be two numbers is asked for."""

from __future__ import annotations

import math
import random

import pytest

from tunelab.data.numbers import Notation, find_notation

POINT, COMMA = Notation(), Notation(decimal_comma=True)


@pytest.mark.parametrize(
    ("text", "notation", "value"),
    [
        ("1234.5", POINT, 1234.5),
        ("1,234,567.5", POINT, 1234567.5),
        ("6,338.43", POINT, 6338.43),
        ("1,234", Notation(thousands=","), 1234),
        ("12,34,567.25", POINT, 1234567.25),  # as in India
        ("1 234,5", COMMA, 1234.5),
        ("1\u00a0234,5", COMMA, 1234.5),
        ("1\u202f234\u202f567", POINT, 1234567),
        ("1'234'567.5", POINT, 1234567.5),
        ("1’234.5", POINT, 1234.5),
        ("3.113,15", COMMA, 3113.15),
        ("3.113", COMMA, 3113),
        ("0,126", COMMA, 0.126),
        (",5", COMMA, 0.5),
        (".5", POINT, 0.5),
        ("$6,338.43", Notation(unit="$"), 6338.43),
        ("US$ 12.5", Notation(unit="US$"), 12.5),
        ("-$5.00", Notation(unit="$"), -5),
        ("$-5.00", Notation(unit="$"), -5),
        ("12,50 €", Notation(decimal_comma=True, unit="€"), 12.5),
        ("EUR 12.50", Notation(unit="EUR"), 12.5),
        ("57.5%", Notation(unit="%"), 57.5),
        ("57.5 %", Notation(unit="%"), 57.5),
        ("70 kg", Notation(unit="kg"), 70),
        ("70kg", Notation(unit="kg"), 70),
        ("85 m2", Notation(unit="m2"), 85),
        ("3 years", Notation(unit="year"), 3),
        ("1 year", Notation(unit="year"), 1),
        ("(1,234)", Notation(thousands=","), -1234),
        ("($1,234.50)", Notation(unit="$"), -1234.5),
        ("$(1,234.50)", Notation(unit="$"), -1234.5),
        ("(5)%", Notation(unit="%"), -5),
        ("\u22125", POINT, -5),
        ("\u22125,5", COMMA, -5.5),
        ("+7", POINT, 7),
        ("1.5e3", POINT, 1500),
        ("1,5E-3", COMMA, 0.0015),
        ("0", Notation(unit="%"), 0),
        ("12", Notation(unit="$"), 12),
    ],
)
def test_a_text_is_the_number_that_it_is_in_the_notation_of_its_column(
    text: str, notation: Notation, value: float
) -> None:
    assert notation.value(text) == value


@pytest.mark.parametrize(
    ("text", "notation"),
    [
        ("1,234", POINT),  # a thousand, or one and a bit
        ("12,34", POINT),
        ("0,126", POINT),
        ("1,2345.5", POINT),
        ("31.13,15", COMMA),
        ("0.126", COMMA),
        ("0.5", Notation(unit="%")),  # may be 50 %
        ("12", Notation(unit="kg")),
        ("12 g", Notation(unit="kg")),
        ("12", Notation(decimal_comma=True, unit="%")),
        ("--5", POINT),
        ("-(5)", POINT),
        ("1 2", POINT),
        ("10+", POINT),
        ("<1", POINT),
        ("1/2", POINT),
        ("12:30", POINT),
        ("old", POINT),
        ("", POINT),
    ],
)
def test_a_text_that_is_no_number_in_the_notation_is_none(text: str, notation: Notation) -> None:
    assert math.isnan(notation.value(text))


def in_marks(number: float, decimals: int, thousands: str, decimal: str) -> str:
    """A number with marks between thousands and before its decimals."""
    return f"{number:,.{decimals}f}".replace(",", "T").replace(".", decimal).replace("T", thousands)


@pytest.mark.parametrize("thousands", [",", ".", " ", "\u00a0", "\u2009", "'", ""])
@pytest.mark.parametrize("decimals", [0, 1, 2, 3])
def test_every_column_is_read_as_what_was_written_or_asked_for(thousands: str, decimals: int) -> None:
    draw = random.Random(f"{thousands}{decimals}")
    for decimal in {",", "."} - {thousands}:
        for _ in range(40):
            size = draw.choice([1, 100, 1e4, 1e7])
            numbers = [round(draw.uniform(-size, size), decimals) for _ in range(draw.choice([1, 3, 30]))]
            texts = [in_marks(number, decimals, thousands, decimal) for number in numbers]
            found = find_notation(dict.fromkeys(texts, 1), None)
            if found.open or found.notation is None:
                both = [_read(text, ",") != _read(text, ".") for text in texts]
                assert found.open in texts, texts
                assert any(both), texts
                found = find_notation(dict.fromkeys(texts, 1), "comma" if decimal == "," else "point")
            expected = dict(zip(texts, numbers, strict=True))
            assert found.numbers == pytest.approx(expected), texts


def _read(text: str, decimal: str) -> float:
    """A text with one of the two marks before its decimals, by a second way."""
    other = {",": ".", ".": ","}[decimal]
    return float(text.replace(other, "").replace(decimal, ".").replace(" ", ""))


@pytest.mark.parametrize("texts", [["1,234"], ["1,234", "999"], ["12,345", "(1,234)"], ["1,234 €", "7 €"]])
def test_a_mark_that_may_be_either_is_left_open_until_someone_says(texts: list[str]) -> None:
    counts = dict.fromkeys(texts, 5)
    assert find_notation(counts, None).open == texts[0]
    point, comma = find_notation(counts, "point"), find_notation(counts, "comma")
    assert (point.open, comma.open) == ("", "")
    assert point.numbers[texts[0]] == 1000 * comma.numbers[texts[0]]


@pytest.mark.parametrize("decides", ["1,234,567", "1,234.5", "1,23", "0,123", "1234,5", "1,234e3 ".strip() + "5"])
def test_one_value_that_can_be_read_in_one_way_alone_decides_for_its_column(decides: str) -> None:
    found = find_notation({"1,234": 5, decides: 5}, None)
    assert (found.open == "") == (decides != "1,234e35")


def test_numbers_with_several_units_have_no_notation() -> None:
    found = find_notation({"5 kg": 5, "300 g": 5}, None)
    assert (found.notation, found.units) == (None, ("g", "kg"))
