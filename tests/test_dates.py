"""Dates as people write them: one format for a column, and what may be two dates is asked for."""

from __future__ import annotations

import datetime
import random

import numpy as np
import pandas as pd
import pytest

from tunelab.data.dates import find_format, seconds

DATES = ("%d{0}%m{0}%Y", "%m{0}%d{0}%Y", "%Y{0}%m{0}%d")
TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", "T%H:%M:%S", ", %H:%M")
WORDS = ("%d %b %Y", "%d-%b-%Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%a, %d %b %Y", "%A, %B %d, %Y", "%d-%b-%y")
FORMATS = [date.format(mark) + time for date in DATES for mark in "./- " for time in TIMES]
FORMATS += [date + time for date in WORDS for time in TIMES[:5]]
FORMATS += ["%d/%m/%y", "%m/%d/%y", "%d.%m.%y", "%d.%m.%y %H:%M", "%H:%M", "%H:%M:%S", "%I:%M %p", "%b %Y", "%B-%Y"]


def some_times(seed: str, rows: int = 60) -> list[datetime.datetime]:
    draw = random.Random(seed)
    start = datetime.datetime(1999, 1, 1)
    times = [start + datetime.timedelta(seconds=draw.randrange(20 * 365 * 86400)) for _ in range(rows - 2)]
    return [datetime.datetime(2011, 3, 31, 13, 5, 7), datetime.datetime(2019, 12, 30, 0, 10), *times]


@pytest.mark.parametrize("written", FORMATS)
def test_every_format_is_found_by_the_dates_alone(written: str) -> None:
    texts = [time.strftime(written) for time in some_times(written)]
    found = find_format(dict.fromkeys(texts, 1), None)
    assert (found.open, found.words) == ("", {})
    expected = [datetime.datetime.strptime(text, written).replace(tzinfo=datetime.UTC).timestamp() for text in texts]
    assert seconds(pd.Series(texts, dtype=object), found.format).tolist() == expected


def test_a_day_and_a_month_that_no_date_tells_apart_are_left_open_until_someone_says() -> None:
    for mark in "/.-":
        texts = {f"02{mark}03{mark}2024": 1, f"11{mark}12{mark}2024": 2}
        found = find_format(texts, None)
        assert found.open == f"02{mark}03{mark}2024"
        assert {found.format, found.other} == {f"%d{mark}%m{mark}%Y", f"%m{mark}%d{mark}%Y"}
        assert find_format(texts, True).format == f"%d{mark}%m{mark}%Y"
        assert find_format(texts, False).format == f"%m{mark}%d{mark}%Y"
        assert find_format(texts | {f"13{mark}01{mark}2024": 1}, False).format == f"%d{mark}%m{mark}%Y"


def test_dates_that_are_the_same_either_way_are_not_asked_about() -> None:
    assert find_format({"01/01/2024": 3, "02/02/2024": 1}, None).open == ""


def test_a_morning_is_written_with_points_as_well() -> None:
    texts = ["01/20/2022 11:00 a.m.", "08/10/2023 6:00 p.m."]
    found = find_format(dict.fromkeys(texts, 1), None)
    assert found.format == "%m/%d/%Y %I:%M %p"
    hours = np.diff(seconds(pd.Series(texts, dtype=object), found.format)) / 3600 % 24
    assert hours.tolist() == [7.0]


@pytest.mark.parametrize("text", ["1.2.3", "1.10.0", "12-a", "555-1234", "10.0.0.1", "12345", "1.5", "A 12", "ab-12"])
def test_versions_phone_numbers_and_codes_are_no_dates(text: str) -> None:
    assert find_format({text: 1}, None).format == ""
