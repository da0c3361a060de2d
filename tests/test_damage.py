"""A checkpoint of which anything is damaged or missing is refused, with the last good one beside it."""

from __future__ import annotations

import json
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_command import Outcome, refused, typed

import tunelab
from tunelab.checkpoints import read_checkpoint
from tunelab.errors import ConfigError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("iris")
    words = ("data=iris", "size=tiny", "epochs=4", "threads=1", "callbacks.checkpoint.every_seconds=0")
    assert typed(folder, *words, "hydra.run.dir=run").code == 0
    return folder / "run"


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A finished run of the test's own whose best checkpoint is the last, as two names of a file."""
    run = Path(shutil.copytree(original, tmp_path / "run"))
    (run / "checkpoints" / "best.ckpt").unlink()
    (run / "checkpoints" / "best.ckpt").hardlink_to(run / "checkpoints" / "last.ckpt")
    return run


@pytest.fixture
def alone(original: Path, tmp_path: Path) -> Path:
    """A checkpoint without others beside it."""
    return Path(shutil.copy(original / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt"))


def test_the_last_two_states_are_files_of_their_own(original: Path) -> None:
    last, previous = (original / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    assert last.stat().st_ino != previous.stat().st_ino
    steps = [read_checkpoint(path, "resume")["global_step"] for path in (previous, last)]
    assert steps == sorted(set(steps))


def test_a_flipped_bit_is_found_wherever_it_is(alone: Path) -> None:
    content = alone.read_bytes()
    draw = random.Random(0)
    places = [*range(100), *range(len(content) - 100, len(content)), *draw.choices(range(len(content)), k=300)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        alone.write_bytes(damaged)
        with pytest.raises(ConfigError, match=re.escape(f"`resume` must be a whole checkpoint, got {alone}: it")):
            read_checkpoint(alone, "resume")
    alone.write_bytes(content)
    assert read_checkpoint(alone, "resume")["global_step"] == 8


def test_a_checkpoint_cut_short_at_any_length_is_refused(alone: Path) -> None:
    content = alone.read_bytes()
    for length in [*range(40), *random.Random(1).choices(range(len(content)), k=50), *range(len(content))[-40:]]:
        alone.write_bytes(content[:length])
        with pytest.raises(ConfigError, match=re.escape(f"`resume` must be a whole checkpoint, got {alone}: it")):
            read_checkpoint(alone, "resume")


@pytest.mark.parametrize("tail", [1, 14, 100, 4096])
def test_zeros_where_the_end_should_be_are_found(alone: Path, tail: int) -> None:
    content = alone.read_bytes()
    for damaged in (content[:-tail] + bytes(tail), content + bytes(tail)):  # as some file systems leave after a crash
        alone.write_bytes(damaged)
        with pytest.raises(ConfigError, match="it"):
            read_checkpoint(alone, "resume")


def test_a_whole_file_of_another_kind_is_refused_without_running_what_is_in_it(alone: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return Path.touch, (tmp_path / "harm",)  # type: ignore[return-value]

    for content in ({"state_dict": Harmful()}, {"weights": torch.ones(2)}, [1, 2]):
        torch.save(content, alone)
        with pytest.raises(ConfigError, match="`resume` must be a whole checkpoint"):
            read_checkpoint(alone, "resume")
    with zipfile.ZipFile(alone, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ConfigError, match="`resume` must be a whole checkpoint"):
        read_checkpoint(alone, "resume")
    assert not (tmp_path / "harm").exists()


def flip(path: Path) -> None:
    """Damages a file in its place, so under all its names."""
    with path.open("r+b") as file:
        file.seek(2000)
        byte = file.read(1)
        file.seek(2000)
        file.write(bytes([byte[0] ^ 4]))


def test_a_resume_names_the_newest_good_one_and_it_works(tmp_path: Path, run: Path) -> None:
    flip(run / "checkpoints" / "last.ckpt")
    step = read_checkpoint(run / "checkpoints" / "previous.ckpt", "resume")["global_step"]
    text = refused(typed(tmp_path, "resume=run", "epochs=6"), 1)
    remedy = f"The last good one is of step {step}. Try resume=run/checkpoints/previous.ckpt."
    assert f"got run/checkpoints/last.ckpt: its checksum is wrong: some of it is damaged. {remedy}" in text
    assert typed(tmp_path, "resume=run/checkpoints/previous.ckpt", "epochs=6").folder == "run"
    assert json.loads((run / "result.json").read_text())["epochs"] == 6


def test_of_several_good_ones_the_newest_is_named(tmp_path: Path, run: Path, original: Path) -> None:
    folder = run / "checkpoints"
    (folder / "best.ckpt").unlink()
    shutil.copy(original / "checkpoints" / "last.ckpt", folder / "best.ckpt")  # newer than the previous one
    flip(folder / "last.ckpt")
    text = refused(typed(tmp_path, "resume=run", "epochs=6"), 1)
    assert "The last good one is of step 8. Try resume=run/checkpoints/best.ckpt." in text


def used(folder: Path, how: str, *words: str) -> Outcome:
    rows = pd.DataFrame(torch.rand(3, 4).numpy(), columns=list(tunelab.load(folder / "whole").spec.feature_names))
    rows.to_csv(folder / "rows.csv", index=False)
    given = ("input=rows.csv",) if how == "predict" else ()
    return typed(folder, "run=run", *given, *words, script=f"scripts/{how}.py")


@pytest.mark.parametrize("how", ["evaluate", "predict"])
def test_a_tool_that_meets_a_damaged_checkpoint_names_one_that_it_takes(
    tmp_path: Path, run: Path, original: Path, how: str
) -> None:
    (tmp_path / "whole").symlink_to(original)
    flip(run / "checkpoints" / "best.ckpt")
    for words in ((), ("checkpoint=last",)):
        text = refused(used(tmp_path, how, *words), 1)
        assert "`checkpoint` must be a whole checkpoint, got run/checkpoints/" in text
        assert re.search(r"The last good one is of step \d+\. Try checkpoint=previous\.", text)
    assert used(tmp_path, how, "checkpoint=previous").code == 0


def test_where_no_checkpoint_is_whole_nothing_is_named(tmp_path: Path, run: Path) -> None:
    for path in (run / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"")
    text = refused(typed(tmp_path, "resume=run", "epochs=6"), 1)
    assert text.strip().endswith("got run/checkpoints/last.ckpt: it is empty.")
