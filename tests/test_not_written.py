"""A run that cannot write says why in the system's words, what is left of it, and what to type."""

import errno
import os
import resource
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from tunelab import checkpoints
from tunelab.checkpoints import AtomicCheckpointIO, not_written
from tunelab.errors import RunFailed

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder with a checkpoint, below where the user stands, on a disk with room."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: Usage(10**11, 0, 74_653_500_000))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    return tmp_path / "run"


def test_a_limit_for_a_file_is_not_called_a_full_disk(run: Path) -> None:
    file = run / "checkpoints" / ".best.ckpt.new"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunFailed) as failed:
            AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(10**5)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(failed.value) == (
        "The run could not write run/checkpoints/best.ckpt: File too large; 74.7 GB of the disk are free. "
        "run/checkpoints/last.ckpt is whole. Raise what the system allows for a file (ulimit -f), then type: "
        "python train.py resume=run"
    )
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("code", "free", "mend"),
    [
        (errno.ENOSPC, 10**7, "Make room, then type:"),
        (errno.EIO, 10**7, "Make room, then type:"),
        (errno.EDQUOT, 10**11, "Make room in your quota, then type:"),
        (errno.EIO, 10**11, "Mend that, then type:"),
    ],
)
def test_room_is_asked_for_where_it_is_short(
    run: Path, monkeypatch: pytest.MonkeyPatch, code: int, free: int, mend: str
) -> None:
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: Usage(10**12, 0, free))
    text = not_written(run, OSError(code, os.strerror(code), str(run / "metrics.csv")))
    assert text.startswith(f"The run could not write run/metrics.csv: {os.strerror(code)}; {free / 1e9:.1f} GB of")
    assert f"is whole. {mend} python train.py resume=run" in text


def test_without_a_checkpoint_another_disk_is_the_way(run: Path) -> None:
    (run / "checkpoints" / "last.ckpt").unlink()
    text = not_written(run, OSError(errno.ENOSPC, "No space left on device"))
    assert text == (
        "The run could not write into run: No space left on device; 74.7 GB of the disk are free. "
        "There is no checkpoint yet. Make room, or choose another disk with hydra.run.dir=…"
    )
