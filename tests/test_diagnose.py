"""A diagnosis is read from a run's folder alone, told with what to type, and never in a run's way."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_command import refused, typed

import tunelab
from tunelab.analysis import diagnosis
from tunelab.analysis.diagnosis_figure import marked
from tunelab.analysis.evidence import Curve, Evidence, read
from tunelab.analysis.telling import HEALTHY, in_short
from tunelab.analysis.verdict import Verdict
from tunelab.errors import ConfigError
from tunelab.folder import write_json
from tunelab.job import COMMAND_VARIABLE
from tunelab.summary import show_result
from tunelab.tools import diagnose as tool

SCRIPT = "scripts/diagnose.py"
METRICS = (
    "step,epoch,train/loss,val/loss,layers/gradient_norm/head\r\n"
    "10,0,2.0,,0.5\r\n20,0,1.5,1.75,0.25\r\n30,1,1.0,1.5,\r\n"
)
TOO_FAST = Verdict("lr_too_high", "The lr is too high.", "it jumped at epoch 2", 0.9, ("lr=0.1",), "Measure it.")
UNSHUFFLED = Verdict("data_not_shuffled", "The data is sorted.", "90 % alike by step 20", 0.6, (), "Shuffle it.")
RESULT = {"status": "finished", "objective": {"metric": "val/loss", "best": 1.5, "epoch": 2}}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """recorded(metrics, result): the folder of a run that has recorded them, in the folder where the user stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(COMMAND_VARIABLE, raising=False)  # as in a notebook

    def record(metrics: str | None = METRICS, result: dict[str, Any] | None = RESULT) -> Path:
        folder = Path("run")
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text("name: iris-mlp\nlr: 1.0\nepochs: 2\n")
        start = {"command": "python train.py lr=1.0", "overrides": ["data=iris", "lr=1.0"], "choices": {"debug": None}}
        write_json(folder / "run.json", start)
        if result is not None:
            write_json(folder / "result.json", result)
        if metrics is not None:
            (folder / "metrics.csv").write_text(metrics, newline="")
        return folder

    return record


@pytest.fixture
def finding(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """finding(*verdicts): has every diagnosis find these."""

    def find(*verdicts: Verdict) -> None:
        monkeypatch.setattr(diagnosis, "diagnose", lambda evidence: list(verdicts))
        monkeypatch.setattr(tool, "find", lambda evidence: list(verdicts))

    return find


# ---- what is read


def test_lines_that_are_torn_or_out_of_order_are_left_out(recorded) -> None:
    whole = read(recorded()).curves
    assert whole["train/loss"] == Curve((10, 20, 30), (0, 0, 1), (2.0, 1.5, 1.0))
    assert whole["val/loss"] == Curve((20, 30), (0, 1), (1.75, 1.5))
    assert read(recorded(METRICS + "40,1,0.9,1.")).curves == whole
    assert read(recorded(METRICS + "40,1,0.9\r\n")).curves["train/loss"].values[-1] == 0.9
    assert read(recorded(METRICS + "\0\0\0\0\r\n20,1,9.0,9.0,9.0\r\n")).curves == whole
    assert read(recorded(METRICS + "40,1,nan,inf,-inf\r\n50,1,x,,\r\n")).curves == whole


def test_a_csv_that_no_run_wrote_is_refused(recorded) -> None:
    with pytest.raises(ConfigError, match=r"`run/metrics.csv` must be as the run wrote it, but has no step and epoch"):
        tunelab.diagnose(recorded("a,b\n1,2\n"))


def test_facts_that_are_damaged_are_named_and_those_of_an_old_run_are_not_missed(recorded) -> None:
    folder = recorded()
    assert read(folder).facts == {}
    assert "not recorded: updates, dead units, facts.json" in tunelab.diagnose(folder).said()
    (folder / "facts.json").write_text("{")
    with pytest.raises(ConfigError, match=r"`run/facts\.json` must be as the run wrote it"):
        tunelab.diagnose(folder)


# ---- what is told


def test_findings_are_told_in_order_with_the_whole_command_to_try(recorded, finding) -> None:
    finding(UNSHUFFLED, TOO_FAST)
    assert tunelab.diagnose(recorded()).said().splitlines() == [
        "1. The data is sorted. (likely)",
        "   seen      90 % alike by step 20",
        "   try       Shuffle it.",
        "2. The lr is too high. (sure)",
        "   seen      it jumped at epoch 2",
        "   try       python train.py data=iris lr=0.1",
        "   or        Measure it.",
        "Looked at train/loss at 3 steps, val/loss at 2 steps, the gradients of 1 layer; "
        "not recorded: updates, dead units, facts.json.",
    ]


def test_of_a_healthy_run_it_says_what_was_looked_at(recorded, finding) -> None:
    finding()
    answer = tunelab.diagnose(recorded())
    assert answer.verdicts == []
    assert answer.said().startswith(f"{HEALTHY}\nLooked at train/loss at 3 steps")
    assert [row["name"] for row in answer.rows()] == ["healthy"]


def test_of_a_run_that_goes_on_it_says_how_far_it_is(recorded, finding) -> None:
    finding(TOO_FAST)
    assert tunelab.diagnose(recorded(result=None)).said().startswith("The run has not ended; of its first 30 steps:\n")


def test_the_steps_and_epochs_that_the_evidence_names_are_marked() -> None:
    evidence = Evidence({"val/loss": Curve((20, 40), (0, 1), (1.0, 2.0))}, {}, {}, {}, {})
    seen = Verdict("x", "", "from 1 at epoch 2 to 3, at step 7 (epoch 9 never came)", 1.0)
    assert marked(evidence, seen) == [7, 40]


def test_an_lr_too_high_is_found_in_a_real_run_at_its_end_and_by_the_tool(tmp_path: Path) -> None:
    run = ("data=iris", "size=tiny", "epochs=5", "lr=3", "threads=1", "test=false", "hydra.run.dir=run")
    trained = typed(tmp_path, *run)
    tried = re.findall(r"^what to try +lr=\S+  # The lr is too high.* \(.*\)$", trained.out, flags=re.MULTILINE)
    assert len(tried) == 1
    more = re.findall(r"^more +python train\.py (diagnose run=run)$", trained.out, flags=re.MULTILINE)
    told = typed(tmp_path, *shlex.split(more[0]))
    assert told.code == 0, told.text
    assert "try       python train.py data=iris size=tiny epochs=5 threads=1 test=false lr=0.3" in told.out
    folder = tmp_path / re.findall(r"^curves, table +(outputs/diagnose/iris-mlp/\S+)$", told.out, flags=re.MULTILINE)[0]
    with (folder / "answer.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["rank"], first["name"], first["overrides"]) == ("1", "lr_too_high", "lr=0.3")
    assert json.loads((folder / "answer.json").read_text())["run"] == "run"
    assert (folder / "answer.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert [point.value for point in events.Scalars("val/loss")] == pytest.approx(losses)
    assert events.Tags()["images"] == ["iris-mlp"]


# ---- what is refused, and searches


def test_what_is_no_run_is_refused_in_words(tmp_path: Path) -> None:
    assert refused(typed(tmp_path, script=SCRIPT), 1).startswith("`run` must be given")
    assert "got nowhere, which does not exist" in refused(typed(tmp_path, "run=nowhere", script=SCRIPT), 1)
    assert "`lr` must be a key" in refused(typed(tmp_path, "run=nowhere", "lr=1", script=SCRIPT), 2)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_written_nothing_is_refused(recorded) -> None:
    with pytest.raises(ConfigError, match=r"but run has none yet\. Wait for its first epoch"):
        tunelab.diagnose(recorded(metrics=None, result=None))
    with pytest.raises(ConfigError, match=r"has no metrics\.csv\. Train it with its csv: python train\.py .*logger="):
        tunelab.diagnose(recorded(metrics=None))


def test_what_a_tool_left_is_no_run_and_is_said_so(recorded) -> None:
    folder = recorded(metrics=None, result=None)
    (folder / "answer.json").write_text("{}")
    start = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", {**start, "command": "python train.py find_lr model=cnn"})
    said = (
        r"^`run` must be a run's folder, but run is what find_lr left, no run\. Train one first, and name its folder: "
    )
    with pytest.raises(ConfigError, match=said):
        tunelab.diagnose(folder)
    own = Path("outputs/diagnose/iris/1")
    own.mkdir(parents=True)
    (own / "answer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"but outputs/diagnose/iris/1 is what diagnose left, no run\."):
        tunelab.diagnose(own)


def test_a_folder_without_its_key_is_told_the_key(tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    assert refused(typed(tmp_path, "my run", script=SCRIPT), 2) == (
        "`my run` must be an override of the form key=value. Write 'run=my run'.\n"
    )


def test_a_run_is_named_from_python_as_it_is_typed(recorded) -> None:
    folder = recorded()
    assert tunelab.diagnose(f"run={folder}").said() == tunelab.diagnose(folder).said()


def test_a_disk_that_is_full_does_not_cost_the_diagnosis(
    recorded, finding, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(answer: tool.Diagnosis, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    finding(TOO_FAST)
    folder = recorded()
    monkeypatch.setattr(tool.Diagnosis, "save", full)
    with pytest.raises(ConfigError, match=r"^The answer stands above, but could not be written to outputs/diagnose/"):
        tool.run(OmegaConf.create({"run": str(folder)}))
    assert capsys.readouterr().out.startswith("The lr is too high. (sure)\n")
    assert not Path("outputs").exists()


def test_of_a_search_its_best_trial_is_diagnosed(recorded, finding) -> None:
    finding(TOO_FAST)
    search = Path("search")
    search.mkdir()
    (search / "study.journal").touch()
    recorded().rename(search / "4")
    with pytest.raises(ConfigError, match=r"none of whose trials has finished\. Name one of its trials: run=search/4"):
        tunelab.diagnose(search)
    (search / "results.csv").write_text("trial,state,val/loss\n4,finished,0.1\n2,pruned,\n")
    assert (
        tunelab.diagnose(search).said().startswith("Of the search in search, its best trial, 4:\nThe lr is too high.")
    )


# ---- at the end of a run


def test_the_end_of_a_run_says_what_to_try_or_nothing(recorded, finding, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded()
    result = {**RESULT, "epochs": 2, "epochs_asked": 2, "test": None, "train_loss": 1.0, "steps": 30, "seconds": 1.0}
    lines = []
    for verdicts in ((), (TOO_FAST, UNSHUFFLED), (UNSHUFFLED,)):
        finding(*verdicts)
        show_result({**result, "samples_per_second": None}, folder)
        lines.append([re.sub("  +", "  ", line) for line in capsys.readouterr().out.splitlines()[5:]])
    assert lines == [
        [],
        [
            "what to try  lr=0.1  # The lr is too high. (it jumped at epoch 2)",
            "more  python train.py diagnose run=run",
        ],
        [
            "what is wrong  The data is sorted. (90 % alike by step 20)",
            "more  python train.py diagnose run=run",
        ],
    ]


def test_the_end_of_a_run_is_silent_of_what_is_but_perhaps_so(recorded, finding) -> None:
    finding(replace(TOO_FAST, certainty=0.59))
    assert in_short(recorded()) == {}
    assert "(perhaps)" in tunelab.diagnose(recorded()).said()
    measured = replace(UNSHUFFLED, measure="python train.py find_lr data=iris")
    finding(measured)
    assert in_short(recorded())["what to try"] == "python train.py find_lr data=iris"
    assert (
        "   measure   python train.py find_lr data=iris\n   or        Shuffle it."
        in tunelab.diagnose(recorded()).said()
    )
    finding(replace(TOO_FAST, certainty=0.59), UNSHUFFLED)
    assert in_short(recorded())["what is wrong"].startswith("The data is sorted.")


def test_of_a_table_whose_inputs_do_not_tell_its_classes_apart_it_says_how_many_can_be_right(recorded, finding) -> None:
    finding()
    folder = recorded()
    facts = {"classes": 2, "label_conflicts": 1.0, "distinct_train": 0.1, "best_accuracy": 0.774}
    write_json(folder / "facts.json", facts)
    assert tunelab.diagnose(folder).said().splitlines()[:2] == [
        HEALTHY,
        "The inputs do not tell the classes apart: at best 77 % of the training examples can be right.",
    ]


def test_a_diagnosis_that_fails_is_a_line_of_the_log(recorded, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(diagnosis, "diagnose", lambda evidence: 1 / 0)
    with caplog.at_level("INFO", logger="tunelab"):
        assert in_short(recorded()) == {}
    assert caplog.messages == ["This run could not be diagnosed: ZeroDivisionError: division by zero"]


def test_a_run_that_diverged_says_once_what_to_try_and_where_more_is(tmp_path: Path) -> None:
    run = ("data=iris", "size=tiny", "epochs=1", "lr=1e30", "threads=1", "hydra.run.dir=run")
    text = refused(typed(tmp_path, *run), 1)
    assert re.findall(r"^(?:Try|More).*", text, flags=re.MULTILINE) == [
        "Try lr=0.01 or clipping=norm.",
        "More: python train.py diagnose run=run",
    ]
    told = typed(tmp_path, "run=run", script=SCRIPT)
    assert told.out.startswith("The run diverged. (sure)\n")
