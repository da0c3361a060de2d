"""A run's folder: written whole or not at all, claimed by one run, found again."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import DictConfig

from tunelab.config import validate
from tunelab.errors import ConfigError
from tunelab.folder import RunFolder, claim, discard, write_atomic, write_json

RECORD = {"command": "python train.py lr=0.1", "overrides": ["lr=0.1"], "choices": {}}


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, "old")
    write_atomic(target, "größe")
    assert target.read_text(encoding="utf-8") == "größe"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_content_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_written_with_a_last_newline_and_reads_back(tmp_path: Path) -> None:
    values = {"a": [1, 2.5, None], "b": {"c": "d"}}
    write_json(tmp_path / "a.json", values)
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == values


def test_a_claimed_folder_is_new_and_numbered_when_it_is_taken(tmp_path: Path) -> None:
    wanted = tmp_path / "deep" / "run"
    assert [claim(wanted) for _ in range(3)] == [wanted, wanted.with_name("run-2"), wanted.with_name("run-3")]


def test_claims_at_the_same_time_get_a_folder_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(claim, [tmp_path / "run"] * 64))
    assert len(set(folders)) == 64
    assert {p.name for p in tmp_path.iterdir()} == {folder.name for folder in folders}


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sentence = f"`hydra.run.dir` must be a folder that can be written, got {tmp_path}/file/run (Not a directory)."
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        claim(tmp_path / "file" / "run")


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=re.escape(f"got the file {tmp_path}/file. Choose another.")):
        claim(tmp_path / "file")


def test_a_discarded_run_takes_what_is_empty_above_it_along_but_nothing_that_holds_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    first, second, outside = here / "outputs" / "a" / "1", here / "outputs" / "b" / "1", tmp_path / "away" / "1"
    for folder in (first, second, outside):
        folder.mkdir(parents=True)
        (folder / "train.log").touch()
    discard(first)
    assert sorted(tmp_path.rglob("*")) == [
        *(tmp_path / "away", outside, outside / "train.log", here, here / "outputs", here / "outputs" / "b", second),
        second / "train.log",
    ]
    discard(second)
    discard(outside)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "away", here]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("lr: 0.1\n")
    (folder / "run.json").write_text(json.dumps(RECORD))
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"x")
    return folder


def test_a_run_is_found_by_its_folder_or_by_a_checkpoint_in_it(run: Path) -> None:
    for given in (run, str(run), run / "checkpoints" / "last.ckpt"):
        assert RunFolder.find(given, "resume").path == run


def test_a_run_says_its_config_record_and_result(run: Path) -> None:
    found = RunFolder.find(run, "run")
    assert (found.config.lr, found.record, found.result) == (0.1, RECORD, {})
    write_json(run / "result.json", {"status": "finished"})
    assert found.result == {"status": "finished"}


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(run: Path) -> None:
    assert RunFolder(run).checkpoint("last") == run / "checkpoints" / "last.ckpt"
    match = r"`checkpoint` must be one that .*run has, got best\. It has last\. Try checkpoint=last\."
    with pytest.raises(ConfigError, match=match):
        RunFolder(run).checkpoint("best")
    (run / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"got last\. This run left none\. Train it with callbacks=\[checkpoint\]\."):
        RunFolder(run).checkpoint("last")


@pytest.mark.parametrize(
    ("recorded", "changes", "words"),
    [
        (["optimizer=sgd", "lr=10", "epochs=3"], ["lr=0.01"], ["optimizer=sgd", "epochs=3", "lr=0.01"]),
        (["optimizer=sgd"], [], ["optimizer=sgd"]),
        (["+model.depth=2", "lr=1"], ["model.depth=3"], ["+model.depth=2", "lr=1", "model.depth=3"]),
        (["~trainer", "name=it's"], ["trainer=cpu"], ["name=it's", "trainer=cpu"]),
        (["init=normal", "init.std=1"], ["init=lsuv"], ["init=lsuv"]),  # which has no such key
        (["loss.gamma=1"], ["loss=[focal]"], ["loss.gamma=1", "loss=[focal]"]),  # of a list, whose members may be there
    ],
)
def test_the_command_for_a_new_run_has_each_key_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, recorded: list[str], changes: list[str], words: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    write_json(run / "run.json", {**RECORD, "overrides": recorded})
    assert shlex.split(RunFolder(run).command(*changes)) == ["python", "train.py", *words]


def test_a_run_that_found_its_lr_can_be_begun_anew_with_another(
    run: Path, monkeypatch: pytest.MonkeyPatch, compose: Callable[..., DictConfig]
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    write_json(run / "run.json", {**RECORD, "overrides": ["find_lr=true", "epochs=3"]})
    _, _, *words = shlex.split(RunFolder(run).command("lr=0.01"))
    assert words == ["epochs=3", "lr=0.01"]
    validate(compose(*words), [word.split("=")[0] for word in words])
    assert "find_lr=true" in RunFolder(run).command("epochs=4")


def test_a_resume_without_the_last_checkpoint_is_told_which_to_name(run: Path) -> None:
    (run / "checkpoints" / "last.ckpt").rename(run / "checkpoints" / "best.ckpt")
    shutil.copy(run / "checkpoints" / "best.ckpt", run / "checkpoints" / "previous.ckpt")
    with pytest.raises(ConfigError) as refused:
        RunFolder(run).checkpoint("last", "resume")
    assert str(refused.value) == (
        f"`resume` must be a run with its last.ckpt, got {run}. It has best, previous. "
        f"Try resume={run}/checkpoints/previous.ckpt."
    )


@pytest.mark.parametrize("missing", ["config.yaml", "run.json"])
def test_a_folder_without_its_record_is_no_run(run: Path, missing: str) -> None:
    (run / missing).unlink()
    with pytest.raises(ConfigError, match=r"`repeat` must be a run's folder with its config\.yaml and run\.json, got"):
        RunFolder.find(run, "repeat")


def test_where_no_run_was_made_the_remedy_is_to_train_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"got nowhere, which does not exist\. Train one first: python train\.py"):
        RunFolder.find("nowhere", "resume")


@pytest.mark.parametrize("content", ["{", "[1, 2]"])
def test_a_damaged_record_is_refused_in_words(run: Path, content: str) -> None:
    (run / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=r"run\.json"):
        _ = RunFolder.find(run, "repeat").record


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n"])
def test_a_damaged_config_is_refused_in_words(run: Path, content: str) -> None:
    (run / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        _ = RunFolder.find(run, "repeat").config
