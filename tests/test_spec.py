"""A data set's description survives JSON, and normalizes images, tables and flat rows by the same arithmetic."""

import json

import numpy as np
import pytest
from conftest import local_files, options

from tunelab import conf_folder
from tunelab.fitting import build
from tunelab.spec import Column, DataSpec

TABLE = DataSpec("table", (3,), 2, ("a", "b", "c"), ("no", "yes"), (1.0, 2.0, 3.0), (0.5, 2.0, 4.0))
IMAGE = DataSpec("image", (2, 2, 3), 1, tuple(f"pixel {i}" for i in range(12)), (), (1.0, -1.0), (2.0, 4.0), 7.0, 3.0)
MIXED = DataSpec(
    *("table", (6,), 2, ("age", "age is missing", "city=Rome", "day", "day hour sine", "day hour cosine")),
    *(("no", "yes"), (40.0, 0.0, 0.0, 1.7e9, 0.0, 0.0), (10.0, 1.0, 1.0, 1e6, 1.0, 1.0)),
    columns=(
        Column("age", "number", "number, 3 missing -> median 38", has_missing=True, fill=38.0),
        Column("city", "category", "1 categories, one-hot", categories=("Rome",)),
        Column("id", "dropped", "dropped, every value is different"),
        Column("day", "date", "date", fill=1.7e9 + 1 / 3, date_format="%d.%m.%Y", cycles=("hour",)),
    ),
    missing=("?", "-999"),
    target=Column("price", "number", "number", decimal_comma=True, thousands=".", unit="€", placeholders=("k.A.",)),
)
TOKENS = DataSpec("sequence", (4, 2), 1, tuple("abcdefgh"), (), (1.0, 10.0), (2.0, 5.0))


@pytest.mark.parametrize("spec", [TABLE, IMAGE, TOKENS, MIXED], ids=["table", "image", "sequence", "columns"])
def test_spec_survives_json(spec):
    assert DataSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_from_before_a_column_said_how_it_is_read_takes_what_was_done_then():
    known = {"name": "a", "kind": "number", "note": "number", "decimal_comma": True, "has_missing": False, "fill": 1.0}
    values = TABLE.to_json() | {"columns": [known]}
    del values["target"]
    (column,) = DataSpec.from_json(values).columns
    assert (column.usual_missing, column.placeholders, column.thousands, column.unit) == (True, (), "", "")


HERE = [name for name in options("data") if "  path:" not in (conf_folder() / f"data/{name}.yaml").read_text()]


@pytest.mark.parametrize("option", [*HERE, "csv", "parquet"])
def test_the_spec_of_every_data_set_survives_json_to_the_last_bit(option, compose, tmp_path):
    source = build(compose(f"data={option}", *local_files(option, tmp_path)).data)
    source.setup("fit")
    assert DataSpec.from_json(json.loads(json.dumps(source.spec.to_json()))) == source.spec


def test_the_features_of_a_table_are_those_of_its_columns_in_order():
    assert tuple(feature for column in MIXED.columns for feature in column.features) == MIXED.feature_names


def test_raw_rows_need_the_columns_that_are_not_dropped_or_else_the_features():
    assert MIXED.raw_names == ("age", "city", "day")
    assert TABLE.raw_names == ("a", "b", "c")


def test_a_table_is_normalized_feature_by_feature():
    rows = [[1.0, 2.0, 3.0], [2.0, 0.0, 11.0]]
    assert TABLE.normalize(rows).tolist() == [[0, 0, 0], [2, -1, 2]]


def test_an_image_is_normalized_channel_by_channel():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, 2, 2, 3))
    expected = np.empty_like(images)
    for channel in range(2):
        expected[:, channel] = (images[:, channel] - IMAGE.input_mean[channel]) / IMAGE.input_std[channel]
    np.testing.assert_allclose(IMAGE.normalize(images), expected, rtol=1e-6)


def test_a_sequence_is_normalized_feature_by_feature_of_each_token():
    tokens = np.arange(8.0).reshape(1, 4, 2)
    expected = [[[(2 * t - 1) / 2, (2 * t + 1 - 10) / 5] for t in range(4)]]
    np.testing.assert_allclose(TOKENS.normalize(tokens), expected, rtol=1e-6)


@pytest.mark.parametrize("spec", [TABLE, IMAGE, TOKENS], ids=lambda spec: spec.kind)
def test_flat_rows_are_normalized_like_shaped_examples(spec):
    shaped = np.random.default_rng(0).normal(size=(6, *spec.input_shape))
    result = spec.normalize(shaped.reshape(6, -1))
    assert result.shape == (6, *spec.input_shape)
    assert result.dtype == np.float32
    assert np.array_equal(result, spec.normalize(shaped))


def test_normalizing_leaves_the_rows_as_they_are():
    rows = np.ones((2, 3))
    TABLE.normalize(rows)
    assert rows.tolist() == [[1, 1, 1], [1, 1, 1]]
