"""A trained model in Python: anywhere, on raw rows, without its training data, without trusting its files."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from sklearn import datasets
from sklearn.metrics import accuracy_score, root_mean_squared_error
from test_command import typed

import tunelab
from tunelab.data import BundledData, CsvData
from tunelab.data.splits import split
from tunelab.errors import ConfigError, as_typed
from tunelab.predictor import Predictor, evaluate


def trained(folder: Path, *words: str) -> Path:
    outcome = typed(folder, *words, "size=tiny", "epochs=5", "hydra.run.dir=run")
    assert outcome.folder == "run", outcome.err
    return folder / "run"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def tumours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("tumours"), "data=breast_cancer")


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("patients"), "data=diabetes", "lr=0.01")


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("dropping"), "regularization=[dropout]")


@pytest.fixture(autouse=True)
def _without_training_data(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """No test here but those of `evaluate` may touch the data module, and all stand somewhere else."""

    def refuse(*args: Any) -> None:
        raise AssertionError("the training data was touched")

    for name in ("digits", "tumours", "patients", "dropping", "customers"):
        if name in request.fixturenames:
            request.getfixturevalue(name)  # trained with data, before
    if "evaluat" not in request.node.name:
        monkeypatch.setattr(BundledData, "setup", refuse)
        monkeypatch.setattr(BundledData, "__init__", refuse)
        monkeypatch.setattr(CsvData, "read_file", refuse)
    monkeypatch.chdir(tmp_path)


def reported_scores(run: Path) -> dict[str, float]:
    scores = json.loads((run / "result.json").read_text())["test"]
    assert isinstance(scores, dict)
    return scores


def held_out(bunch: Any, stratify: bool) -> np.ndarray[Any, Any]:
    return split(bunch.target, 0.1, 0.1, seed=0, stratify=stratify)[2]


def test_a_loaded_model_is_in_evaluation_mode_and_knows_its_data(digits: Path) -> None:
    model = tunelab.load(digits)
    assert isinstance(model, Predictor)
    assert not any(module.training for module in model.task.modules())
    assert model.spec.class_names == tuple("0123456789")
    assert model.spec.input_shape == (1, 8, 8)


def test_images_and_flat_rows_and_frames_give_the_same_predictions(digits: Path) -> None:
    model, bunch = tunelab.load(digits), datasets.load_digits()
    flat = model.predict(bunch.data[:50])
    images = model.predict(bunch.images[:50, None])  # (examples, channels, height, width)
    frame = pd.DataFrame(bunch.data[:50], columns=bunch.feature_names)
    named = model.predict(frame.assign(note="text", target=bunch.target[:50])[[*frame.columns[::-1], "note", "target"]])
    pd.testing.assert_frame_equal(flat, images)
    pd.testing.assert_frame_equal(flat, named)
    pd.testing.assert_frame_equal(flat, model.predict(bunch.data[:50].tolist()))


def test_each_class_has_a_probability_and_the_prediction_is_the_greatest(tumours: Path) -> None:
    bunch = datasets.load_breast_cancer()
    predictions = tunelab.load(tumours).predict(bunch.data)
    probabilities = predictions[["p(malignant)", "p(benign)"]]
    assert list(predictions.columns) == ["prediction", "p(malignant)", "p(benign)"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    names = np.asarray(["malignant", "benign"])
    assert predictions["prediction"].tolist() == names[probabilities.to_numpy().argmax(axis=1)].tolist()


def test_the_accuracy_of_predictions_is_the_score_that_the_run_reported(tumours: Path) -> None:
    bunch = datasets.load_breast_cancer()
    rows = held_out(bunch, stratify=True)
    predicted = tunelab.load(tumours).predict(bunch.data[rows])["prediction"]
    reported = reported_scores(tumours)["test/accuracy"]
    assert accuracy_score(bunch.target_names[bunch.target[rows]], predicted) == pytest.approx(reported, abs=1e-6)


def test_a_regression_predicts_in_the_targets_own_units(patients: Path) -> None:
    bunch = datasets.load_diabetes(scaled=False)
    rows = held_out(bunch, stratify=False)
    predicted = tunelab.load(patients).predict(bunch.data[rows])
    reported = reported_scores(patients)["test/rmse"]
    assert list(predicted.columns) == ["prediction"]
    assert root_mean_squared_error(bunch.target[rows], predicted["prediction"]) == pytest.approx(reported, rel=1e-4)


def test_more_rows_than_fit_at_once_are_predicted_in_their_order(digits: Path) -> None:
    model, bunch = tunelab.load(digits), datasets.load_digits()  # 1,797 rows, 1,024 at once
    whole = model.predict(bunch.data)
    pd.testing.assert_frame_equal(whole[1500:].reset_index(drop=True), model.predict(bunch.data[1500:]), rtol=1e-5)


def test_the_weights_are_those_of_the_checkpoint_asked_for(digits: Path) -> None:
    for which in ("best", "last"):
        content = torch.load(digits / "checkpoints" / f"{which}.ckpt", weights_only=True)
        state = tunelab.load(digits, which).task.state_dict()
        assert state.keys() == content["state_dict"].keys()
        assert all(torch.equal(state[key], content["state_dict"][key]) for key in state)


def test_dropout_does_not_act_on_predictions(dropping: Path) -> None:
    model, bunch = tunelab.load(dropping), datasets.load_digits()
    assert [m.p for m in model.task.modules() if isinstance(m, torch.nn.Dropout)] == [0.2]
    pd.testing.assert_frame_equal(model.predict(bunch.data[:20]), model.predict(bunch.data[:20]))


# ---- rows that will not do


def frame(dataset: Any) -> pd.DataFrame:
    return pd.DataFrame(dataset.data, columns=dataset.feature_names)


def test_missing_columns_are_refused_with_what_was_probably_meant(tumours: Path) -> None:
    rows = frame(datasets.load_breast_cancer()).rename(columns={"mean radius": "mean_radius"})
    sentence = (
        "`input` must have the 30 columns that the model was trained on, but 1 is missing: mean radius. "
        "Did you mean mean_radius"
    )
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        tunelab.load(tumours).predict(rows)


def test_text_in_a_column_is_refused_with_its_name_and_row(tumours: Path) -> None:
    rows = frame(datasets.load_breast_cancer()).astype({"mean area": str})
    pd.testing.assert_frame_equal(
        tunelab.load(tumours).predict(rows), tunelab.load(tumours).predict(datasets.load_breast_cancer().data)
    )  # numbers as text are numbers
    rows.loc[4, "mean area"] = "large"
    with pytest.raises(ConfigError, match=r"`input` must have finite numbers in mean area, got large in row 5\."):
        tunelab.load(tumours).predict(rows)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_finite_numbers_are_refused_with_their_rows(tumours: Path, bad: float) -> None:
    rows = frame(datasets.load_breast_cancer()).head(10)
    rows.iloc[[2, 7], 3] = bad
    with pytest.raises(ConfigError, match=rf"finite numbers in mean area, got {bad} in row 3 and 1 more\."):
        tunelab.load(tumours).predict(rows.sample(frac=1, random_state=0).sort_index())
    with pytest.raises(ConfigError, match=r"`input` must have finite numbers, but 2 rows have not: 3, 8\."):
        tunelab.load(tumours).predict(rows.to_numpy())


@pytest.mark.parametrize("shape", [(5, 29), (30,), (5, 31), (2, 5, 6, 2)])
def test_an_array_of_another_width_is_refused_with_both(tumours: Path, shape: tuple[int, ...]) -> None:
    sentence = f"`input` must have 30 values in each row, got shape {shape}."
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        tunelab.load(tumours).predict(np.zeros(shape))


def test_text_in_an_array_is_refused_in_words(tumours: Path) -> None:
    with pytest.raises(ConfigError, match=r"`input` must have numbers"):
        tunelab.load(tumours).predict(np.full((2, 30), "x"))


@pytest.mark.parametrize("empty", [np.zeros((0, 30)), pd.DataFrame()])
def test_no_rows_at_all_are_refused_in_words(tumours: Path, empty: Any) -> None:
    with pytest.raises(ConfigError, match=r"`input` must have .*(rows?|columns)"):
        tunelab.load(tumours).predict(empty)


# ---- a table with columns of any kind


CUSTOMERS = pd.DataFrame(
    {
        "age": [20, 30, None, 50] * 15,
        "city": ["Rome", "Oslo", "Bern", None, "Rome", "Oslo"] * 10,
        "since": pd.date_range("2024-01-01", periods=60, freq="3D").strftime("%Y-%m-%d"),
        "member": ([True] * 3 + [False] * 2) * 12,
        "code": [7, 8, 9] * 20,
        "buys": ["yes", "no"] * 30,
    }
)


@pytest.fixture(scope="module")
def customers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("customers")
    CUSTOMERS.to_csv(folder / "rows.csv", index=False)
    file = ("data=csv", "data.path=rows.csv", "data.target=buys", "data.categorical=[code]")
    return trained(folder, *file, "batch_size=16")


def test_raw_rows_are_the_same_from_frames_files_and_lists(customers: Path, tmp_path: Path) -> None:
    model, rows = tunelab.load(customers), CUSTOMERS.drop(columns="buys")
    expected = model.predict(rows)
    rows.iloc[:, ::-1].assign(more="x").to_csv(tmp_path / "rows.csv", index=False, sep=";")
    rows.to_parquet(tmp_path / "rows.parquet")
    pd.testing.assert_frame_equal(model.predict(tunelab.predictor.read_rows("rows.csv")), expected)
    pd.testing.assert_frame_equal(model.predict(tunelab.predictor.read_rows("rows.parquet")), expected)
    pd.testing.assert_frame_equal(model.predict(rows.to_numpy(dtype=object).tolist()), expected)
    typed = rows.assign(since=pd.to_datetime(rows["since"]), code=rows["code"].astype(float))
    pd.testing.assert_frame_equal(model.predict(typed.sample(frac=1, random_state=0).sort_index()), expected)


def test_a_row_is_predicted_alone_as_among_others(customers: Path) -> None:
    model = tunelab.load(customers)
    together = model.predict(CUSTOMERS)
    alone = pd.concat([model.predict(CUSTOMERS.iloc[[row]]) for row in range(5)], ignore_index=True)
    pd.testing.assert_frame_equal(alone, together.head(5), rtol=1e-5)


def test_one_row_may_be_a_series_or_a_dict_and_several_a_list_of_them(customers: Path) -> None:
    model, rows = tunelab.load(customers), CUSTOMERS.drop(columns="buys")
    for place in (0, 2, 3):  # the second has no age, the last no city
        expected = model.predict(rows.iloc[[place]])
        pd.testing.assert_frame_equal(model.predict(rows.iloc[place]), expected)
        pd.testing.assert_frame_equal(model.predict(rows.iloc[place].to_dict()), expected)
    several = rows.head(5).to_dict("records")
    pd.testing.assert_frame_equal(model.predict(several), model.predict(rows.head(5)))


@pytest.mark.parametrize("text", ["rows.csv", Path("rows.csv"), 3])
def test_what_are_no_rows_is_refused_with_how_a_file_is_read(customers: Path, digits: Path, text: Any) -> None:
    for run in (customers, digits):
        with pytest.raises(ConfigError) as caught:
            tunelab.load(run).predict(text)
        assert str(caught.value) == (
            f"`input` must be rows, got {text}. Give a DataFrame, a dict of column and value, or a list of rows; for a "
            "file, predict(read_rows(<file>)) with read_rows from tunelab.predictor."
        )


def test_a_value_that_was_never_missing_in_training_may_be_missing_later(customers: Path) -> None:
    model = tunelab.load(customers)
    gaps = CUSTOMERS.head(2).assign(since=None, member=None, code=None)
    column = next(column for column in model.spec.columns if column.name == "since")
    assert column.fill == pd.Series(pd.to_datetime(CUSTOMERS["since"])).iloc[held_in()].astype("int64").median() / 1e6
    assert np.isfinite(model.predict(gaps)[["p(no)", "p(yes)"]].to_numpy()).all()


def held_in() -> np.ndarray[Any, Any]:
    """The training part of the customers."""
    return split((CUSTOMERS["buys"] == "yes").to_numpy().astype(int), 0.1, 0.1, seed=0, stratify=True)[0]


def test_rows_without_names_of_another_length_are_refused(customers: Path) -> None:
    with pytest.raises(ConfigError, match=r"`input` must have 5 values in each row, in this order: age, city, since"):
        tunelab.load(customers).predict([[1, 2]])


# ---- files that will not do


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["a pickle", "an archive of torch", "an old archive of torch"])
@pytest.mark.parametrize("use", ["load", "evaluate", "resume"])
def test_a_malicious_checkpoint_runs_nothing(tumours: Path, tmp_path: Path, kind: str, use: str) -> None:
    run = Path(shutil.copytree(tumours, tmp_path / "run"))
    content = {"state_dict": Evil(tmp_path / "owned"), "data_spec": {}, "epoch": 0, "global_step": 0}
    for which in ("best", "last"):
        path = run / "checkpoints" / f"{which}.ckpt"
        path.unlink()
        if kind == "a pickle":
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=kind == "an archive of torch")
    if use == "resume":
        outcome = typed(tmp_path, "resume=run", "epochs=9")
        assert "`resume` must be a whole checkpoint, got run/checkpoints/last.ckpt" in outcome.text
    else:
        with pytest.raises(ConfigError, match=r"`checkpoint` must be a whole checkpoint, got .*best\.ckpt"):
            {"load": tunelab.load, "evaluate": evaluate}[use](run)
    assert not (tmp_path / "owned").exists()
    # the trap itself works: without care it does make the folder
    pickle.loads(path.read_bytes()) if kind == "a pickle" else torch.load(path, weights_only=False)
    assert (tmp_path / "owned").is_dir()


@pytest.mark.parametrize("use", ["load", "evaluate"])
def test_a_config_with_a_target_that_is_not_trusted_is_refused(tumours: Path, tmp_path: Path, use: str) -> None:
    run = Path(shutil.copytree(tumours, tmp_path / "run"))
    cfg = OmegaConf.load(run / "config.yaml")
    cfg.task.init = {"_target_": "os.mkdir", "path": f"{tmp_path}/owned"}
    OmegaConf.save(cfg, run / "config.yaml")
    with pytest.raises(ConfigError, match=r"`[\w.]*_target_` must be in a trusted package, got os\.mkdir"):
        {"load": tunelab.load, "evaluate": evaluate}[use](run)
    assert not (tmp_path / "owned").exists()


def test_the_checkpoint_of_another_model_is_refused_with_the_keys_that_differ(
    tumours: Path, digits: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tumours, tmp_path / "run"))
    (run / "checkpoints" / "best.ckpt").unlink()
    shutil.copy(digits / "checkpoints" / "best.ckpt", run / "checkpoints" / "best.ckpt")
    cfg = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"\bwidth: 32\b", "width: 40", cfg))
    with pytest.raises(ConfigError) as refused:
        tunelab.load(run)
    assert f"The checkpoint {as_typed(run / 'checkpoints' / 'best.ckpt')} must be of this model, but " in (
        str(refused.value)
    )
    assert "model.hidden1.weight has shape (32, 64), not (40, 64)" in str(refused.value)


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`run` must be a run's folder, got nowhere, which does not exist"):
        tunelab.load("nowhere")


# ---- scores


@pytest.mark.parametrize("data", ["digits", "tumours", "patients", "customers"])
def test_an_evaluated_checkpoint_has_the_score_of_its_run_to_the_last_bit(
    request: pytest.FixtureRequest, data: str
) -> None:
    run = request.getfixturevalue(data)
    os.chdir(run.parent)  # where its data lies
    assert evaluate(run) == reported_scores(run)
