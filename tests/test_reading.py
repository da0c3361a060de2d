"""What is read from a file is what pandas reads from the same table written plainly, or it is asked for."""

from __future__ import annotations

import csv
import logging
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunelab.data.arrays import Arrays, _fit_spec
from tunelab.data.columns import encode
from tunelab.data.files import read_csv
from tunelab.data.reading import ReadingRules, decide
from tunelab.data.recorded import read_numbers, read_texts
from tunelab.data.table import CsvData
from tunelab.errors import ConfigError
from tunelab.spec import Column, DataSpec

MISSING = ("", "?", "NA", "N/A", "-", "missing", "unknown", "None", "n/a", "#N/A", "-999")
MARKS = [("", "."), (",", "."), (" ", "."), ("'", "."), ("", ","), (".", ","), ("\u00a0", ","), ("\u2009", ",")]
AFFIXES = [("", ""), ("", ""), ("$", ""), ("", " €"), ("", "%"), ("", " kg"), ("CHF ", ""), ("", " years")]
DATES = (
    "%Y-%m-%d",
    "%d.%m.%Y",
    "%m/%d/%Y",
    "%d-%m-%Y",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %I:%M:%S %p",
    "%d %b %Y",
    "%Y.%m.%d",
)


class Written:
    """A table of numbers, dates and categories, once as pandas takes it and once as people write it."""

    def __init__(self, seed: int, rows: int = 80) -> None:
        self.draw, self.rows = random.Random(seed), rows
        self.plain: dict[str, list[Any]] = {}
        self.fancy: dict[str, list[str]] = {}
        self.truth: dict[str, Any] = {}
        for number in range(3):
            self.numbers(f"n{number}")
        self.dates("when")
        self.categories("kind")

    def numbers(self, name: str) -> None:
        draw, decimals = self.draw, self.draw.randrange(4)
        size = draw.choice([3, 90, 900, 9e4, 9e6])
        values = [round(draw.uniform(-size if draw.random() < 0.5 else 1, size), decimals) for _ in range(self.rows)]
        thousands, decimal = draw.choice(MARKS)
        before, after = draw.choice(AFFIXES)
        negative = draw.choice(["-", "\u2212", "("])
        texts = []
        for value in values:
            digits = f"{abs(value):,.{decimals}f}".translate(str.maketrans({",": thousands, ".": decimal}))
            text = f"{before}{digits}{after}"
            if value < 0:
                text = f"({text})" if negative == "(" else f"{negative}{text}"
            texts.append(text)
        self.truth[name] = "comma" if decimal == "," else "point"
        self.add(name, values, texts)

    def dates(self, name: str) -> None:
        written = self.draw.choice(DATES)
        last = self.draw.choice([12, 28])
        days = [
            pd.Timestamp(self.draw.randrange(1990, 2030), self.draw.randrange(1, 13), self.draw.randrange(1, last + 1))
            + pd.Timedelta(hours=self.draw.randrange(24) if "%M" in written else 0)
            for _ in range(self.rows)
        ]
        self.truth[name] = written.find("%d") < written.find("%m") if "%m" in written else None
        self.add(name, [day.isoformat() for day in days], [day.strftime(written) for day in days])

    def categories(self, name: str) -> None:
        words = ["Rome", "Oslo", "Paris, France", 'the "Hague"', "Bern; CH", "NA", "None", "x\ty"]
        values = [self.draw.choice(words) for _ in range(self.rows)]
        self.plain[name], self.fancy[name] = list(values), values

    def add(self, name: str, plain: list[Any], fancy: list[str]) -> None:
        """A column with some of its values missing, in one word or as an empty cell."""
        numbers = [value for value in plain if isinstance(value, float)]
        apart = bool(numbers) and min(numbers) > -400 and max(numbers) - min(numbers) < 400  # -999 from its column
        word = self.draw.choice([word for word in MISSING if word != "-999" or apart])
        share = self.draw.choice([0.0, 0.3])
        for row in range(2, self.rows):
            if self.draw.random() < share:
                plain[row], fancy[row] = None, self.draw.choice([word, word, ""])
        self.plain[name], self.fancy[name] = plain, fancy

    def to_csv(self, path: Path, target: list[str] | None = None) -> Path:
        columns = self.fancy | ({"y": target} if target else {})
        with path.open("w", newline="", encoding="utf-8") as file:
            if self.draw.random() < 0.2:
                file.write("A title without a mark\n")
            writer = csv.writer(file, delimiter=self.draw.choice(",;\t|"))
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return path

    def until_answered(self, read: Callable[[ReadingRules], Any]) -> Any:
        """What is read once every question has an answer: one answer may lead to another question."""
        rules = ReadingRules()
        for _ in range(5):
            try:
                return read(rules)
            except ConfigError as question:
                rules = self.answered(question, rules)
        raise AssertionError(rules)

    def answered(self, question: ConfigError, rules: ReadingRules) -> ReadingRules:
        """The rules with what a question asks for; fails if the values did tell."""
        decimal, day_first = dict(rules.decimal or {}), dict(rules.day_first or {})
        for sentence in question.mistakes:
            asked = re.match(r"`data\.(decimal|day_first)` must say whether .* in (\w+) is", sentence)
            assert asked, sentence
            key, name = asked.groups()
            known = [text for text in self.fancy[name] if re.search(r"\d", text) and text != "-999"]
            if key == "decimal":
                assert all(len(re.findall(r"[.,]", t)) <= 1 for t in known), known
                assert all(re.search(r"(?<!\d)[1-9]\d{0,2}[.,]\d{3}(?!\d)", t) for t in known if re.search("[.,]", t))
                decimal[name] = self.truth[name]
            else:
                assert all(max(int(n) for n in re.findall(r"\d+", text)[:2]) <= 12 for text in known)
                day_first[name] = self.truth[name]
        return replace(rules, decimal=decimal, day_first=day_first)


@pytest.mark.parametrize("seed", range(60))
def test_a_table_as_people_write_it_is_what_pandas_reads_of_it_written_plainly(tmp_path: Path, seed: int) -> None:
    written = Written(seed)
    pd.DataFrame(written.plain).to_csv(tmp_path / "plain.csv", index=False)
    words = {"kind": str}
    plain = pd.read_csv(
        tmp_path / "plain.csv", parse_dates=["when"], dtype=words, keep_default_na=False, na_values=[""]
    )
    frame = read_csv(str(written.to_csv(tmp_path / "fancy.csv")), "data.path")
    assert list(frame.columns) == list(plain.columns)
    columns = written.until_answered(lambda rules: decide(frame, rules))
    for name in ("n0", "n1", "n2"):
        numbers, missing = read_numbers(frame[name], columns[name], ())
        np.testing.assert_array_equal(numbers, plain[name].to_numpy(dtype=float), err_msg=name)
        assert missing.tolist() == plain[name].isna().tolist()
    times, _ = read_numbers(frame["when"], columns["when"], ())
    expected = (plain["when"].dt.tz_localize("UTC") - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    np.testing.assert_array_equal(times, expected)
    assert read_texts(frame["kind"], columns["kind"], ()).tolist() == plain["kind"].str.strip().tolist()


@pytest.mark.parametrize("seed", range(12))
def test_what_is_trained_on_scored_on_said_and_recorded_is_the_same_rows(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    written, draw = Written(seed, rows=120), random.Random(seed)
    is_regression = seed % 2 == 0
    if is_regression:
        truth = [draw.choice([None, *[round(draw.uniform(-5e3, 5e3), 2)] * 9]) for _ in range(120)]
        target = [draw.choice(["", "?", "NA"]) if value is None else f"${value:,.2f}" for value in truth]
    else:
        truth = [draw.choice([None, *"abc" * 3]) for _ in range(120)]
        target = ["" if value is None else value for value in truth]
    path = written.to_csv(tmp_path / "fancy.csv", target)
    kind = "Regression" if is_regression else "Classification"
    options: dict[str, Any] = {"val_fraction": 0.2, "test_fraction": 0.2, "split_seed": seed, "batch_size": "full"}

    def module(rules: ReadingRules) -> CsvData:
        caplog.clear()
        keys = {"decimal": rules.decimal, "day_first": rules.day_first}
        data = CsvData(str(path), "y", task=f"tunelab.tasks.{kind}Task", shuffle=True, seed=0, **keys, **options)
        data.setup("fit")
        return data

    data = written.until_answered(module)
    spec = data.spec
    assert spec is not None
    known = [value for value in truth if value is not None]
    left_out = sum(
        int(match[1]) for message in caplog.messages if (match := re.search(r": (\d+) rows without a y", message))
    )
    counts = {part: len(targets) for part, (_, targets) in data.parts.items()}
    assert sum(counts.values()) == len(known) == 120 - left_out
    said = next(message for message in caplog.messages if ": rows " in message)
    assert said.startswith(f"fancy.csv: rows {counts['train']} train, {counts['val']} val, {counts['test']} test;")

    targets = np.concatenate([targets.numpy() for _, targets in data.parts.values()])
    if is_regression:
        found = targets.astype(np.float64) * spec.target_std + spec.target_mean
        np.testing.assert_allclose(np.sort(found), np.sort(np.array(known, dtype=float)), rtol=1e-4, atol=1e-2)
    else:
        assert sorted(np.array(spec.class_names)[targets]) == sorted(known)
        assert spec.class_counts == tuple(np.bincount(data.parts["train"][1], minlength=3))
    # the rows as they stand in the file, given to predict, are the inputs that were learned from and scored
    raw = read_csv(str(path), "input")[[value is not None for value in truth]].reset_index(drop=True)
    again = {row.tobytes() for row in encode(raw, spec)}
    parts = [row.tobytes() for inputs, _ in data.parts.values() for row in inputs.numpy()]
    assert len(parts) == len(raw)
    assert set(parts) == again


# ---- columns that are asked about, and what is said of the others


def column_of(values: list[Any], **rules: Any) -> Any:
    return decide(pd.DataFrame({"x": values}), ReadingRules(**rules))["x"]


NUMBERS = [f"{n / 7:.2f}" for n in range(1, 60)]


@pytest.mark.parametrize(
    "word", ["?", "-", "--", "missing", "unknown", "n/a", "NA", "None", "nan", "k.A.", "below limit"]
)
def test_a_word_that_comes_again_among_numbers_means_missing(word: str) -> None:
    column = column_of([*NUMBERS, word, word])
    assert column.kind == "number"
    numbers, missing = read_numbers(pd.Series([word, "1.5"]), column, ())
    assert (missing.tolist(), numbers[1]) == ([True, False], 1.5)


def test_minus_999_far_from_all_others_means_missing_unless_it_is_said_to_be_a_number() -> None:
    for values in ([*NUMBERS, "-999", "-999"], [*map(float, NUMBERS), -999.0, -999.0]):
        assert column_of(values).placeholders == ("-999",)
        assert column_of(values, not_missing=("-999",)).placeholders == ()
    assert column_of([*NUMBERS, "-999"]).placeholders == ()  # once only
    assert column_of([str(-1000 + 7 * n) for n in range(60)] + ["-999"] * 2).placeholders == ()
    assert column_of([*NUMBERS, "9999", "9999"]).note == (
        "number (9999 stands apart: if it means a missing value, 'data.missing=[\"9999\"]')"
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            ["1,234", "5,678"],
            "`data.decimal` must say whether 1,234 in x is 1234 or 1.234: no value of the column tells. ",
        ),
        (
            ["02/03/2024", "04/05/2024"],
            "`data.day_first` must say whether 02/03/2024 in x is 2024-03-02 or 2024-02-03: ",
        ),
        (
            [*NUMBERS, "low", "low", "high", "high"],
            "`data.missing` must say what low, high in x means, in 4 of 63 rows ",
        ),
        (
            ["5 kg", "300 g"] * 5,
            "`data.path` must have one unit in x, got 300 g and 5 kg. Write one unit into the file, ",
        ),
        (
            [*NUMBERS, *(f"{n / 7:.2f}".replace(".", ",") for n in range(1, 60))],
            "`data.path` must have numbers of one ",
        ),
        (["5%", "0.5"] * 5, "`data.path` must have one unit in x, got 0.5 and 5%. "),
        (
            ["31/12/2024", "2024-12-30"] * 9,
            "`data.path` must have dates of one format in x, got 31/12/2024 in 9 of 18 ",
        ),
    ],
)
def test_what_two_readings_fit_is_asked_for(values: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        column_of(values)
    assert str(caught.value).startswith(sentence)


def test_all_that_a_file_leaves_open_is_asked_at_once() -> None:
    frame = pd.DataFrame({"a": ["1,234", "5,678"], "b": ["02/03/2024", "04/05/2024"], "c": ["1.234", "5.678"]})
    with pytest.raises(ConfigError) as caught:
        decide(frame, ReadingRules())
    assert len(caught.value.mistakes) == 2
    with pytest.raises(ConfigError) as caught:  # a decimal comma elsewhere leaves 1.234 open, too
        decide(frame.assign(a=["1,5", "2,5"]), ReadingRules(day_first=True))
    assert str(caught.value).startswith("`data.decimal` must say whether 1.234 in c is 1.234 or 1234: ")
    found = decide(frame, ReadingRules(decimal={"a": "comma", "c": "point"}, day_first={"b": True}))
    assert (found["a"].decimal_comma, found["b"].date_format, found["c"].note) == (True, "%d/%m/%Y", "number")
    assert not decide(frame, ReadingRules(decimal={"a": "point"}, day_first=False))["a"].decimal_comma


@pytest.mark.parametrize(
    ("values", "kind", "note"),
    [
        (["01", "1", "001"] * 3, "category", "01 and 1 are two codes, for one begins with 0"),
        (["01", "02", "11"] * 3, "number", "number (some begin with 0: codes belong in data.categorical)"),
        (["Yes", "yes", "no"] * 3, "category", "Yes and yes are two: data.ignore_case=true makes them one"),
        (["Rome", "NA", "None"] * 3, "category", "NA, None taken as a value: data.missing=[NA,None] makes it missing"),
        (["$1,234.50", "$2.00"], "number", "number in $ with a comma between thousands"),
        (["12A", "3B", "4C"] * 3, "category", ""),
        (["1", "2", "x", "y"] * 3, "category", ""),
    ],
)
def test_what_is_done_with_a_column_is_said(values: list[str], kind: str, note: str) -> None:
    column = column_of(values)
    assert (column.kind, column.note) == (kind, note)


def test_a_number_without_its_percent_sign_is_refused_where_training_had_it() -> None:
    column = column_of(["57.5%", "16.1%", "9%"])
    for values in (pd.Series([0.5, 0.0]), pd.Series(["0.5", "0"])):
        numbers, _ = read_numbers(values, column, ())
        assert np.isnan(numbers).tolist() == [True, False]


# ---- targets and files


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., CsvData]:
    def make(text: str, task: str = "Classification", **options: Any) -> CsvData:
        (tmp_path / "my.csv").write_text(text, encoding="utf-8")
        split = {"val_fraction": 0.0, "test_fraction": 0.0, "split_seed": 0}
        batches = {"batch_size": "full", "shuffle": False, "seed": 0}
        data = CsvData(str(tmp_path / "my.csv"), "y", task=f"tunelab.tasks.{task}Task", **split, **batches, **options)
        data.setup("fit")
        return data

    return make


def rows_of(targets: list[str], first: str = "x,y\n") -> str:
    return first + "".join(f"{row / 4},{target}\n" for row, target in enumerate(targets))


@pytest.mark.parametrize("word", ["None", "NA", "null", "NaN", "n/a"])
def test_a_class_that_may_mean_missing_is_asked_about(source: Callable[..., CsvData], word: str) -> None:
    text = rows_of(["a", "b", word] * 5)
    with pytest.raises(ConfigError) as caught:
        source(text)
    assert str(caught.value).startswith(
        f"`data.missing` must say whether {word} in y is a class or a missing value, in 5 of 15 rows. If it is a "
    )
    kept, gone = source(text, not_missing=[word]), source(text, missing=[word])
    assert set(kept.spec.class_names) == {"a", "b", word}
    assert (gone.spec.class_names, len(gone.parts["train"][1])) == (("a", "b"), 10)


def test_classes_that_differ_in_capital_letters_alone_are_asked_about(source: Callable[..., CsvData]) -> None:
    text = rows_of(["Yes", "Yes", "yes", "no"] * 3)
    with pytest.raises(ConfigError, match=r"`data\.ignore_case` must say whether Yes and yes are one class of y\."):
        source(text)
    assert source(text, ignore_case=True).spec.class_counts == (9, 3)
    assert source(text, ignore_case=True).spec.class_names == ("Yes", "no")
    assert source(text, ignore_case=False).spec.class_names == ("Yes", "no", "yes")


def test_categories_of_which_case_is_ignored_are_one_in_later_rows_too(source: Callable[..., CsvData]) -> None:
    text = "x,y\n" + "Yes,a\nyes,b\nYES,a\nno,b\n" * 5
    spec = source(text, ignore_case=True).spec
    assert spec.feature_names == ("x=YES", "x=no")
    assert encode(pd.DataFrame({"x": ["yEs", "NO", "maybe"]}), spec).tolist() == [[1, 0], [0, 1], [0, 0]]


def test_more_whole_numbers_than_a_hundred_are_classes_where_they_count_them_or_it_is_said(
    source: Callable[..., CsvData],
) -> None:
    counting = [str(row % 120) for row in range(720)]
    assert len(source(rows_of(counting)).spec.class_names) == 120
    gaps = [str(7 * (row % 120)) for row in range(720)]
    with pytest.raises(ConfigError, match=r"if they are classes, data\.categorical=\[y\]\."):
        source(rows_of(gaps))
    assert len(source(rows_of(gaps), categorical=["y"]).spec.class_names) == 120


def test_a_target_in_another_notation_is_a_number_in_its_own_unit(source: Callable[..., CsvData]) -> None:
    targets = [f'"${1000 * row + 0.5:,.2f}"' for row in range(1, 21)]
    spec = source(rows_of([*targets, "?"]), task="Regression").spec
    assert (spec.target.unit, spec.target.thousands, spec.target_mean) == ("$", ",", 10500.5)


@pytest.mark.parametrize(
    "above",
    ["sep=;\n", '"sep=;"\n', "A title\n", "Report 2024\nmade by hand\n\n", "# note; of two\n", "\n\n", "\ufeffsep=;\n"],
)
def test_lines_above_the_header_are_passed_over_and_said(
    source: Callable[..., CsvData], above: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    text = rows_of(["a", "b"] * 5).replace(",", ";").replace("x;y", "x;y;z").replace("\n", ";1\n").replace("z;1", "z")
    data = source(above + text)
    assert (data.spec.raw_names, len(data.parts["train"][1])) == (("x",), 10)
    said = [message for message in caplog.messages if "passed over" in message]
    assert bool(said) == bool(above.strip())
    assert all(line in said[0] for line in above.strip("\n\ufeff").split("\n") if line and "sep" not in line)


# ---- numbers of any size


@pytest.mark.parametrize("far", ["1e155", "1e200", "3.6e306", "1.7e308", "-1e200"])
def test_a_number_beside_which_the_others_are_one_is_refused(source: Callable[..., CsvData], far: str) -> None:
    text = rows_of(["a", "b"] * 20).replace("\n0.5,", f"\n{far},")
    with pytest.raises(ConfigError) as caught:
        source(text)
    assert str(caught.value).startswith(f"`data.path` must have numbers of one size in x, got {far}, beside which all ")
    assert source(text, missing=[far]).spec.columns[0].placeholders == ()


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e155, 1e300])
def test_numbers_are_standardised_whatever_their_size(source: Callable[..., CsvData], size: float) -> None:
    values = np.random.default_rng(0).normal(size=40)
    text = "x,y\n" + "".join(f"{float(value * size)!r},{'ab'[row % 2]}\n" for row, value in enumerate(values))
    inputs = source(text).parts["train"][0][:, 0].numpy()
    np.testing.assert_allclose(inputs, (values - values.mean()) / values.std(), rtol=1e-5)


@pytest.mark.parametrize("far", [1e39, -1e200, 1.7e308, "1e39"])
def test_a_number_that_the_model_cannot_compute_with_is_refused(source: Callable[..., CsvData], far: Any) -> None:
    spec = source(rows_of(["a", "b"] * 20)).spec
    with pytest.raises(
        ConfigError, match=r"`input` must have numbers of the size that they have in training in x, got"
    ):
        encode(pd.DataFrame({"x": [1.0, far]}), spec)


def test_rows_and_features_without_a_file_are_refused_when_float32_cannot_hold_them() -> None:
    inputs = np.random.default_rng(0).normal(size=(40, 2))
    inputs[7, 1] = 1e200
    with pytest.raises(ConfigError, match=r"`data\.path` must have numbers of one size in b, got 1e\+200, beside"):
        _fit_spec(Arrays(inputs, np.arange(40) % 2, ("a", "b"), ("no", "yes"), "table"), np.arange(40))
    inputs[7, 1] = 0.0
    spec = _fit_spec(Arrays(inputs, np.arange(40) % 2, ("a", "b"), ("no", "yes"), "table"), np.arange(40))
    with pytest.raises(ConfigError, match=r"`input` must have numbers of the size .* in b, got 1e\+39 in row 1\."):
        encode(pd.DataFrame({"a": [0.0], "b": [1e39]}), spec)


def test_a_model_from_before_readings_were_recorded_reads_its_rows_as_it_did() -> None:
    columns = (
        Column("price", "number", "number", fill=2.0, decimal_comma=True),
        Column("city", "category", "2 categories", has_missing=True, categories=("Oslo", "Rome")),
    )
    names = tuple(feature for column in columns for feature in column.features)
    spec = DataSpec("table", (4,), 1, names, (), (0.0,) * 4, (1.0,) * 4, columns=columns, missing=("k.A.",))
    rows = pd.DataFrame({"price": ["3.113,5", "3.113", "NA", "k.A."], "city": ["Rome", "NA", "k.A.", "None"]})
    expected = [[3113.5, 0, 1, 0], [3113, 0, 0, 1], [2, 0, 0, 1], [2, 0, 0, 1]]
    assert encode(rows, spec).tolist() == expected
