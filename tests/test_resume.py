"""A run that was cut short and continued is the run that was not: weights, optimizer, metrics, to the last bit."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_command import REPOSITORY, Outcome, refused, typed

from tunelab.callbacks import Clock

RECIPES = {
    "default": ("size=tiny",),
    "plateau, l2, dropout and early stopping": (
        *("size=tiny", "scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5", "warmup_steps=30"),
        *("regularization=[l2,dropout,early_stopping]", "regularization.early_stopping.patience=4"),
    ),
    "cnn with batch norm, cosine and clipping": (
        *("model=cnn", "size=tiny", "scheduler=cosine", "warmup_fraction=0.2", "clipping=norm"),
    ),
    "regression with momentum, in steps": (
        *("data=diabetes", "size=tiny", "optimizer=momentum", "scheduler=step", "scheduler.every_epochs=2"),
        "regularization=[l1]",
    ),
    "the whole data at once, adam, prelu": ("batch_size=full", "size=tiny", "optimizer=adam", "activation=prelu"),
    "checkpoints as often as may be": ("size=tiny", "callbacks.checkpoint.every_seconds=0", "test=false"),
}
recipes = pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=name, marks=pytest.mark.slow if i else ())
        for i, (name, words) in enumerate(RECIPES.items())
    ],
)


class CutError(Exception):
    """What ends a run in the middle of an epoch."""


def cut(folder: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, *arguments: str, error: Any = CutError) -> Outcome:
    """Types a command whose run is ended after the first batch of an epoch (counted from 1)."""

    def stop(self: Clock, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == epoch - 1:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(Clock, "on_train_batch_end", stop)
        return typed(folder, *arguments)


def equal(first: Any, second: Any) -> bool:
    """Whether two nested states have the same bits."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second) and first.dtype == second.dtype
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def assert_the_same_run(first: Path, second: Path) -> None:
    for which in ("best", "last"):
        one, other = (torch.load(f / "checkpoints" / f"{which}.ckpt", weights_only=True) for f in (first, second))
        for part in (
            "epoch",
            "global_step",
            "state_dict",
            "optimizer_states",
            "lr_schedulers",
            "callbacks",
            "data_spec",
        ):
            assert equal(one[part], other[part]), f"{part} of {which}.ckpt"
    assert (first / "metrics.csv").read_text() == (second / "metrics.csv").read_text()
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    for result in results:
        del result["seconds"], result["samples_per_second"], result["resumed_at"]
    assert results[0] == results[1]


def scalars(folder: Path) -> dict[str, list[int]]:
    """The steps of each curve that TensorBoard shows; the clock's know nothing of an epoch's part before a resume."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("throughput/")]
    return {tag: [event.step for event in events.Scalars(tag)] for tag in tags}


# ---- equal to the uninterrupted run


@recipes
def test_a_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    command = (*words, "epochs=6", "threads=1")
    assert typed(tmp_path, *command, "hydra.run.dir=whole").code == 0
    cut(tmp_path, monkeypatch, 4, *command, "hydra.run.dir=cut")
    assert not (tmp_path / "cut" / "result.json").exists()
    outcome = typed(tmp_path, "resume=cut")
    assert outcome.folder == "cut", outcome.err
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")
    assert scalars(tmp_path / "cut") == scalars(tmp_path / "whole")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    outcome = typed(folder, "size=tiny", "epochs=6", "threads=1", "regularization=[dropout]", "hydra.run.dir=whole")
    assert outcome.folder == "whole", outcome.err
    return folder / "whole"


COMMAND = ("size=tiny", "epochs=6", "threads=1", "regularization=[dropout]")


@pytest.mark.slow
def test_a_run_may_be_cut_and_resumed_many_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    cut(tmp_path, monkeypatch, 2, *COMMAND, "hydra.run.dir=cut")
    for epoch in (3, 4, 6):
        cut(tmp_path, monkeypatch, epoch, "resume=cut")
    typed(tmp_path, "resume=cut")
    assert_the_same_run(whole, tmp_path / "cut")
    twice = {tag: steps for tag, steps in scalars(tmp_path / "cut").items() if max(Counter(steps).values()) > 1}
    assert twice == {}


@pytest.mark.slow
def test_a_run_resumes_from_another_folder_under_its_own_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    cut(tmp_path, monkeypatch, 4, *COMMAND, "hydra.run.dir=cut")
    torch.rand(17)  # whatever the process drew before
    (tmp_path / "elsewhere").mkdir()
    outcome = typed(tmp_path / "elsewhere", "resume=../cut")
    assert (tmp_path / "elsewhere" / outcome.folder).resolve() == tmp_path / "cut"
    assert_the_same_run(whole, tmp_path / "cut")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.slow
def test_a_run_resumes_from_one_of_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    cut(tmp_path, monkeypatch, 4, *COMMAND, "hydra.run.dir=cut")
    shutil.copy(tmp_path / "cut" / "checkpoints" / "last.ckpt", tmp_path / "cut" / "checkpoints" / "third.ckpt")
    cut(tmp_path, monkeypatch, 6, "resume=cut")
    typed(tmp_path, "resume=cut/checkpoints/third.ckpt")
    assert_the_same_run(whole, tmp_path / "cut")


SLOWED = """
import runpy, sys, time
from tunelab.callbacks import Objective
Objective.on_train_batch_end = lambda *_: time.sleep(0.01)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""A run of 60 epochs that takes 14 seconds at least, so that it does not end before what is to befall it."""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Begins a run in a process of its own and returns when it has a checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWED, str(REPOSITORY / "train.py"), *arguments, "hydra.run.dir=cut"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    began = time.monotonic()
    while not (folder / "cut" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - began < 600, "no checkpoint"
        time.sleep(0.005)
    return process


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=name, marks=() if name == "default" else pytest.mark.slow)
        for name, words in list(RECIPES.items())[:4]
    ],
)
def test_a_killed_run_equals_the_uninterrupted_one_when_it_is_resumed(tmp_path: Path, words: tuple[str, ...]) -> None:
    command = (*words, "epochs=60", "threads=1", "trainer.enable_progress_bar=false")
    process = start(tmp_path, *command)
    time.sleep(random.SystemRandom().uniform(0, 0.3))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 1 <= done < 60 * 23
    assert typed(tmp_path, *command, "hydra.run.dir=whole").code == 0
    assert typed(tmp_path, "resume=cut").folder == "cut"
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")
    twice = {tag: steps for tag, steps in scalars(tmp_path / "cut").items() if max(Counter(steps).values()) > 1}
    assert twice == {}


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_130_says_how_to_continue_and_that_works(tmp_path: Path) -> None:
    command = ("size=tiny", "epochs=60", "threads=1")
    process = start(tmp_path, *command)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "Interrupted. To continue: python train.py resume=cut" in said
    result = json.loads((tmp_path / "cut" / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert 0 <= result["epochs"] < 60
    assert result["steps"] >= 1
    assert typed(tmp_path, "resume=cut").folder == "cut"
    result = json.loads((tmp_path / "cut" / "result.json").read_text())
    assert (result["status"], result["epochs"]) == ("finished", 60)


# ---- what may change


@pytest.fixture
def finished(tmp_path: Path, whole: Path) -> Path:
    """A finished run of the test's own."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_a_finished_run_is_refused_unless_it_is_given_more_epochs(tmp_path: Path, finished: Path) -> None:
    text = refused(typed(tmp_path, "resume=run"), 1)
    assert "`resume` must have something left to do, but the run has ended after 6 epochs. " in text
    assert "To go on, add epochs=12." in text
    text = refused(typed(tmp_path, "resume=run", "epochs=4"), 1)
    assert "`epochs` must be more than the 6 that the run has behind it, got 4. Try epochs=12." in text
    assert json.loads((finished / "result.json").read_text())["epochs"] == 6


def test_a_refused_resume_leaves_the_folder_as_it_was(tmp_path: Path, finished: Path) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file() and p.name != "train.log"}
    typed(tmp_path, "resume=run")
    typed(tmp_path, "resume=run", "lr=3")
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file() and p.name != "train.log"} == before


def test_a_finished_run_goes_on_with_more_epochs_in_its_folder(tmp_path: Path, finished: Path) -> None:
    before = (finished / "metrics.csv").read_text().splitlines()
    assert typed(tmp_path, "resume=run", "epochs=8").folder == "run"
    result = json.loads((finished / "result.json").read_text())
    assert (result["status"], result["epochs"], result["epochs_asked"]) == ("finished", 8, 8)
    assert OmegaConf.load(finished / "config.yaml").epochs == 8
    after = (finished / "metrics.csv").read_text().splitlines()
    steps = [int(line.split(",")[0]) for line in after[1:]]
    assert steps == sorted(set(steps))  # no step twice
    assert steps[-1] == 8 * 23
    until = [line for line in before[1:] if int(line.split(",")[0]) < 6 * 23]
    assert after[1 : 1 + len(until)] == until


def test_a_longer_run_goes_on_at_the_lr_of_its_new_length(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    own = Clock.on_train_batch_end

    def noted(self: Clock, trainer: Any, *rest: Any) -> None:
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        own(self, trainer, *rest)

    monkeypatch.setattr(Clock, "on_train_batch_end", noted)
    assert typed(tmp_path, "resume=run", "epochs=12").folder == "run"
    assert rates[0] == pytest.approx(
        0.0005, rel=0.02
    )  # half way down the cosine of twelve epochs; six had ended in zero


def test_a_resume_does_not_ask_for_what_the_weights_began_with(tmp_path: Path) -> None:
    torch.save({"hidden1.bias": torch.ones(32)}, tmp_path / "weights.pt")
    words = ("init=pretrained", f"init.path='{tmp_path / 'weights.pt'}'", "init.strict=false", "size=tiny")
    assert typed(tmp_path, *words, "epochs=2", "threads=1", "hydra.run.dir=run").folder == "run"
    (tmp_path / "weights.pt").unlink()
    assert typed(tmp_path, "resume=run", "epochs=3").folder == "run"


def test_a_run_that_was_changed_on_the_way_is_not_repeated_but_begun_anew(tmp_path: Path, finished: Path) -> None:
    typed(tmp_path, "resume=run", "epochs=8")  # the first epochs followed another schedule than the last
    text = refused(typed(tmp_path, "repeat=run"), 1)
    assert "`repeat` must name a run of one recipe, but run was changed when it was resumed." in text
    assert re.search(r"To begin anew with what it ended with, type: python train\.py .*epochs=8", text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("threads=2",),
        ("callbacks=[checkpoint]",),
        ("callbacks.checkpoint.every_seconds=2.0",),
        ("logger=[csv]",),
        ("trainer.log_every_n_steps=5",),
        ("trainer=cpu", "callbacks=[checkpoint,lr]", "logger=[tensorboard]"),
    ],
)
def test_what_does_not_change_the_recipe_may_change_on_a_resume(
    tmp_path: Path, finished: Path, words: tuple[str, ...]
) -> None:
    before = OmegaConf.load(finished / "config.yaml")
    outcome = typed(tmp_path, "resume=run", "epochs=8", *words)
    assert outcome.folder == "run", outcome.err
    after = OmegaConf.load(finished / "config.yaml")
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= {"epochs", "trainer", words[0].split("=")[0].split(".")[0], "callbacks", "logger"}
    assert after.task == before.task
    for word in words:
        key, value = word.split("=")
        if key in ("threads", "trainer.log_every_n_steps", "callbacks.checkpoint.every_seconds"):
            assert OmegaConf.select(after, key) == float(value)
        elif key in ("callbacks", "logger"):
            assert list(after[key]) == value.strip("[]").split(",")


@pytest.mark.parametrize(
    "word", ["lr=0.1", "optimizer=sgd", "seed=1", "size.width=64", "data=diabetes", "regularization=[l1]", "model=cnn"]
)
def test_what_changes_the_recipe_is_refused_with_the_command_for_a_new_run(
    tmp_path: Path, finished: Path, word: str
) -> None:
    text = refused(typed(tmp_path, "resume=run", word), 1)
    allowed = "epochs, threads, callbacks, logger, profiler, trainer"
    assert f"`resume` must keep the recipe but for {allowed}, got {word}." in text
    command = shlex.split(re.findall(r"type: python train\.py (.*)$", text, flags=re.MULTILINE)[0])
    recorded = json.loads((finished / "run.json").read_text())["overrides"]
    assert command == [*(other for other in recorded if other.split("=")[0] != word.split("=")[0]), word]


# ---- checkpoints that will not do


@pytest.mark.parametrize(
    "content", ["half", *(pytest.param(c, marks=pytest.mark.slow) for c in ("empty", "text", "foreign"))]
)
def test_a_damaged_checkpoint_is_refused_with_the_other_one(tmp_path: Path, finished: Path, content: str) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    whole_bytes = last.read_bytes()
    last.unlink()  # it may be the same file as best.ckpt
    if content == "foreign":
        torch.save({"weights": torch.zeros(1)}, last)
    else:
        last.write_bytes({"empty": b"", "half": whole_bytes[: len(whole_bytes) // 2], "text": b"hello"}[content])
    text = refused(typed(tmp_path, "resume=run", "epochs=8"), 1)
    assert re.search(r"`resume` must be a whole checkpoint, got run/checkpoints/last\.ckpt: \S.*", text)
    assert "Try resume=run/checkpoints/best.ckpt." in text
    outcome = typed(tmp_path, "resume=run/checkpoints/best.ckpt", "epochs=8")
    assert outcome.folder == "run", outcome.err


def test_one_flipped_bit_in_a_checkpoint_is_found(tmp_path: Path, finished: Path) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    last.unlink()
    last.write_bytes(damaged)
    text = refused(typed(tmp_path, "resume=run", "epochs=8"), 1)
    assert "`resume` must be a whole checkpoint, got run/checkpoints/last.ckpt" in text


def test_a_checkpoint_of_another_model_is_refused_with_the_keys_that_differ(tmp_path: Path, finished: Path) -> None:
    assert typed(tmp_path, "size=small", "epochs=1", "hydra.run.dir=other").code == 0
    last = finished / "checkpoints" / "last.ckpt"
    last.unlink()
    shutil.copy(tmp_path / "other" / "checkpoints" / "last.ckpt", last)
    text = refused(typed(tmp_path, "resume=run", "epochs=8"), 1)
    assert "last.ckpt must be of this model, but model.hidden2.weight is not in the model" in text
    assert "Name the folder of the run that wrote it." in text


@pytest.mark.slow
def test_a_checkpoint_of_the_same_layers_with_other_shapes_is_refused_with_both(tmp_path: Path, finished: Path) -> None:
    assert typed(tmp_path, "size=tiny", "size.width=48", "epochs=1", "hydra.run.dir=other").code == 0
    last = finished / "checkpoints" / "last.ckpt"
    last.unlink()
    shutil.copy(tmp_path / "other" / "checkpoints" / "last.ckpt", last)
    text = refused(typed(tmp_path, "resume=run", "epochs=8"), 1)
    assert "model.hidden1.weight has shape (48, 64), not (32, 64)" in text


@pytest.mark.slow
def test_a_resume_that_needs_a_checkpoint_that_was_never_kept_leaves_the_run_alone(tmp_path: Path) -> None:
    typed(tmp_path, "size=tiny", "epochs=1", "callbacks=[]", "hydra.run.dir=bare")
    before = {p: p.read_bytes() for p in (tmp_path / "bare").rglob("*") if p.is_file() and p.name != "train.log"}
    text = refused(typed(tmp_path, "resume=bare", "epochs=2"), 1)
    assert "`resume` must be a run with its last.ckpt, got bare. This run left none. Train it with callbacks=[" in text
    assert {p: p.read_bytes() for p in before if p.exists()} == before
