"""Columns of any kind as numbers: the same as scikit-learn's, fitted on the training rows alone, refused in words."""

from __future__ import annotations

import datetime
import re
import subprocess
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from tunelab.data.columns import encode, fit_columns
from tunelab.data.reading import ReadingRules, decide
from tunelab.data.values import typed_list
from tunelab.errors import ConfigError
from tunelab.spec import Column, DataSpec


def fitted(train: pd.DataFrame, **options: Any) -> DataSpec:
    options = {"categorical": [], "max_categories": 50, "missing": [], "key": "data.path"} | options
    missing, categorical = tuple(options["missing"]), frozenset(options["categorical"])
    readings = decide(train, ReadingRules(missing=missing, categorical=categorical))
    columns, mean, std = fit_columns(train, readings, **options)
    features = tuple(feature for column in columns for feature in column.features)
    shape, statistics = (len(features),), (tuple(mean.tolist()), tuple(std.tolist()))
    return DataSpec("table", shape, 1, features, (), *statistics, columns=columns, missing=missing)


def only(values: Any, **options: Any) -> tuple[Column, np.ndarray[Any, Any]]:
    """The column that values named `x` become beside a number, and their features."""
    train = pd.DataFrame({"x": values, "beside": np.arange(len(values)) * 0.5})
    spec = fitted(train, **options)
    return spec.columns[0], encode(train, spec)[:, : len(spec.columns[0].features)]


@pytest.fixture
def people() -> pd.DataFrame:
    """240 rows with numbers, categories, booleans and gaps, as a csv is read: texts."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": rng.normal(40, 10, 240).round(1),
            "income": rng.lognormal(10, 1, 240),
            "city": rng.choice(["Paris", "Rome", "Oslo"], 240, p=[0.5, 0.3, 0.2]),
            "member": rng.choice(["true", "false"], 240),
        }
    )
    frame.loc[rng.choice(240, 30, replace=False), "age"] = np.nan
    frame.loc[rng.choice(240, 20, replace=False), "city"] = np.nan
    return frame.astype({"age": "str", "income": "str"}).where(frame.notna())


# ---- what each kind becomes


def test_numbers_are_imputed_and_standardised_as_scikit_learn_does(people: pd.DataFrame) -> None:
    train, test = people[:180], people[180:]
    spec = fitted(train)
    numbers = people[["age", "income"]].astype(float)
    imputer = SimpleImputer(strategy="median").fit(numbers[:180])
    scaler = StandardScaler().fit(imputer.transform(numbers[:180]))
    expected = scaler.transform(imputer.transform(numbers))
    found = np.vstack([encode(train, spec), encode(test, spec)])
    np.testing.assert_allclose(found[:, spec.feature_names.index("age")], expected[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[:, spec.feature_names.index("income")], expected[:, 1], rtol=1e-5, atol=1e-6)
    assert found[:, spec.feature_names.index("age is missing")].tolist() == people["age"].isna().tolist()
    assert "income is missing" not in spec.feature_names


def test_categories_are_one_hot_as_scikit_learn_makes_them(people: pd.DataFrame) -> None:
    train, test = people[:180], people[180:]
    spec = fitted(train[["city", "member"]])
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(train[["city"]].fillna("zz missing"))
    expected = encoder.transform(test[["city"]].fillna("zz missing"))
    assert spec.feature_names == (
        *("city=Oslo", "city=Paris", "city=Rome", "city is missing"),
        *("member=False", "member=True"),
    )
    np.testing.assert_array_equal(encode(test, spec)[:, :4], expected)
    np.testing.assert_array_equal(encode(test, spec)[:, 5], test["member"] == "true")


def test_only_the_most_frequent_categories_have_an_input_and_the_others_are_zero_in_all() -> None:
    column, inputs = only([*"aaaabbbccd"], max_categories=2)
    assert column.categories == ("a", "b")
    assert column.note == "4 categories, one-hot for the 2 most frequent"
    assert inputs.tolist() == [[1, 0]] * 4 + [[0, 1]] * 3 + [[0, 0]] * 3


def test_an_unseen_category_is_zero_in_all_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    spec = fitted(pd.DataFrame({"city": [*"aabb"]}))
    assert encode(pd.DataFrame({"city": ["b", "new", None]}), spec).tolist() == [[0, 1], [0, 0], [0, 0]]
    assert caplog.messages == ["city: 1 of 3 rows have a value that was rare or unseen in training, such as new"]


@pytest.mark.parametrize(
    ("values", "categories"),
    [
        ([3, 10, 3, 10], ("3", "10")),
        ([3.0, 10.0, np.nan, 3.0], ("3", "10")),
        (["3", "10", "3.0", "10"], ("3", "10")),
        (["07", "7", "07", "7"], ("07", "7")),
        ([True, False, True, True], ("False", "True")),
        (["TRUE", "false", "True", "true"], ("False", "True")),
        ([1.5, 2.5, 1.5, 2.5], ("1.5", "2.5")),
    ],
)
def test_codes_have_one_name_whatever_they_were_read_as(values: list[Any], categories: tuple[str, ...]) -> None:
    assert only(values, categorical=["x"])[0].categories == categories


@pytest.mark.parametrize(
    "values",
    [
        pd.array([True, None, False, True], dtype="boolean"),
        pd.Series([True, None, False, True], dtype=object),
        pd.Categorical(["True", None, "False", "True"]),
        ["true", None, "false", "true"],
    ],
    ids=["nullable", "objects", "categorical", "texts"],
)
def test_booleans_with_gaps_are_categories_in_every_type(values: Any) -> None:
    column, inputs = only(values)
    assert column.features == ("x=False", "x=True", "x is missing")
    assert inputs.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    "values",
    [
        [1.5, None, 4.0],
        ["1.5", None, "4"],
        [Decimal("1.5"), None, Decimal(4)],
        pd.array([1.5, None, 4.0], dtype="Float64"),
        pd.Series([1500, None, 4000], dtype="timedelta64[ms]"),
    ],
    ids=["floats", "texts", "decimals", "nullable", "durations"],
)
def test_numbers_are_numbers_in_every_type(values: Any) -> None:
    column, inputs = only(values)
    assert (column.kind, column.fill, column.features) == ("number", 2.75, ("x", "x is missing"))
    filled = np.array([1.5, 2.75, 4.0])
    np.testing.assert_allclose(inputs[:, 0], (filled - filled.mean()) / filled.std(), rtol=1e-6)
    assert column.note == "number, 1 missing -> median 2.75"


# ---- dates

DAYS = [datetime.datetime(2024, 1, 31, 6), datetime.datetime(2024, 2, 3, 18), datetime.datetime(2025, 7, 4)]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("%Y-%m-%d %H:%M:%S", "ISO8601"),
        ("%Y-%m-%dT%H:%M:%SZ", "ISO8601"),
        ("%Y-%m-%dT%H:%M:%S+00:00", "ISO8601"),
        ("%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M"),
        ("%Y/%m/%d %H:%M:%S", "ISO8601"),
        ("%m/%d/%Y %H:%M", "%m/%d/%Y %H:%M"),
        ("%d/%m/%Y %H:%M", "%d/%m/%Y %H:%M"),
        (None, "ISO8601"),
    ],
)
def test_dates_are_the_same_inputs_however_they_are_written(written: str | None, found: str) -> None:
    days = DAYS * 7
    column, inputs = only([day.strftime(written) for day in days] if written else days)
    assert (column.kind, column.date_format, column.cycles) == ("date", found, ("month", "weekday", "hour"))
    seconds = np.array([day.replace(tzinfo=datetime.UTC).timestamp() for day in days])
    np.testing.assert_allclose(inputs[:, 0], (seconds - seconds.mean()) / seconds.std(), rtol=1e-5)
    parts = [(day.month - 1, 12) for day in days], [(day.weekday(), 7) for day in days], [(d.hour, 24) for d in days]
    for place, cycle in enumerate(parts):
        angles = np.array([2 * np.pi * value / length for value, length in cycle])
        np.testing.assert_allclose(inputs[:, 1 + 2 * place], np.sin(angles), atol=1e-6)
        np.testing.assert_allclose(inputs[:, 2 + 2 * place], np.cos(angles), atol=1e-6)


def test_days_of_parquet_are_dates_and_have_no_hour() -> None:
    column, _ = only([day.date() for day in DAYS] * 2)
    assert column.features == ("x", *(f"x {cycle} {wave}" for cycle in ("month", "weekday") for wave in WAVES))
    assert column.note == "date as seconds, month, weekday"


WAVES = ("sine", "cosine")


def test_a_missing_date_is_the_median_time_and_no_place_in_any_cycle() -> None:
    column, inputs = only(["2024-01-01", None, "2024-03-05", "2024-03-05"])
    assert column.features[-1] == "x is missing"
    assert column.fill == datetime.datetime(2024, 3, 5, tzinfo=datetime.UTC).timestamp()
    assert inputs[1].tolist() == [inputs[2, 0], 0, 0, 0, 0, 1]
    assert column.note == "date as seconds, month, weekday, 1 missing -> median 2024-03-05"


@pytest.mark.parametrize("values", [["1.2.3", "1.10.0"], ["12-a", "13-b"], ["555-1234", "555-9876"]])
def test_versions_and_phone_numbers_are_no_dates(values: list[str]) -> None:
    assert only(values * 3)[0].kind == "category"


# ---- what is left out


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ([None, None, None], "dropped, every value is missing"),
        (["a", "b", "c"], "dropped, every value is different"),
        ([7, 7, 7], "dropped, every value is 7"),
        (["a", "a", "a"], "dropped, every value is a"),
        ([[1], [2], [3]], "dropped, its values are neither numbers nor texts nor dates"),
    ],
)
def test_a_column_that_says_nothing_is_dropped_and_said_so(values: list[Any], note: str) -> None:
    column, inputs = only(values)
    assert (column.kind, column.features, column.note) == ("dropped", (), note)
    assert inputs.shape == (3, 0)


def test_a_column_without_a_name_is_dropped() -> None:
    spec = fitted(pd.DataFrame({"Unnamed: 0": range(4), "a": [1, 2, 2, 5]}))
    assert spec.columns[0].note == "dropped, it has no name in the header"
    assert spec.raw_names == ("a",)


def test_a_constant_with_gaps_keeps_the_input_that_says_so() -> None:
    column, inputs = only([7, None, 7])
    assert column.features == ("x", "x is missing")
    assert inputs.tolist() == [[0, 0], [0, 1], [0, 0]]


def test_whole_numbers_that_are_all_different_are_kept_with_a_hint() -> None:
    column, _ = only(np.arange(30))
    assert column.note == "number (every value is different: if it only names the row, data.drop=[x])"


def test_texts_of_which_more_than_half_differ_are_kept_with_what_leaves_them_out() -> None:
    texts = [f"t{i}" for i in range(19)] + ["again"] * 11
    assert only(texts)[0].note == "20 categories of 30 rows, one-hot (data.drop=[x] leaves it out)"
    column, _ = only(texts, max_categories=5)
    assert column.note == "20 categories of 30 rows, one-hot for the 5 most frequent (data.drop=[x] leaves it out)"
    assert only(texts[:10] + texts[-10:])[0].note == "11 categories, one-hot"  # too few rows to tell
    assert only([f"t{i % 15}" for i in range(30)])[0].note == "15 categories, one-hot"  # half, and no more
    assert only(texts, categorical=["x"])[0].note == "20 categories, one-hot"  # asked for


@pytest.mark.parametrize(
    "name", ["id", "my id", "it's", 'the "id"', "back\\", "Preis\n(EUR)", "Größe\n'in'\tm", "1", "null", "a,b"]
)
def test_a_list_to_type_means_the_same_to_a_shell_and_hydra(name: str) -> None:
    typed = typed_list("data.drop", [name, "other"])
    assert typed.isprintable()
    received = subprocess.run(["bash", "-c", f"printf %s {typed}"], capture_output=True, check=True).stdout.decode()
    override = OverridesParser.create().parse_override(received)
    assert (override.key_or_group, override.value()) == ("data.drop", [name, "other"])


def test_a_name_with_a_line_break_is_told_on_one_line() -> None:
    train = pd.DataFrame({"Preis\n(EUR)": ["1.5", "s. dort", *["2"] * 18], "b": np.arange(20)})
    with pytest.raises(ConfigError) as caught:
        fitted(train)
    assert str(caught.value) == (
        "`data.path` must have finite numbers in 'Preis\\n(EUR)', got s. dort in row 2. Mend the file, or leave the "
        """column out by $'data.drop=["Preis\\n(EUR)"]'; for codes write $'data.categorical=["Preis\\n(EUR)"]'. If """
        "s. dort means a missing value, write 'data.missing=[\"s. dort\"]'."
    )
    with pytest.raises(ConfigError, match=re.escape(r"1 is missing: 'Preis\n(EUR)'.")):
        encode(train[["b"]], fitted(train, missing=["s. dort"]))


def test_a_table_of_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        fitted(pd.DataFrame({"id": [*"abc"], "same": 1}))
    assert str(caught.value) == (
        "`data.path` must have a column to learn from beside the target, but id is dropped, every value is different; "
        "same is dropped, every value is 1."
    )


# ---- the training rows alone


def test_other_rows_change_nothing_of_what_is_fitted_nor_of_the_rows_themselves(people: pd.DataFrame) -> None:
    train = people[:180]
    spec, alone = fitted(train), encode(people[180:190], fitted(train))
    changed = people.copy()
    changed.loc[190:, "age"] = "1e9"
    changed.loc[190:, "city"] = "Atlantis"
    assert fitted(changed[:180]) == spec
    np.testing.assert_array_equal(encode(changed[180:], spec)[:10], alone)


def test_columns_may_come_in_any_order_with_others_beside_them(people: pd.DataFrame) -> None:
    spec = fitted(people)
    other = people[people.columns[::-1]].assign(more="text")
    np.testing.assert_array_equal(encode(other, spec), encode(people, spec))


@pytest.mark.parametrize("with_gaps", [["1", "?", "3", "-999", "8"], [1, -999, 3, -999.0, 8]])
def test_a_value_is_missing_where_it_is_one_of_those_that_say_so(with_gaps: list[Any]) -> None:
    column, inputs = only(with_gaps, missing=["?", "-999"])
    expected, same = only(["1", None, "3", None, "8"])
    assert column == expected
    np.testing.assert_array_equal(inputs, same)


# ---- what is refused


def test_a_column_that_is_missing_is_refused_with_what_was_meant(people: pd.DataFrame) -> None:
    with pytest.raises(ConfigError) as caught:
        encode(people.rename(columns={"income": "incom", "age": "years"}), fitted(people))
    assert str(caught.value) == (
        "`input` must have the 4 columns that the model was trained on, but 2 are missing: age, income. "
        "It needs age, income, city, … (4)."
    )
    with pytest.raises(ConfigError, match=r"but 1 is missing: income\. Did you mean incom\?"):
        encode(people.rename(columns={"income": "incom"}), fitted(people))


@pytest.mark.parametrize("bad", ["old", "inf"])
def test_text_in_a_column_of_numbers_is_refused_with_its_row(people: pd.DataFrame, bad: str) -> None:
    spec, wrong = fitted(people), people.reset_index(drop=True)
    wrong.loc[[6, 9], "age"] = bad
    sentence = f"`input` must have finite numbers in age, got {bad} in row 7 and 1 more. Mend the file."
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        encode(wrong, spec)


def test_text_among_the_numbers_of_the_training_part_is_refused_with_what_to_type(people: pd.DataFrame) -> None:
    people.loc[3, "age"] = "old"
    with pytest.raises(ConfigError) as caught:
        fitted(people)
    assert str(caught.value) == (
        "`data.path` must have finite numbers in age, got old in row 4. Mend the file, or leave the column out by "
        "data.drop=[age]; for codes write data.categorical=[age]. If old means a missing value, write "
        "data.missing=[old]."
    )
    people["age"] = people["age"].fillna("old")
    assert (
        fitted(people, missing=["old"]).columns[0].fill == people["age"].replace("old", np.nan).astype(float).median()
    )


def test_a_column_of_texts_of_which_most_are_no_numbers_has_categories() -> None:
    assert only(["1", "2", "x", "y"] * 5)[0].categories == ("1", "2", "x", "y")


def test_a_date_written_in_another_way_is_refused_with_its_row() -> None:
    spec = fitted(pd.DataFrame({"day": ["31.01.2024", "03.02.2024"]}))
    with pytest.raises(ConfigError) as caught:
        encode(pd.DataFrame({"day": ["01.01.2024", "2024-02-01"]}), spec)
    assert str(caught.value) == (
        "`input` must have dates written as %d.%m.%Y in day, got 2024-02-01 in row 2. Mend the file."
    )


def test_two_columns_of_one_name_are_refused(people: pd.DataFrame) -> None:
    twice = pd.concat([people, people[["age"]]], axis=1)
    with pytest.raises(ConfigError, match=r"`input` must have a name of its own for each column, got age more than"):
        encode(twice, fitted(people))


def test_no_rows_are_refused(people: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match=r"`input` must have at least one row, got none\."):
        encode(people.head(0), fitted(people))
