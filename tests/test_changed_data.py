"""Data that is not what it was: a run's score is the one it reported, bit for bit, or is refused with what changed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from test_command import typed

import tunelab
from tunelab.errors import ConfigError
from tunelab.hashing import Passing
from tunelab.members import Comparison, Kept, sum_of
from tunelab.predictor import evaluate
from tunelab.sweep.trial import refuse_other_data
from tunelab.sweep.worker import Job

SMALL = ("size=tiny", "epochs=2", "threads=1", "logger=[]", "callbacks=[checkpoint]", "hydra.run.dir=run")


def trained(folder: Path, *words: str) -> Path:
    outcome = typed(folder, *words, *SMALL)
    assert outcome.code == 0, outcome.err
    return folder / "run"


def reported(run: Path) -> dict[str, float]:
    scores = json.loads((run / "result.json").read_text())["test"]
    assert isinstance(scores, dict)
    return scores


def outcome_of(run: Path, **how: Any) -> str:
    """`the same score`, `another score`, or the refusal."""
    try:
        scores = evaluate(run, **how)
    except ConfigError as error:
        return str(error)
    return "the same score" if scores == reported(run) else f"another score: {scores}"


def table(rows: int = 120, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "age": random.integers(18, 90, rows),
            "income": random.lognormal(10, 1, rows).round(2),
            "city": random.choice(["bern", "oslo", "rome"], rows),
        }
    )
    frame.loc[random.choice(rows, rows // 10, replace=False), "income"] = np.nan
    frame["buys"] = np.where(
        frame["age"] + 20 * (frame["city"] == "oslo") + random.normal(0, 9, rows) > 55, "yes", "no"
    )
    frame["spent"] = (frame["age"] * 3.5 + random.normal(0, 5, rows)).round(3)
    return frame


# what is done to a table, and what is then said; an empty text where the score must be the one reported
TABLE_CHANGES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "nothing": (lambda t: t, ""),
    "a new order of the columns": (lambda t: t[t.columns[::-1]], ""),
    "a column more": (lambda t: t.assign(note="new"), ""),
    "rows appended": (lambda t: pd.concat([t, table(40, 1)]), r"160 examples in all, 120 then; 40 not among them then"),
    "rows dropped": (lambda t: t.drop(index=range(0, 120, 4)), r"90 examples in all, 120 then; 30 of then are gone"),
    "rows shuffled": (lambda t: t.sample(frac=1, random_state=3), r"the same ones in another order; of the 12 test"),
    "a value changed in every row": (lambda t: t.assign(age=t["age"] + 1), r"120 not among them then"),
    "a category renamed": (
        lambda t: t.assign(city=t["city"].replace("oslo", "kristiania")),
        r"\d+ rows have a city that was rare or unseen in training, such as kristiania",
    ),
    "a category added": (
        lambda t: pd.concat([t, table(20, 1).assign(city="ulm")]),
        r"20 not among them then.*20 rows have a city that was rare or unseen in training, such as ulm",
    ),
    "a column renamed": (lambda t: t.rename(columns={"income": "salary"}), r"is missing: income"),
    "a column removed": (lambda t: t.drop(columns="age"), r"is missing: age"),
    "another file of the same name": (lambda _: table(120, 7), r"1(19|20) of then are gone"),
    "texts among the numbers": (lambda t: t.assign(age=t["age"].astype(str) + " years"), r"`data\.path` must have "),
}

CLASS_CHANGES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "a class renamed": (
        lambda t: t.assign(buys=t["buys"].replace("yes", "si")),
        r"must have the classes .* no, yes; got si in \d+ of 120 examples, and none of yes",
    ),
    "a class added": (lambda t: pd.concat([t, table(20, 1).assign(buys="maybe")]), r"got maybe in 20 of 140 examples"),
    "classes that sort otherwise": (lambda t: t.assign(buys=t["buys"].replace("no", "zero")), r"got zero in"),
    "a class removed": (lambda t: t[t["buys"] == "yes"], r"of then are gone"),
    "another target in some rows": (
        lambda t: t.assign(buys=t["buys"].where(t.index % 3 > 0, "yes")),
        r"\d+ have another target",
    ),
}

NUMBER_CHANGES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "another target in every row": (lambda t: t.assign(spent=t["spent"] * 2), r"120 have another target"),
    "classes for numbers": (lambda t: t.assign(spent="much"), r"texts such as much"),
}


def write(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path, index=False) if path.suffix == ".parquet" else frame.to_csv(path, index=False)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By kind a run, and the file that it was trained on."""
    found = {}
    for kind, target in (("csv", "buys"), ("parquet", "buys"), ("csv numbers", "spent")):
        folder = tmp_path_factory.mktemp("table")
        path = folder / f"data.{kind.split()[0]}"
        write(table(), path)
        words = (f"data={kind.split()[0]}", f"data.path={path}", f"data.target={target}")
        others = ("data.drop=[spent]",)
        if target == "spent":
            others = ("data.drop=[buys]", "task=regression", "loss=mse", "objective=val/rmse")
        found[kind] = trained(folder, *words, *others), path
    return found


CASES = [
    *((kind, change) for kind in ("csv", "parquet", "csv numbers") for change in TABLE_CHANGES),
    *((kind, change) for kind in ("csv", "parquet") for change in CLASS_CHANGES),
    *(("csv numbers", change) for change in NUMBER_CHANGES),
]


@pytest.mark.parametrize(("kind", "change"), CASES)
def test_a_table_that_changed_scores_the_same_or_is_refused_with_what_changed(
    kind: str, change: str, tables: dict[str, tuple[Path, Path]]
) -> None:
    run, path = tables[kind]
    make, expected = {**TABLE_CHANGES, **CLASS_CHANGES, **NUMBER_CHANGES}[change]
    write(make(table()), path)
    said = outcome_of(run)
    if expected:
        assert re.search(expected, said), said
    else:
        assert said == "the same score"


@pytest.mark.parametrize("seed", range(20))
def test_several_changes_at_once_never_move_a_score_in_silence(seed: int, tables: dict[str, tuple[Path, Path]]) -> None:
    random = np.random.default_rng(seed)
    kind = ("csv", "csv numbers")[seed % 2]
    run, path = tables[kind]
    changes = {**TABLE_CHANGES, **(CLASS_CHANGES if kind == "csv" else NUMBER_CHANGES)}
    frame = table()
    for name in random.choice(list(changes), 3, replace=False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            try:
                frame = changes[name][0](frame).reset_index(drop=True)
            except KeyError:  # a column that an earlier change took away
                continue
    write(frame, path)
    said = outcome_of(run)
    assert not said.startswith("another score")


def test_a_grown_table_is_scored_on_what_the_model_has_not_met_if_that_is_asked_for(
    tables: dict[str, tuple[Path, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    run, path = tables["csv"]
    fresh = table(40, 1)
    write(pd.concat([fresh, table().sample(frac=1, random_state=3)]), path)
    scores = evaluate(run, changed="unseen")
    assert "Scored are the 52 examples that it has not met" in caplog.text  # 12 test rows of then and 40 new ones
    predicted = tunelab.load(run).predict(fresh)["prediction"]
    right = (predicted == fresh["buys"]).sum() + 12 * reported(run)["test/accuracy"]
    assert scores["test/accuracy"] == pytest.approx(right / 52, abs=1e-6)


def test_the_unseen_examples_of_a_shuffled_table_are_the_test_part_bit_for_bit(
    tables: dict[str, tuple[Path, Path]],
) -> None:
    run, path = tables["csv numbers"]
    write(table().sample(frac=1, random_state=3), path)
    assert outcome_of(run, changed="unseen") == "the same score"


def test_a_moved_file_is_named_by_its_path_and_other_paths_are_refused(
    tables: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    run, path = tables["csv"]
    write(table(), tmp_path / "moved.csv")
    path.unlink()
    assert "which does not exist" in outcome_of(run)
    assert outcome_of(run, paths={"path": str(tmp_path / "moved.csv")}) == "the same score"
    assert "`data.test_path` must be of this run's data, which has data.path" in outcome_of(
        run, paths={"test_path": str(tmp_path / "moved.csv")}
    )
    assert "`changed` must be refuse or unseen or ignore, got yes" in outcome_of(run, changed="yes")


def test_the_command_refuses_changed_data_without_a_traceback_and_goes_on_by_a_word(
    tables: dict[str, tuple[Path, Path]],
) -> None:
    run, path = tables["csv"]
    write(pd.concat([table(), table(40, 1)]), path)
    refused = typed(run.parent, "run=run", script="scripts/evaluate.py")
    assert (refused.code, refused.out) == (1, "")
    assert "type changed=unseen to score the 52 examples" in refused.err
    notes = run / "evaluations.jsonl"
    looks = notes.read_text().splitlines() if notes.exists() else []
    done = typed(run.parent, "run=run", "changed=unseen", script="scripts/evaluate.py")
    assert done.code == 0, done.err
    new = [json.loads(line) for line in notes.read_text().splitlines()[len(looks) :]]
    assert [look["changed"] for look in new] == ["unseen"]


# ---- taken up again, and repeated


@pytest.mark.parametrize(
    "change",
    [
        "nothing",
        "rows appended",
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in ("a column more", "a category renamed", "a class renamed")
        ),
    ],
)
def test_a_run_is_resumed_and_repeated_on_its_own_data_alone(
    change: str, tables: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    trained_before, path = tables["csv"]
    write(table(), path)
    run = Path(shutil.copytree(trained_before, tmp_path / "run"))
    files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    make, expected = {**TABLE_CHANGES, **CLASS_CHANGES}[change]
    write(make(table()), path)
    repeated = typed(tmp_path, "repeat=run", "hydra.run.dir=repeated")
    resumed = typed(tmp_path, "resume=run", "epochs=3")
    if not expected:
        assert (repeated.code, resumed.code) == (0, 0), repeated.err + resumed.err
        assert reported(tmp_path / "repeated") == reported(trained_before)
        assert (tmp_path / "repeated" / "members.npz").read_bytes() == files[run / "members.npz"]
        assert outcome_of(run) == "the same score"
        return
    for key, outcome in (("repeat", repeated), ("resume", resumed)):
        assert outcome.code == 1
        assert re.search(expected, outcome.err), outcome.err
        assert "Traceback" not in outcome.err
        if "class" not in change:
            assert f"`{key}` must have the data that the run was trained on" in outcome.err
            assert "train anew on what it is now: python train.py" in outcome.err
    assert not (tmp_path / "repeated").exists()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "train.log"} == {
        p: content for p, content in files.items() if p.name != "train.log"
    }


def test_a_trial_is_refused_if_the_data_changed_since_the_first_of_its_search(
    tables: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    run, path = tables["csv"]
    write(table(), path)
    shutil.copytree(run, tmp_path / "0")
    record = json.loads((run / "run.json").read_text())
    cfg = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    overrides = [*record["overrides"], "lr=0.1"]
    job = Job(tmp_path / "1", cfg, {"overrides": overrides})  # type: ignore[arg-type]
    refuse_other_data(job)
    write(pd.concat([table(), table(40, 1)]), path)
    with pytest.raises(ConfigError, match=r"changed since trial 0: data\.path 3301 bytes, crc32 \w+ → \d+ bytes"):
        refuse_other_data(job)
    other = [o for o in overrides if not o.startswith("data.path")]
    refuse_other_data(Job(tmp_path / "1", cfg, {"overrides": other}))  # type: ignore[arg-type]  # of another file


# ---- images


def draw(folder: Path, names: tuple[str, ...] = ("circle", "square", "star"), each: int = 30, seed: int = 0) -> Path:
    """A folder of images of noise, brighter from class to class, a folder for each class."""
    random = np.random.default_rng(seed)
    shutil.rmtree(folder, ignore_errors=True)
    for place, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(60 * place, 60 * place + 120, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    return folder


def rename_images(folder: Path) -> None:
    for path in sorted(folder.rglob("*.png")):
        path.rename(path.with_stem(f"{7 * int(path.stem) % 30:03}-new"))


def overdraw(folder: Path) -> None:
    for path in (folder / "star").iterdir():
        Image.new("L", (8, 8), int(path.stem) * 8).save(path)


FOLDER_CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda _: None, ""),
    "a text file beside them": (lambda f: (f / "circle" / "readme.txt").write_text("what"), ""),
    "the time of every file": (lambda f: [path.touch() for path in f.rglob("*.png")], ""),
    "a class renamed": (
        lambda f: (f / "circle").rename(f / "zebra"),
        r"must have the classes .* circle, square, star; got zebra in 30 of 90 examples, and none of circle",
    ),
    "a class added": (lambda f: shutil.copytree(f / "star", f / "sun"), r"got sun in 30 of 120 examples"),
    "a class removed": (lambda f: shutil.rmtree(f / "circle"), r"60 examples in all, 90 then; 30 of then are gone"),
    "two classes swapped": (
        lambda f: [(f / a).rename(f / b) for a, b in (("star", "x"), ("square", "star"), ("x", "square"))],
        r"60 have another target",
    ),
    "images added": (
        lambda f: [shutil.copy(path, path.with_stem("new")) for path in f.rglob("000.png")],
        r"93 examples in all, 90 then; 3 not among them then",
    ),
    "images removed": (lambda f: [p.unlink() for p in f.rglob("00*.png")], r"30 of then are gone"),
    "images in another order": (rename_images, r"the same ones in another order"),
    "the images of a class overdrawn": (overdraw, r"30 not among them then; 30 of then are gone"),
}


@pytest.fixture(scope="module", params=["true", "false"], ids=["in memory", "read by batch"])
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("images")
    path = draw(folder / "drawn")
    how = (f"data.in_memory={request.param}", "data.workers=0", "data.color=grey")
    return trained(folder, "data=image_folder", f"data.path={path}", *how), path


@pytest.mark.parametrize("change", FOLDER_CHANGES)
def test_a_folder_of_images_that_changed_scores_the_same_or_is_refused(change: str, images: tuple[Path, Path]) -> None:
    run, path = images
    make, expected = FOLDER_CHANGES[change]
    make(draw(path))
    said = outcome_of(run)
    if expected:
        assert re.search(expected, said), said
        if "not among" in expected:
            assert outcome_of(run, changed="unseen").startswith("another score")
    else:
        assert said == "the same score"


def test_what_changed_in_the_training_part_alone_is_said_and_moves_no_score(
    images: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    run, path = images
    Image.new("L", (8, 8), 200).save(draw(path) / "star" / "003.png")
    assert outcome_of(run) == "the same score"
    assert "Of this run's data train has changed, but not its test examples." in caplog.text


def test_a_folder_of_images_may_lie_elsewhere_and_be_in_another_order(
    images: tuple[Path, Path], tmp_path: Path
) -> None:
    run, path = images
    shutil.rmtree(path)
    moved = draw(tmp_path / "moved")
    assert outcome_of(run, paths={"path": str(moved)}) == "the same score"
    rename_images(moved)
    assert outcome_of(run, paths={"path": str(moved)}, changed="unseen") == "the same score"


# ---- runs from before examples were recorded


def test_a_run_without_a_record_of_its_examples_is_compared_by_its_files(
    tables: dict[str, tuple[Path, Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, path = tables["csv"]
    run = Path(shutil.copytree(before, tmp_path / "old"))
    (run / "members.npz").unlink()
    write(table(), path)
    assert outcome_of(run) == "the same score"
    assert "could not be compared" not in caplog.text  # the file has its checksum
    write(pd.concat([table(), table(40, 1)]), path)
    assert re.search(r"data\.path 3301 bytes.*not recorded.*changed=ignore", outcome_of(run))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({key: value for key, value in record.items() if key != "data"}))
    write(table(), path)
    assert outcome_of(run) == "the same score"
    assert "whether the data is still the same could not be compared" in caplog.text


# ---- a data module of the user's own


def test_batches_of_a_data_module_of_ones_own_are_known_again_as_they_pass() -> None:
    inputs, targets = torch.randn(20, 3), torch.arange(20) % 2

    def passed(batches: list[Any]) -> Any:
        passing = Passing()
        for batch in batches:
            passing.add(batch)
        return passing.members()

    whole = passed([(inputs, targets)])
    assert (passed([(inputs[:7], targets[:7]), (inputs[7:], targets[7:])]) == whole).all()
    other = inputs.clone()
    other[5, 1] += 1
    changed = passed([(other, targets)])
    assert np.flatnonzero((changed != whole).any(axis=1)).tolist() == [5]
    now = Comparison(
        Kept({"val": sum_of(whole), "test": sum_of(whole)}, {"val": whole, "test": whole}), {"val": changed}
    )
    assert now.told("val") == "20 examples in all; 1 not among them then; 1 of then are gone"
    assert now.uncompared == ["test"]
    assert passed([{"text": "no tensors"}]) is None
