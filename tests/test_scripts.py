"""The scripts for a finished run: its score again, predictions for a csv, and what they refuse."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import datasets
from sklearn.metrics import accuracy_score
from test_command import Outcome, in_process_of_its_own, refused, typed

import tunelab
from tunelab.data.pictures import Decoder
from tunelab.data.splits import split

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tumours")
    # the greatest loss is that of the first epoch: so the best checkpoint is not the last
    direction = ("objective=val/loss", "objective_direction=maximize")
    outcome = typed(folder, "data=breast_cancer", "size=tiny", "epochs=5", *direction, "hydra.run.dir=run")
    assert outcome.folder == "run", outcome.err
    return folder / "run"


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A finished run of the test's own, `run` in its working directory."""
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    """The test part, as `rows.csv`: columns in another order, and more of them."""
    bunch = datasets.load_breast_cancer()
    held_out = split(bunch.target, 0.1, 0.1, seed=0, stratify=True)[2]
    frame = pd.DataFrame(bunch.data[held_out], columns=bunch.feature_names)
    frame = frame[frame.columns[::-1]]
    frame.insert(3, "patient", [f"number {i}" for i in range(len(frame))])
    frame["diagnosis"] = bunch.target_names[bunch.target[held_out]]
    frame.to_csv(tmp_path / "rows.csv", index=False)
    return frame


def evaluated(folder: Path, *words: str) -> Outcome:
    return typed(folder, "run=run", *words, script="scripts/evaluate.py")


def predicted(folder: Path, *words: str) -> Outcome:
    return typed(folder, "run=run", *words, script="scripts/predict.py")


# ---- evaluate


def test_the_score_is_exactly_what_the_run_reported(tmp_path: Path, run: Path) -> None:
    outcome = evaluated(tmp_path)
    assert outcome.code == 0, outcome.err
    reported = json.loads((run / "result.json").read_text())["test"]
    look = json.loads((run / "evaluations.jsonl").read_text())
    assert {name: look[name] for name in reported} == reported
    told = re.findall(r"^(\S+) +([\d.]+) +\(the run reported ([\d.]+)\)$", outcome.out, flags=re.MULTILINE)
    assert told == [(name, f"{value:.4f}", f"{value:.4f}") for name, value in reported.items()]


def test_the_last_checkpoint_on_the_validation_part_scores_as_the_last_epoch_did(tmp_path: Path, run: Path) -> None:
    evaluated(tmp_path, "checkpoint=last", "part=val")
    look = json.loads((run / "evaluations.jsonl").read_text())
    last = pd.read_csv(run / "metrics.csv").dropna(subset="val/loss").iloc[-1]
    for name in ("val/loss", "val/accuracy"):
        assert look[name] == last[name]
    assert look["checkpoint"] == "last"


def test_the_best_checkpoint_on_the_validation_part_scores_as_the_objective_says(tmp_path: Path, run: Path) -> None:
    evaluated(tmp_path, "part=val")
    objective = json.loads((run / "result.json").read_text())["objective"]
    assert json.loads((run / "evaluations.jsonl").read_text())["val/loss"] == objective["best"]


def test_each_look_is_noted_and_nothing_else_in_the_folder_changes(tmp_path: Path, run: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for _ in range(2):
        evaluated(tmp_path)
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    looks = [json.loads(line) for line in after.pop(run / "evaluations.jsonl").decode().splitlines()]
    assert [look["checkpoint"] for look in looks] == ["best", "best"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]", look["time"]) for look in looks)
    assert after == before
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("checkpoint=middle",), "`checkpoint` must be best or last or previous, got middle. Try checkpoint=best."),
        (("part=train",), "`part` must be test or val, got train. Try part=test."),
        (("run=nowhere",), "`run` must be a run's folder, got nowhere, which does not exist."),
    ],
)
def test_a_wrong_choice_is_refused(tmp_path: Path, run: Path, words: tuple[str, ...], sentence: str) -> None:
    given = words if words[0].startswith("run=") else ("run=run", *words)
    assert sentence in refused(typed(tmp_path, *given, script="scripts/evaluate.py"), 1)


def test_an_unknown_key_of_a_script_is_refused_with_what_was_meant(tmp_path: Path, run: Path) -> None:
    assert "got chekpoint. Did you mean checkpoint?" in refused(evaluated(tmp_path, "chekpoint=last"), 2)


@pytest.mark.parametrize(
    ("script", "sentences"),
    [
        ("evaluate", ["`run` must be given. Write run=<path>."]),
        ("predict", ["`run` must be given. Write run=<path>.", "`input` must be given. Write input=<path>."]),
    ],
)
def test_what_a_script_needs_is_asked_for(tmp_path: Path, script: str, sentences: list[str]) -> None:
    text = refused(typed(tmp_path, script=f"scripts/{script}.py"), 1)
    assert text.splitlines() == sentences
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_data_has_no_test_part_has_no_score_there(tmp_path: Path) -> None:
    typed(tmp_path, "data.test_fraction=0", "size=tiny", "epochs=1", "hydra.run.dir=run")
    text = refused(evaluated(tmp_path), 1)
    assert "`part` must have examples, got test, of which this run's data has none." in text


def test_a_checkpoint_that_the_run_has_not_is_refused(tmp_path: Path, run: Path) -> None:
    (run / "checkpoints" / "best.ckpt").unlink()
    text = refused(evaluated(tmp_path), 1)
    assert "`checkpoint` must be one that run has, got best. It has last, previous." in text


@pytest.mark.parametrize("script", ["evaluate", "predict"])
def test_the_help_of_a_script_names_its_own_command_and_keys(tmp_path: Path, script: str) -> None:
    text = in_process_of_its_own(tmp_path, "--help", script=f"scripts/{script}.py").out
    assert f"scripts/{script}.py" in text
    assert "run=" in text
    assert "optimizer=" not in text  # which a script has not


# ---- predict


def test_predictions_of_a_csv_are_those_of_the_array_in_its_order(
    tmp_path: Path, run: Path, rows: pd.DataFrame
) -> None:
    outcome = predicted(tmp_path, "input=rows.csv")
    assert outcome.code == 0, outcome.err
    written = pd.read_csv(tmp_path / "rows-predictions.csv")
    model = tunelab.load(run)
    array = rows[list(model.spec.feature_names)].to_numpy()
    pd.testing.assert_frame_equal(written, model.predict(array), rtol=1e-6)
    assert f"{len(rows)} predictions in rows-predictions.csv" in outcome.out
    reported = json.loads((run / "result.json").read_text())["test"]["test/accuracy"]
    assert accuracy_score(rows["diagnosis"], written["prediction"]) == pytest.approx(reported, abs=1e-6)


def test_predictions_go_where_they_are_asked_to(tmp_path: Path, run: Path, rows: pd.DataFrame) -> None:
    before = sorted(p.relative_to(run) for p in run.rglob("*"))
    outcome = predicted(tmp_path, "input=rows.csv", "output=out.csv", "checkpoint=last")
    assert f"{len(rows)} predictions in out.csv" in outcome.out
    expected = tunelab.load(run, "last").predict(rows)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out.csv"), expected, rtol=1e-6)
    assert sorted(p.relative_to(run) for p in run.rglob("*")) == before


def test_rows_of_a_parquet_file_and_of_another_encoding_are_predicted(
    tmp_path: Path, run: Path, rows: pd.DataFrame
) -> None:
    expected = tunelab.load(run).predict(rows)
    rows.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "latin.csv").write_bytes(rows.assign(patient="Zoë").to_csv(index=False, sep=";").encode("latin-1"))
    for words in (["input=rows.parquet"], ["input=latin.csv", "encoding=latin-1", 'separator=";"']):
        outcome = predicted(tmp_path, *words, "output=out.csv")
        assert outcome.code == 0, outcome.err
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out.csv"), expected, rtol=1e-6)


def test_values_that_training_never_saw_are_said_beside_the_predictions(tmp_path: Path) -> None:
    frame = pd.DataFrame({"city": ["Rome", "Oslo"] * 20, "age": [*range(40)], "buys": ["yes", "no", "no", "yes"] * 10})
    frame.to_csv(tmp_path / "table.csv", index=False)
    typed(tmp_path, "data=csv", "data.path=table.csv", "data.target=buys", "batch_size=8", "hydra.run.dir=run")
    frame.assign(city="Bern").head(3).to_csv(tmp_path / "rows.csv", index=False)
    outcome = predicted(tmp_path, "input=rows.csv")
    assert outcome.err == "city: 3 of 3 rows have a value that was rare or unseen in training, such as Bern\n"
    assert "3 predictions in rows-predictions.csv" in outcome.out


def test_the_digits_are_predicted_as_their_names(tmp_path: Path) -> None:
    typed(tmp_path, "size=tiny", "epochs=1", "hydra.run.dir=run")
    bunch = datasets.load_digits()
    pd.DataFrame(bunch.data[:9], columns=bunch.feature_names).to_csv(tmp_path / "rows.csv", index=False)
    predicted(tmp_path, "input=rows.csv")
    expected = tunelab.load(tmp_path / "run").predict(bunch.data[:9])["prediction"].astype(int).tolist()
    assert pd.read_csv(tmp_path / "rows-predictions.csv")["prediction"].tolist() == expected


def test_a_regression_is_predicted_in_its_own_units(tmp_path: Path) -> None:
    typed(tmp_path, "data=diabetes", "size=tiny", "epochs=5", "lr=0.01", "hydra.run.dir=run")
    bunch = datasets.load_diabetes(scaled=False, as_frame=True)
    bunch.data.to_csv(tmp_path / "rows.csv", index=False)
    predicted(tmp_path, "input=rows.csv")
    values = pd.read_csv(tmp_path / "rows-predictions.csv")["prediction"]
    # least squares predicts the mean on the mean; a barely trained net is within a tenth of it
    assert values.mean() == pytest.approx(bunch.target.mean(), rel=0.1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "`input` must be a csv or parquet file, or images, got rows.csv, which does not exist."),
        ("", "`input` must be a csv file with rows in it, got rows.csv, which is empty."),
        ("a,b\n", "`input` must have at least one row below its header, got rows.csv, which has none."),
        ('a,b\n"1,2\n3,4,5\n', "`input` must be a csv with as many values in each row as names in its header"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "`input` must be a csv, got rows.csv, which is a PNG image."),
        (b"a,b\n1,\xff\n", "`encoding` must be the encoding of rows.csv, got utf-8, which it is not in."),
    ],
)
def test_what_is_no_csv_is_refused(tmp_path: Path, run: Path, content: str | bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "rows.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert sentence in refused(predicted(tmp_path, "input=rows.csv"), 1)
    assert not (tmp_path / "rows-predictions.csv").exists()


def test_a_csv_that_lacks_columns_is_refused_with_what_was_meant(tmp_path: Path, run: Path, rows: pd.DataFrame) -> None:
    rows.rename(columns={"mean texture": "mean_texture", "worst area": "area"}).to_csv(tmp_path / "rows.csv")
    text = refused(predicted(tmp_path, "input=rows.csv"), 1)
    assert "`input` must have the 30 columns that the model was trained on, but 2 are missing: " in text
    assert "mean texture, worst area. Did you mean mean_texture" in text


def test_text_in_a_column_is_refused_with_its_name_and_row(tmp_path: Path, run: Path, rows: pd.DataFrame) -> None:
    rows.assign(**{"mean area": "large"}).to_csv(tmp_path / "rows.csv", index=False)
    text = refused(predicted(tmp_path, "input=rows.csv"), 1)
    assert "`input` must have finite numbers in mean area, got large in row 1 and" in text


def test_missing_values_are_refused_with_their_rows(tmp_path: Path, run: Path, rows: pd.DataFrame) -> None:
    rows.loc[[0, 4, 5, 9], "mean area"] = float("nan")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    text = refused(predicted(tmp_path, "input=rows.csv"), 1)
    assert "`input` must have finite numbers in mean area, got nan in row 1 and 3 more." in text


def test_a_csv_of_a_header_alone_is_refused(tmp_path: Path, run: Path, rows: pd.DataFrame) -> None:
    rows.head(0).to_csv(tmp_path / "rows.csv", index=False)
    assert re.search(r"`input` must have .*row", refused(predicted(tmp_path, "input=rows.csv"), 1))


def test_a_folder_is_refused_by_a_run_of_tables_with_the_files_in_it(tmp_path: Path, run: Path) -> None:
    for name in ("a.csv", "b.parquet", "c.png"):
        (tmp_path / "rows" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "rows" / name).touch()
    text = refused(predicted(tmp_path, "input=rows"), 1)
    assert "got rows, which is a folder. Did you mean rows/a.csv or rows/b.parquet?" in text


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error(tmp_path: Path, run: Path, rows: pd.DataFrame) -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / "predict.py"), "run=run", "input=rows.csv"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (0, "")
    assert len(pd.read_csv(tmp_path / "rows-predictions.csv")) == len(rows)


# ---- predict for images


def test_images_are_predicted_as_their_pixels_are_and_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 120, (40, 10, 10, 3)).astype(np.uint8)
    noise[::2] += 100
    for number, pixels in enumerate(noise):
        file = tmp_path / "pets" / ("light", "dark")[number % 2] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    typed(
        tmp_path,
        "data=image_folder",
        "data.path=pets",
        "data.image_size=8",
        "epochs=1",
        "batch_size=8",
        "hydra.run.dir=run",
    )
    model = tunelab.load(tmp_path / "run")
    names = sorted(str(path.relative_to(tmp_path / "pets")) for path in (tmp_path / "pets").rglob("*.png"))
    pixels = np.stack([Decoder("rgb", 8)(str(tmp_path / "pets" / name)) for name in names])
    expected = model.predict(pixels)
    expected.insert(0, "file", names)
    outcome = predicted(tmp_path, "input=pets")
    assert "40 predictions in pets-predictions.csv" in outcome.out
    found = pd.read_csv(tmp_path / "pets-predictions.csv")
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
    predicted(tmp_path, "input=pets/dark/01.png")
    alone = pd.read_csv(tmp_path / "pets" / "dark" / "01-predictions.csv")
    pd.testing.assert_frame_equal(alone, found.head(1).assign(file="01.png"), rtol=1e-5)
    flat = pd.DataFrame(pixels.reshape(40, -1), columns=list(model.spec.feature_names))
    flat.to_csv(tmp_path / "pixels.csv", index=False)
    predicted(tmp_path, "input=pixels.csv")
    of_pixels = pd.read_csv(tmp_path / "pixels-predictions.csv")
    pd.testing.assert_frame_equal(of_pixels, found.drop(columns="file"), rtol=1e-5)
    (tmp_path / "pets" / "dark" / "zz.png").write_bytes(b"no image")
    text = refused(predicted(tmp_path, "input=pets"), 1)
    assert "1 of 41 cannot be used: dark/zz.png (not an image). Replace or remove it." in text
    (tmp_path / "empty").mkdir()
    assert "`input` must have images, got empty, in which" in refused(predicted(tmp_path, "input=empty"), 1)


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path, run: Path, rows: pd.DataFrame) -> None:
    text = refused(predicted(tmp_path, "input=rows.csv", "output=rows.csv/out.csv"), 1)
    assert "`output` must be a file that can be written, got rows.csv/out.csv" in text


def test_the_input_is_not_overwritten_by_its_predictions(tmp_path: Path, run: Path, rows: pd.DataFrame) -> None:
    before = (tmp_path / "rows.csv").read_bytes()
    text = refused(predicted(tmp_path, "input=rows.csv", "output=rows.csv"), 1)
    assert "`output`" in text
    assert (tmp_path / "rows.csv").read_bytes() == before
