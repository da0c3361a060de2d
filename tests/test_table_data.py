"""Tables from files: read once, split, encoded, learned from; and every file that will not do refused in words."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig

import tunelab
from tunelab.config import validate
from tunelab.data.columns import encode
from tunelab.data.splits import split, train_each_class
from tunelab.errors import ConfigError
from tunelab.fitting import build
from tunelab.predictor import read_rows

Compose = Callable[..., DictConfig]
Fit = Callable[..., tuple[dict[str, Any], Path]]

PARTS = ("train", "val", "test")
REGRESSION = ("task=regression", "loss=mse", "objective=val/rmse")


def customers(rows: int = 400) -> pd.DataFrame:
    """People who buy by their age, city, month of joining and membership; with gaps, dates and an id."""
    rng = np.random.default_rng(0)
    age, member = rng.normal(40, 12, rows).round(), rng.choice([True, False], rows)
    city = rng.choice(["Paris", "Rome", "Oslo"], rows, p=[0.5, 0.3, 0.2])
    joined = pd.Timestamp("2023-01-01") + pd.to_timedelta(rng.integers(0, 700, rows), unit="D")
    score = 0.1 * (age - 40) + 2.0 * (city == "Rome") - 1.5 * (city == "Oslo") + member
    score += 2 * np.sin(2 * np.pi * (joined.month - 1) / 12)
    frame = pd.DataFrame(
        {
            "id": [f"c{i}" for i in range(rows)],
            "age": age,
            "city": city,
            "joined": joined.strftime("%d.%m.%Y"),
            "member": member,
            "spent": (100 + 10 * score).round(2),
            "bought": np.where(score > 0, "yes", "no"),
        }
    )
    for name, gaps in {"age": 20, "city": 10, "joined": 5}.items():
        frame.loc[rng.choice(rows, gaps, replace=False), name] = None
    return frame


@pytest.fixture
def source(tmp_path: Path, compose: Compose) -> Callable[..., Any]:
    """source(frame or text or bytes, *overrides): the data module of a file with this content, set up."""

    def make(content: pd.DataFrame | str | bytes, *overrides: str, name: str = "my table.csv") -> Any:
        path = tmp_path / name
        if isinstance(content, pd.DataFrame):
            content.to_csv(path, index=False) if path.suffix == ".csv" else content.to_parquet(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        kind = "parquet" if path.suffix == ".parquet" else "csv"
        target = () if any(o.startswith("data.target=") for o in overrides) else ("data.target=y",)
        cfg = compose(f"data={kind}", f"data.path='{path}'", "batch_size=full", *target, *overrides)
        validate(cfg)
        data = build(cfg.data)
        data.setup("fit")
        return data

    return make


def told(caught: pytest.ExceptionInfo[ConfigError], tmp_path: Path) -> str:
    """What a refusal says, with the folder of the test left out of its paths."""
    return str(caught.value).replace(f"{tmp_path}/", "")


def table(rows: int = 20, **columns: Any) -> pd.DataFrame:
    """A small table of two classes that come again."""
    return pd.DataFrame({"x": np.arange(rows) * 0.5, "y": list("ab") * (rows // 2)} | columns)


# ---- whole runs


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_text_dates_and_gaps_is_learned_and_predicted_from_raw_rows(
    tmp_path: Path, fit: Fit, kind: str
) -> None:
    frame = customers()
    path = tmp_path / f"my table.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    asked = (f"data={kind}", f"data.path='{path}'", "data.target=bought", "data.drop=[spent]")
    result, folder = fit(*asked, "size=small", "epochs=15", "lr=0.01", "batch_size=32")
    assert result["test"]["test/accuracy"] > 0.85  # the more frequent class alone: 0.57

    held_out = split(np.unique(frame["bought"], return_inverse=True)[1], 0.1, 0.1, seed=0, stratify=True)[2]
    rows = frame.drop(columns=["bought", "id", "spent"]).iloc[held_out, ::-1]
    predicted = tunelab.load(folder).predict(rows)["prediction"]
    share = (predicted.to_numpy() == frame["bought"].to_numpy()[held_out]).mean()
    assert share == pytest.approx(result["test"]["test/accuracy"], abs=1e-6)


def test_numbers_are_predicted_in_the_targets_own_units(tmp_path: Path, fit: Fit) -> None:
    frame = customers()
    frame.to_csv(tmp_path / "spent.csv", index=False)
    asked = ("data=csv", f"data.path={tmp_path}/spent.csv", "data.target=spent", "data.drop=[bought]", *REGRESSION)
    result, folder = fit(*asked, "size=small", "epochs=15", "lr=0.01", "batch_size=32")
    held_out = split(frame["spent"].to_numpy(), 0.1, 0.1, seed=0, stratify=False)[2]
    predicted = tunelab.load(folder).predict(frame.iloc[held_out])["prediction"].to_numpy()
    wrong_by = np.sqrt(((predicted - frame["spent"].to_numpy()[held_out]) ** 2).mean())
    assert wrong_by == pytest.approx(result["test"]["test/rmse"], rel=1e-4)
    assert wrong_by < 0.5 * frame["spent"].std()


def test_predictions_of_raw_rows_are_what_the_model_says_of_the_validation_part(tmp_path: Path, fit: Fit) -> None:
    frame = customers(100)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    _, folder = fit("data=csv", f"data.path={tmp_path}/rows.csv", "data.target=bought", "size=tiny", "epochs=1")
    model = tunelab.load(folder)
    data = build(tunelab.folder.RunFolder.find(folder, "run").config.data)
    data.setup("fit")
    inputs, codes = data.parts["val"]
    chosen = split(np.unique(frame["bought"], return_inverse=True)[1], 0.1, 0.1, seed=0, stratify=True)[1]
    probabilities = torch.softmax(model.task(inputs), dim=1).detach().numpy()
    found = model.predict(frame.iloc[chosen])
    np.testing.assert_allclose(found[["p(no)", "p(yes)"]], probabilities, rtol=1e-5)
    assert np.array(["no", "yes"])[codes].tolist() == frame["bought"].iloc[chosen].tolist()


# ---- what the data says of itself


def test_the_spec_names_each_input_and_counts_the_classes_of_the_training_part(source: Callable[..., Any]) -> None:
    data = source(customers(), "data.target=bought", "data.drop=[spent]")
    spec = data.spec
    cycles = [f"joined {cycle} {wave}" for cycle in ("month", "weekday") for wave in ("sine", "cosine")]
    assert spec.feature_names == (
        *("age", "age is missing", "city=Oslo", "city=Paris", "city=Rome", "city is missing"),
        *("joined", *cycles, "joined is missing", "member=False", "member=True"),
    )
    assert (spec.kind, spec.input_shape, spec.output_size) == ("table", (14,), 2)
    assert spec.class_names == ("no", "yes")
    assert spec.class_counts == tuple(torch.bincount(data.parts["train"][1]).tolist())
    assert spec.raw_names == ("age", "city", "joined", "member")


def test_what_was_done_with_each_column_is_said(source: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    frame = pd.DataFrame({"id": [f"r{i}" for i in range(20)], "age": [None, *range(1, 20)], "city": list("abcd") * 5})
    source(frame.assign(y=list("ab") * 10), "data.test_fraction=0", "data.val_fraction=0")
    assert caplog.messages == [
        "my table.csv: rows 20 train, 0 val, 0 test; 3 columns as 6 inputs",
        "  y: the target, 2 classes: a 10, b 10",
        "  id: dropped, every value is different",
        "  age: number, 1 missing -> median 10",
        "  city: 4 categories, one-hot",
    ]


def test_of_many_columns_those_with_something_to_tell_are_said(
    source: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    numbers = {f"n{i}": np.arange(20) * 0.3 for i in range(30)}
    source(table(**numbers, last="same"))
    assert len(caplog.messages) == 23
    assert caplog.messages[2] == "  last: dropped, every value is same"
    assert caplog.messages[-1] == "  and 12 more, in data_spec.json"


def test_a_target_of_whole_numbers_is_what_the_task_takes(source: Callable[..., Any]) -> None:
    frame = table(rows=60, y=[3, 5, 10] * 20)
    classes, numbers = source(frame), source(frame, *REGRESSION)
    assert classes.spec.class_names == ("3", "5", "10")
    assert classes.parts["train"][1].dtype == torch.int64
    assert (numbers.spec.class_names, numbers.spec.output_size) == ((), 1)
    train = numbers.parts["train"][1].double() * numbers.spec.target_std + numbers.spec.target_mean
    assert sorted(set(train.numpy().round(4).tolist())) == [3, 5, 10]
    assert numbers.parts["train"][1].double().mean().item() == pytest.approx(0, abs=1e-6)
    assert numbers.parts["train"][1].double().std(correction=0).item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(("values", "classes"), [([1, 2], 2), ([0.5, 1.5], 2), (["a", "b"], 2), (range(40), 0)])
def test_a_task_of_the_users_own_gets_what_the_target_looks_like(
    source: Callable[..., Any], values: list[Any], classes: int
) -> None:
    target = list(itertools.islice(itertools.cycle(values), 40))
    data = source(table(rows=40, y=target), "data.task=my.package.Ranking")
    assert len(data.spec.class_names) == classes


def test_rows_without_a_target_are_left_out_and_said(
    source: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    frame = table(rows=40)
    frame.loc[[3, 7, 8], "y"] = None
    data = source(frame)
    assert sum(len(targets) for _, targets in data.parts.values()) == 37
    assert caplog.messages[0] == "my table.csv: 3 rows without a y are left out"


def test_a_csv_and_a_parquet_file_of_the_same_rows_give_the_same_inputs(source: Callable[..., Any]) -> None:
    frame = customers(120)
    asked = ("data.target=bought", "data.drop=[id]")
    text, typed = source(frame, *asked), source(frame, *asked, name="rows.parquet")
    assert text.spec.feature_names == typed.spec.feature_names
    for part in PARTS:
        torch.testing.assert_close(text.parts[part][0], typed.parts[part][0], rtol=1e-5, atol=1e-6)
        assert torch.equal(text.parts[part][1], typed.parts[part][1])


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pd.Series([True, False] * 10), ("False", "True")),
        (pd.Series(["b", "a"] * 10, dtype="category"), ("a", "b")),
        (pd.Series([2.0, 10.0] * 10), ("2", "10")),
        (pd.Series([2, 10] * 10, dtype="Int8"), ("2", "10")),
    ],
    ids=["booleans", "categorical", "floats", "nullable"],
)
def test_classes_of_every_type_have_names_in_order(
    source: Callable[..., Any], values: pd.Series, names: tuple[str, str]
) -> None:
    assert source(table(y=values), name="rows.parquet").spec.class_names == names


def test_a_class_may_be_the_only_one_whose_name_is_no_number(source: Callable[..., Any]) -> None:
    target = [str(i % 3) for i in range(40)]
    target[5] = target[6] = "unknown"
    assert source(table(rows=40, y=target)).spec.class_names == ("0", "1", "2", "unknown")


def test_a_named_index_of_a_parquet_file_is_a_column_and_an_unnamed_one_is_not(source: Callable[..., Any]) -> None:
    frame = table(city=list("rg") * 10)
    assert source(frame.set_index("city"), name="rows.parquet").spec.raw_names == ("city", "x")
    assert source(frame.set_index(np.arange(20) + 5), name="rows.parquet").spec.raw_names == ("x", "city")


def test_a_value_that_means_missing_is_missing_in_the_target_too(source: Callable[..., Any]) -> None:
    frame = table(rows=40)
    frame.loc[:4, "y"] = "?"
    data = source(frame, "data.missing=['?']")
    assert data.spec.class_names == ("a", "b")
    assert sum(len(targets) for _, targets in data.parts.values()) == 35


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found_in_the_header(source: Callable[..., Any], separator: str) -> None:
    expected = source(table())
    text = table().to_csv(index=False, sep=separator, decimal="," if separator == ";" else ".")
    found = source(text)
    written = {"decimal_comma": True, "note": "number with a decimal comma"} if separator == ";" else {}
    columns = tuple(replace(column, **written) for column in expected.spec.columns)
    assert found.spec == replace(expected.spec, columns=columns)
    assert torch.equal(found.parts["train"][0], expected.parts["train"][0])


def german(number: float) -> str:
    """1234567.5 as 1.234.567,50."""
    return f"{number:,.2f}".translate(str.maketrans(",.", ".,"))


def test_numbers_with_points_for_thousands_and_a_decimal_comma_are_numbers(source: Callable[..., Any]) -> None:
    values = np.random.default_rng(0).lognormal(8, 4, 200).round(2)
    assert values.max() > 1e6
    frame = pd.DataFrame({"price": values, "y": list("ab") * 100})
    expected = source(frame)
    found = source(frame.assign(price=[german(value) for value in values]).to_csv(index=False, sep=";"))
    note = "number with a point between thousands and a decimal comma"
    assert found.spec.columns == (replace(expected.spec.columns[0], decimal_comma=True, thousands=".", note=note),)
    assert torch.equal(found.parts["train"][0], expected.parts["train"][0])


@pytest.mark.parametrize("wrong", ["31.13,15", "3.1134,15", "0.311,15", "3..113,15"])
def test_points_that_are_not_before_each_three_digits_make_no_number(source: Callable[..., Any], wrong: str) -> None:
    data = source("x;y\n" + f"{wrong};a\n1,5;b\n" * 10)
    assert data.spec.columns[0].categories == tuple(sorted(["1,5", wrong]))


@pytest.mark.parametrize("name", ["price", "Preis\n(EUR)"])
def test_a_decimal_comma_is_seen_beside_texts_that_mean_missing(
    source: Callable[..., Any], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.INFO)
    values = [f"{300 + i},00" for i in range(16)] + ["k.A."] * 4
    text = f'"{name}";y\n' + "".join(f"{value};{y}\n" for value, y in zip(values, "ab" * 10, strict=True))
    spec = source(text, "data.missing=[k.A.]", "data.val_fraction=0", "data.test_fraction=0").spec
    assert (spec.columns[0].kind, spec.columns[0].fill, spec.raw_names) == ("number", 307.5, (name,))
    shown = name if name == "price" else repr(name)
    assert f"  {shown}: number with a decimal comma, 4 missing -> median 307.5" in caplog.messages


def test_a_column_keeps_its_decimal_comma_in_rows_that_show_none(source: Callable[..., Any], tmp_path: Path) -> None:
    data = source("x;y\n" + "1.500,5;a\n2,5;b\nk.A.;a\n" * 10, "data.missing=[k.A.]")
    (tmp_path / "rows.csv").write_text("x;other\n3.113;1\nk.A.;1\n2.000;1\n")
    found = encode(read_rows(str(tmp_path / "rows.csv")), data.spec)
    expected = encode(pd.DataFrame({"x": [3113.0, None, 2000.0]}), data.spec)
    np.testing.assert_array_equal(found, expected)
    (tmp_path / "rows.csv").write_text("x;other\n3.113;1\n3.5;1\n")  # written with points
    with pytest.raises(
        ConfigError, match=r"must have finite numbers with a point between thousands and a decimal comma"
    ):
        encode(read_rows(str(tmp_path / "rows.csv")), data.spec)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_a_file_in_another_encoding_is_read_when_it_is_named(source: Callable[..., Any], encoding: str) -> None:
    frame = table(city=["Orléans", "Köln"] * 10)
    named = [] if encoding.startswith("utf-8") else [f"data.encoding={encoding}"]
    data = source(frame.to_csv(index=False).encode(encoding), *named)
    assert data.spec.feature_names == ("x", "city=Köln", "city=Orléans")


def test_quoted_values_may_hold_the_separator_and_new_lines(source: Callable[..., Any]) -> None:
    data = source('"a, b",y\n"1",u\n"2",v\n"2",u\n"3",v\n')
    assert data.spec.raw_names == ("a, b",)
    assert source('"a\nb",y\n"x, y",u\nz,v\n"x, y",v\nz,u\n').spec.raw_names == ("a\nb",)


# ---- parts


def numbers_of(data: Any, part: str) -> list[int]:
    """The rows of a part, told by the column x = 0, 1, 2, …"""
    spec = data.spec
    inputs = data.parts[part][0][:, spec.feature_names.index("x")].double().numpy()
    place = spec.feature_names.index("x")
    return np.rint(inputs * spec.input_std[place] + spec.input_mean[place]).astype(int).tolist()


def test_fractions_split_each_class_evenly(source: Callable[..., Any]) -> None:
    frame = table(rows=200, x=np.arange(200), y=["rare" if i % 10 == 0 else "often" for i in range(200)])
    data = source(frame, "data.val_fraction=0.2", "data.test_fraction=0.3")
    parts = {part: numbers_of(data, part) for part in PARTS}
    assert sorted(itertools.chain(*parts.values())) == list(range(200))
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 100, "val": 40, "test": 60}
    assert [sum(row % 10 == 0 for row in parts[part]) for part in PARTS] == [10, 4, 6]


def test_the_folds_validate_each_row_once_and_leave_the_test_part_alone(source: Callable[..., Any]) -> None:
    frame = table(rows=60, x=np.arange(60))
    folds = [source(frame, f"fold={i}/4") for i in range(4)]
    tested = {tuple(numbers_of(data, "test")) for data in folds}
    validated = [row for data in folds for row in numbers_of(data, "val")]
    assert len(tested) == 1
    assert sorted([*validated, *next(iter(tested))]) == list(range(60))
    for data in folds:
        assert sorted(itertools.chain(*(numbers_of(data, part) for part in PARTS))) == list(range(60))


def test_given_files_are_the_parts_and_the_others_are_fractions(source: Callable[..., Any], tmp_path: Path) -> None:
    table(rows=10, x=np.arange(100, 110)).to_csv(tmp_path / "val.csv", index=False)
    table(rows=12, x=np.arange(200, 212))[["y", "x"]].to_csv(tmp_path / "test.csv", index=False)
    frame = table(rows=40, x=np.arange(40))
    both = source(frame, f"data.val_path={tmp_path}/val.csv", f"data.test_path={tmp_path}/test.csv")
    assert numbers_of(both, "train") == list(range(40))
    assert numbers_of(both, "val") == list(range(100, 110))
    assert numbers_of(both, "test") == list(range(200, 212))
    one = source(frame, f"data.test_path={tmp_path}/test.csv", "data.val_fraction=0.25")
    assert len(numbers_of(one, "val")) == 10
    assert sorted([*numbers_of(one, "train"), *numbers_of(one, "val")]) == list(range(40))
    assert numbers_of(one, "test") == list(range(200, 212))


def test_a_column_tells_the_part_of_each_row(source: Callable[..., Any]) -> None:
    says = ["train"] * 20 + ["Validation"] * 8 + ["test"] * 12
    data = source(table(rows=40, x=np.arange(40), part=says), "data.split_column=part")
    assert [numbers_of(data, part) for part in PARTS] == [[*range(20)], [*range(20, 28)], [*range(28, 40)]]
    assert data.spec.raw_names == ("x",)
    says = ["train"] * 30 + ["test"] * 10
    data = source(table(rows=40, x=np.arange(40), part=says), "data.split_column=part", "data.val_fraction=0.2")
    assert len(numbers_of(data, "val")) == 6
    assert sorted([*numbers_of(data, "train"), *numbers_of(data, "val")]) == list(range(30))


def test_what_is_fitted_does_not_depend_on_the_rows_of_other_parts(source: Callable[..., Any]) -> None:
    frame = customers(120).assign(part=["train"] * 80 + ["val"] * 20 + ["test"] * 20)
    asked = ("data.target=bought", "data.split_column=part")
    first = source(frame, *asked)
    other = frame.copy()
    other.loc[80:, "age"] = 1e6
    other.loc[80:, "city"] = "Atlantis"
    other.loc[80:, "joined"] = None
    second = source(other, *asked)
    assert second.spec == first.spec
    assert torch.equal(second.parts["train"][0], first.parts["train"][0])


def test_a_class_of_one_row_trains_and_is_said(source: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for row in range(40):
        frame = table(rows=40)
        frame.loc[row, "y"] = "once"
        data = source(frame, "data.val_fraction=0.3", "data.test_fraction=0.3")
        once = data.spec.class_names.index("once")
        assert data.spec.class_counts[once] == 1
        assert sum(len(targets) for _, targets in data.parts.values()) == 40
    moved = [m for m in caplog.messages if "too few" in m]
    assert set(moved) == {"y: too few rows to be split, so that one is moved to the training part: once"}


def test_a_row_of_each_class_is_moved_to_the_training_part_and_no_other() -> None:
    codes = np.array([0, 0, 1, 1, 2, 3])
    parts = {"train": np.array([0]), "val": np.array([1, 2]), "test": np.array([3, 4, 5])}
    assert train_each_class(codes, parts, ["val"]) == [1]
    assert {part: rows.tolist() for part, rows in parts.items()} == {"train": [0, 2], "val": [1], "test": [3, 4, 5]}
    assert train_each_class(codes, parts, ["val", "test"]) == [2, 3]
    assert {part: rows.tolist() for part, rows in parts.items()} == {"train": [0, 2, 4, 5], "val": [1], "test": [3]}


# ---- files that will not do


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "`data.path` must be a csv file with rows in it, got my table.csv, which is empty."),
        ("\n\n", "`data.path` must have a header line with the names of its columns, got my table.csv without one."),
        ("x,y\n", "`data.path` must have at least one row below its header, got my table.csv, which has none."),
        (
            "x,x,y\n1,2,a\n",
            "`data.path` must have a name of its own for each column, got my table.csv with 2 columns named x. "
            "Rename all but one.",
        ),
        (
            "x,y\n1,a\n1,a,b\n",
            "`data.path` must be a csv with as many values in each row as names in its header, got my table.csv: "
            "Expected 2 fields in line 3, saw 3. Mend the file, or name what separates its values: data.separator=';'.",
        ),
        (
            "x,y\n1,a,3\n1,a,4\n",
            "`data.path` must be a csv with as many values in each row as names in its header, got my table.csv: "
            "its rows have more values. Mend the file, or name what separates its values: data.separator=';'.",
        ),
        (
            b"\x89PNG\r\n\x1a\n\0\0",
            "`data.path` must be a csv, got my table.csv, which is a PNG image. Name a csv file.",
        ),
        (
            b"PAR1\0\0PAR1",
            "`data.path` must be a csv, got my table.csv, which is a parquet file. Name a csv file. "
            "If it is a parquet, choose data=parquet.",
        ),
        (
            b"a,b\n\0\1",
            "`data.path` must be a csv, got my table.csv, which is no text: it has bytes of zero. Name a csv file.",
        ),
        (
            "x,y\n1,Köln\n".encode("latin-1"),
            "`data.encoding` must be the encoding of my table.csv, got utf-8, which it is not in. "
            "Try data.encoding=cp1252.",
        ),
        (
            "x,y\n1,a\n".encode("utf-16"),
            "`data.encoding` must be the encoding of my table.csv, got utf-8, which it is not in. "
            "Try data.encoding=utf-16.",
        ),
        (
            "1,2,3\n4,5,6\n",
            "`data.target` must be a column of my table.csv, got y. Its first line, 1, 2, 3, looks like values: "
            "put the names of the columns above it.",
        ),
        ("y\na\nb\na\nb\n", "`data.path` must have a column to learn from beside the target, but there is no other."),
    ],
)
def test_what_is_no_csv_with_a_header_and_rows_is_refused(
    source: Callable[..., Any], tmp_path: Path, content: str | bytes, sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        source(content)
    assert told(caught, tmp_path) == sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "`data.path` must be a parquet file with rows in it, got rows.parquet, which is empty."),
        (
            b"x,y\n1,a\n",
            "`data.path` must be a parquet file, got rows.parquet, which is none by its first bytes. "
            "Name a parquet file. If it is a csv, choose data=csv.",
        ),
        (b"\xff\xd8\xff", "`data.path` must be a parquet file, got rows.parquet, which is a JPEG image."),
        (b"PAR1 and then nothing", "`data.path` must be a whole parquet file, got rows.parquet: "),
    ],
)
def test_what_is_no_parquet_file_is_refused(
    source: Callable[..., Any], tmp_path: Path, content: bytes, sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        source(content, name="rows.parquet")
    assert told(caught, tmp_path).startswith(sentence)


def test_parquet_without_pyarrow_is_refused_with_what_to_install(
    source: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **keywords: Any) -> None:
        raise ImportError("pyarrow is required for parquet support")

    monkeypatch.setattr(pd, "read_parquet", refuse)
    with pytest.raises(ConfigError) as caught:
        source(table(), name="rows.parquet")
    assert told(caught, tmp_path) == (
        "`data.path` must have pyarrow to be read, got rows.parquet, but it is not installed. "
        'Type: pip install "tunelab[parquet]"'
    )


def test_a_file_that_does_not_exist_is_refused_with_what_was_meant(compose: Compose, tmp_path: Path) -> None:
    table().to_csv(tmp_path / "houses.csv", index=False)
    data = build(compose("data=csv", f"data.path={tmp_path}/house.csv", "data.target=y").data)
    with pytest.raises(ConfigError) as caught:
        data.setup("fit")
    assert told(caught, tmp_path) == (
        "`data.path` must be a csv file, got house.csv, which does not exist. Did you mean houses.csv?"
    )
    data = build(compose("data=csv", f"data.path={tmp_path}", "data.target=y").data)
    with pytest.raises(ConfigError, match="which is a folder") as caught:
        data.setup("fit")
    assert told(caught, tmp_path).endswith("which is a folder. Did you mean houses.csv?")
    data = build(compose("data=parquet", f"data.path={tmp_path}", "data.target=y").data)
    with pytest.raises(ConfigError, match=r"which is a folder\. No file in it ends in \.parquet\."):
        data.setup("fit")


def test_an_encoding_that_python_does_not_know_is_refused(source: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"`data\.encoding` must be one that Python knows, got utf8x\. Did you mean"):
        source(table(), "data.encoding=utf8x")


# ---- columns and targets that will not do


@pytest.mark.parametrize(
    ("frame", "overrides", "sentence"),
    [
        (
            table().rename(columns={"y": "price"}),
            ["data.target=pirce"],
            "`data.target` must be a column of my table.csv, got pirce. Did you mean price?",
        ),
        (
            table(),
            ["data.drop=[house]", "data.categorical=[city]"],
            "`data.drop` must be a column of my table.csv, got house. It has x, y.\n"
            "`data.categorical` must be a column of my table.csv, got city. It has x, y.",
        ),
        (
            table(y="same"),
            [],
            "`data.target` must have at least two classes, got y, which is same in every row. Choose another column.",
        ),
        (
            table(y=[f"r{i}" for i in range(20)]),
            [],
            "`data.target` must have classes that come again, got y, which has 20 different values in 20 rows. "
            "Choose another column.",
        ),
        (
            table(y=np.arange(20) / 7),
            [],
            "`task` must fit the data, got classification for y, which has 20 distinct numbers. "
            "Try task=regression loss=mse objective=val/rmse; if they are classes, data.categorical=[y].",
        ),
        (
            table(rows=2408, y=np.repeat(np.arange(1204), 2)),
            [],
            "`task` must fit the data, got classification for y, which has 1,204 distinct numbers. "
            "Try task=regression loss=mse objective=val/rmse; if they are classes, data.categorical=[y].",
        ),
        (
            table(),
            [*REGRESSION],
            "`task` must fit the data, got regression for y, which has texts such as a. "
            "Try task=classification loss=cross_entropy objective=val/accuracy.",
        ),
        (
            table(y=5.0),
            [*REGRESSION],
            "`data.target` must vary, got y, which is 5.0 in every row. Choose another column.",
        ),
        (
            table(y=[np.inf, -np.inf, *range(18)]),
            [*REGRESSION],
            "`data.target` must have finite numbers, got inf in row 1 of y and 1 more. "
            "Mend those rows or leave them out.",
        ),
        (
            table(y=["1e", *range(19)]),
            [*REGRESSION],
            "`data.target` must have finite numbers, got 1e in row 1 of y. Mend those rows or leave them out.",
        ),
        (
            table(y=None),
            [],
            "`data.path` must have rows with a y, got my table.csv, where it is always missing.",
        ),
        (
            table(),
            ["batch_size=64"],
            "`batch_size` must be at most the 16 training examples, got 64. Try batch_size=full.",
        ),
        (
            table(part=["train"] * 19 + ["vall"]),
            ["data.split_column=part"],
            "`data.split_column` must say train, val or test in every row, got vall in row 20. Did you mean val?",
        ),
        (
            table(part=["val"] * 10 + ["test"] * 10),
            ["data.split_column=part"],
            "`data.split_column` must say train in some rows, got none in part.",
        ),
        (
            table(part=["train"] * 19 + ["test"], y=["a", "b"] * 9 + ["a", "c"]),
            ["data.split_column=part"],
            "`data.split_column` must have no class that the training part has not, got y c in the test part alone. "
            "Leave those rows out, or give the training part some of them.",
        ),
        (
            table(part=["train"] * 18 + ["val"] * 2),
            ["data.split_column=part", "fold=0/5"],
            "`fold` must not be given where the data has a validation part of its own, got 0/5. Leave fold out.",
        ),
    ],
)
def test_a_table_that_cannot_be_learned_from_is_refused(
    source: Callable[..., Any], tmp_path: Path, frame: pd.DataFrame, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        source(frame, *overrides)
    assert told(caught, tmp_path) == sentence


def test_a_given_file_must_fit_the_training_file(source: Callable[..., Any], tmp_path: Path) -> None:
    given = tmp_path / "val.csv"
    frame, asked = table(rows=40, color=list("rg") * 20), f"data.val_path={given}"
    for rows, sentence in {
        "colour,x,y\nr,1,a\n": "`data.val_path` must have the columns of my table.csv, got val.csv without color. "
        "Did you mean colour?",
        "color,x,y\nr,1,c\n": "`data.val_path` must have no class that the training part has not, got y c in the val "
        "part alone. Leave those rows out, or give the training part some of them.",
        "color,x,y\nr,1,a\ng,big,b\n": "`data.val_path` must have finite numbers in x, got big in row 2. Mend the "
        "file, or leave the column out by data.drop=[x]; for codes write data.categorical=[x]. If big means a missing "
        "value, write data.missing=[big].",
    }.items():
        given.write_text(rows)
        with pytest.raises(ConfigError) as caught:
            source(frame, asked)
        assert told(caught, tmp_path) == sentence


# ---- keys that contradict each other


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.path=null"], "`data.path` must be given. Write data.path=<file>."),
        (["data.target=null"], "`data.target` must be given. Write data.target=<column>."),
        (
            ["fold=0/5", "data.val_path=v.csv"],
            "`fold` must not be given with data.val_path, got 0/5. Leave one of them out.",
        ),
        (["fold=5/5"], "`fold` must be one of 0/k to k-1/k with k at least 2, got 5/5. Try fold=0/5."),
        (["fold=0/1"], "`fold` must be one of 0/k to k-1/k with k at least 2, got 0/1. Try fold=0/5."),
        (
            ["data.split_column=part", "data.val_path=v.csv", "data.test_path=t.csv"],
            "`data.split_column` must not be given with data.val_path and data.test_path. Leave one of them out.",
        ),
        (
            ["data.test_path=a.csv"],
            "`data.test_path` must be another file than data.path, got a.csv for both. Leave it out.",
        ),
        (
            ["data.drop=[y]"],
            "`data.drop` must not have a column of data.target, got y in both. Take it out of one of them.",
        ),
        (
            ["data.drop=[z]", "data.categorical=[z]"],
            "`data.drop` must not have a column of data.categorical, got z in both. Take it out of one of them.",
        ),
        (["data.max_categories=0"], "`data.max_categories` must be at least 1, got 0. Try data.max_categories=50."),
        (["data.drop=id"], "`data.drop` must be a list, got id. Try data.drop=[id]."),
    ],
)
def test_keys_that_contradict_each_other_are_refused_before_the_file_is_read(
    compose: Compose, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(compose("data=csv", "data.path=a.csv", "data.target=y", *overrides))
    assert str(caught.value) == sentence


def test_a_part_that_is_given_is_there_to_be_watched(compose: Compose) -> None:
    watched = ("data=csv", "data.path=a.csv", "data.target=y", "data.val_fraction=0", "scheduler=plateau")
    validate(compose(*watched, "data.val_path=v.csv"))
    with pytest.raises(ConfigError, match="`scheduler=plateau` must have validations to watch"):
        validate(compose(*watched))


def test_a_csv_file_is_opened_for_its_header_and_read_once(
    source: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda *a, **k: reads.append(a) or read(*a, **k))
    data = source(table())
    data.setup("test")
    assert len(reads) == 1
