"""What the tools that measure share: their keys beside the recipe's, their answer, their folder."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from matplotlib.figure import Figure
from pydantic import Field
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_command import REPOSITORY, refused, typed

import tunelab
from tunelab import instrument, tools
from tunelab.answers import table
from tunelab.composing import composed
from tunelab.errors import ConfigError
from tunelab.folder import RunFolder, write_atomic

TINY = ("data=iris", "size=tiny", "epochs=2")
SCRIPT = "scripts/show_schedule.py"


class Halves(instrument.Answer):
    """An answer of a test's own: 1, 1/2 and nothing."""

    def said(self) -> str:
        return "half"

    def values(self) -> dict[str, Any]:
        return {"best": 0.5, "worst": float("inf"), "all": [1.0, float("nan")]}

    def rows(self) -> list[dict[str, Any]]:
        return [{"x": 1, "y": 1.0}, {"x": 2, "y": 0.5, "note": "half"}]

    def figure(self) -> Figure:
        figure = Figure()
        figure.subplots().plot([1, 2], [1.0, 0.5])
        return figure

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        yield from (("y", 1, 1.0), ("y", 2, 0.5))


def test_an_answer_is_left_as_json_csv_picture_and_curves(tmp_path: Path) -> None:
    Halves().save(tmp_path)
    assert json.loads((tmp_path / "answer.json").read_text()) == {"best": 0.5, "worst": None, "all": [1.0, None]}
    assert (tmp_path / "answer.csv").read_text().splitlines() == ["x,y,note", "1,1.0,", "2,0.5,half"]
    assert (tmp_path / "answer.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("y")] == [(1, 1.0), (2, 0.5)]
    assert len(events.Tags()["images"]) == 1


def test_a_tool_leaves_its_answer_and_what_it_takes_to_ask_again(tmp_path: Path) -> None:
    outcome = typed(tmp_path, *TINY, "scheduler=linear", script=SCRIPT)
    folder = tmp_path / re.findall(r"(outputs/show_schedule/iris-mlp/\S+)", outcome.out)[0]
    record = RunFolder.find(folder, "run").record
    assert shlex.split(record["command"])[2:] == [*TINY, "scheduler=linear"]
    assert record["choices"]["scheduler"] == "linear"
    with (folder / "answer.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(1, RunFolder(folder).config.epochs * 2 + 1))  # 120 examples in batches of 64


def test_from_python_it_answers_the_same(tmp_path: Path) -> None:
    typed(tmp_path, *TINY, "hydra.run.dir=here", script=SCRIPT)
    answer = tunelab.show_schedule(*TINY)
    assert repr(answer) == answer.said()  # what a notebook shows
    assert table(answer.rows()) == (tmp_path / "here" / "answer.csv").read_text()


def test_from_python_a_mistake_is_an_exception_in_the_same_words() -> None:
    with pytest.raises(ConfigError, match=r"`lr` must be greater than 0, got -1"):
        tunelab.show_schedule("lr=-1")
    with pytest.raises(ConfigError, match=r"`model` must be one of .*, got cn\. Did you mean cnn\?"):
        tunelab.show_schedule("model=cn")


def test_mistakes_of_the_recipe_and_of_the_tool_are_said_together() -> None:
    class Numbers(instrument.Numbers):
        points: Annotated[int, Field(ge=2, examples=[5])]

    cfg = composed("lr=-1", "+points=1", "resume=there").cfg
    with pytest.raises(ConfigError) as refusal:
        instrument.check(cfg, ["lr", "points", "resume"], Numbers)
    assert refusal.value.mistakes == (
        "`points` must be at least 2, got 1. Try points=5.",
        "`resume` must be left out: it is of a run.",
        "`lr` must be greater than 0, got -1. Try lr=0.001.",
    )


@pytest.mark.parametrize("tool", tunelab.INSTRUMENTS)
def test_to_find_an_lr_is_asked_of_a_run_and_of_no_tool(tool: str) -> None:
    cfg = composed("find_lr=true", config_name=tool).cfg
    with pytest.raises(ConfigError, match="`find_lr` must be left out: it is of a run"):
        tools.load(tool).check(cfg, ["find_lr"])


@pytest.mark.parametrize("what", ["run.json", "answer.csv"])
def test_what_was_measured_is_said_though_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(path: Path, text: str) -> None:
        if path.name == what:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_atomic(path, text)

    for module in ("folder", "record", "answers"):
        monkeypatch.setattr(f"tunelab.{module}.write_atomic", full)
    outcome = typed(tmp_path, *TINY, script=SCRIPT)
    assert outcome.code == 1
    assert outcome.out.startswith("4 steps in 2 epochs: lr 0.001")
    assert re.fullmatch(
        r"The answer stands above, but could not be written to outputs/show_schedule/iris-mlp/\S+: No space left on "
        r"device\. Nothing of it is left there\. To keep it make room, or choose another disk with hydra\.run\.dir=…\n",
        outcome.err,
    )
    assert list(tmp_path.iterdir()) == []


def test_a_tool_is_no_search(tmp_path: Path) -> None:
    text = refused(typed(tmp_path, "-m", "lr=1e-3,1e-2", script=SCRIPT), 2)
    assert text.startswith("`-m` must be left out: show_schedule is asked of one recipe.")


def test_several_values_are_told_where_they_go(tmp_path: Path) -> None:
    text = refused(typed(tmp_path, "activation=relu,tanh", "seed=1,2", script="scripts/compare_inits.py"), 2)
    assert text.splitlines() == [
        "`activation=relu,tanh` must have one value: compare_inits is asked of one recipe. "
        "Try 'activations=[relu,tanh]'.",
        "`seed=1,2` must have one value: compare_inits is asked of one recipe. Ask of each by itself.",
    ]


def test_a_measurement_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    text = refused(typed(tmp_path, *TINY, "batch_size=1000", script=SCRIPT), 1)
    assert "`batch_size` must be at most the 120 training examples, got 1000" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tool", [name for name in tools.names() if hasattr(tools.load(name), "Numbers")])
def test_the_keys_of_a_tool_stand_in_its_file_and_on_its_page(tool: str, tmp_path: Path) -> None:
    page = typed(tmp_path, "--help", script=f"scripts/{tool}.py").out
    text = (REPOSITORY / "conf" / f"{tool}.yaml").read_text(encoding="utf-8")
    for key in tools.load(tool).Numbers.model_fields:
        assert re.findall(rf"^{key}:.*#", text, flags=re.MULTILINE), f"{key} has no line with a comment"
        assert re.findall(rf"^  {key} ", page, flags=re.MULTILINE) == [f"  {key} "]
