"""How checkpoints are written and read: whole or not at all, with a checksum, without executing code."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tunelab.errors import ConfigError, RunFailed, as_typed, program
from tunelab.folder import CHECKPOINTS, no_room

END_RECORD = b"PK\x05\x06"
"""How the last 22 bytes of a zip archive without a comment begin; the last two are the length of the comment."""

CHECKSUM = re.compile(rb"crc32 ([0-9a-f]{8})")
CHECKSUM_BYTES = 14
PIECE_BYTES = 2**20

ENTRIES = {"state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops", "epoch", "global_step"}
OF_OUR_TASKS = {"data_spec", "scored_weights", "unwritten"}
"""What they add; a task of the user's own may be without."""

NEARLY_FULL_BYTES = 2**30
REMEDIES = {
    errno.EFBIG: "Raise what the system allows for a file (ulimit -f)",
    errno.EDQUOT: "Make room in your quota",
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: a kill or a full disk leaves the former one whole.

    (Lightning's own goes through the system's temporary folder, and copies from there if that is another disk.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        target = Path(path)
        aside = target.with_name(f".{target.name.strip('.')}.aside")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, aside)
            with aside.open("r+b") as file:
                _append_checksum(file)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:  # torch's writer has no error of its own for a full disk
            reason = error if isinstance(error, OSError) else _of_the_system(aside) or error
            aside.unlink(missing_ok=True)
            named = target.with_name(target.name.strip(".").removesuffix(".new"))
            raise RunFailed(not_written(target.parent.parent, reason, named)) from error


def _of_the_system(path: Path) -> OSError | None:
    """Why no more can be written to a file; None if more can."""
    try:
        with path.open("ab") as file:
            file.write(bytes(PIECE_BYTES))
    except OSError as error:
        return error
    return None


def _append_checksum(file: BinaryIO) -> None:
    """Gives a zip archive a comment with the CRC-32 of all that stands before it, which zip's readers pass over."""
    end = file.seek(-22, os.SEEK_END)
    assert file.read(4) == END_RECORD
    file.seek(end + 20)
    file.write(CHECKSUM_BYTES.to_bytes(2, "little"))
    checksum = _checksum(file, end + 22)
    file.seek(0, os.SEEK_END)
    file.write(b"crc32 %08x" % checksum)


def _checksum(file: BinaryIO, size: int) -> int:
    file.seek(0)
    checksum = 0
    while size and (piece := file.read(min(size, PIECE_BYTES))):
        checksum = zlib.crc32(piece, checksum)
        size -= len(piece)
    return checksum


def _sync_folder(folder: Path) -> None:
    """Makes a rename outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_full_in_words(folder: Path) -> Iterator[None]:
    """What a run does in it ends with a sentence where there is no room for what it writes.

    Args:
        folder: The run's folder.

    Raises:
        RunFailed: If the disk, the quota or what the system allows for a file is used up.
    """
    shown = threading.excepthook

    def show(args: threading.ExceptHookArgs) -> None:
        if not no_room(args.exc_value):  # TensorBoard's thread hands it on to whoever writes next
            shown(args)

    threading.excepthook = show
    try:
        yield
    except OSError as error:
        if not no_room(error):
            raise
        raise RunFailed(not_written(folder, error)) from error
    finally:
        threading.excepthook = shown


def not_written(folder: Path, error: Exception, file: Path | None = None) -> str:
    """The sentence for a run that cannot write, and what is left of it.

    Args:
        folder: The run's folder.
        error: Why it could not.
        file: What it could not write, where the error does not say.
    """
    free = shutil.disk_usage(folder).free
    code = error.errno if isinstance(error, OSError) else None
    named = file or (isinstance(error, OSError) and error.filename)
    what = as_typed(Path(named)) if named else f"into {as_typed(folder)}"
    reason = (isinstance(error, OSError) and error.strerror) or (str(error).splitlines() or [type(error).__name__])[0]
    short = code == errno.ENOSPC or free < NEARLY_FULL_BYTES
    mend = REMEDIES.get(code or 0, "Make room" if short else "Mend that")
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        remedy = f"{as_typed(last)} is whole. {mend}, then type: {program()} resume={shlex.quote(as_typed(folder))}"
    else:
        remedy = f"There is no checkpoint yet. {mend}, or choose another disk with hydra.run.dir=…"
    return f"The run could not write {what}: {reason}; {free / 1e9:.1f} GB of the disk are free. {remedy}"


def read_checkpoint(path: Path, key: str) -> dict[str, Any]:
    """A checkpoint's content, loaded without executing code.

    Args:
        path: The file.
        key: What the user typed it for, for the message.

    Raises:
        ConfigError: If it is not a whole checkpoint, with the newest beside it that is.
    """
    try:
        return _read(path)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"`{key}` must be a whole checkpoint, got {path}: {reason}.{_remedy(path, key)}") from None


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint's content.

    Raises:
        Exception: Of any kind, if it is not whole.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise ValueError("it is empty")
        file.seek(max(0, size - CHECKSUM_BYTES))
        said = CHECKSUM.fullmatch(file.read())
        if said is None:
            raise ValueError("its end, with the checksum, is missing or damaged")
        if _checksum(file, size - CHECKSUM_BYTES) != int(said[1], 16):
            raise ValueError("its checksum is wrong: some of it is damaged")
    content = torch.load(path, map_location="cpu", weights_only=True)
    wanted = ENTRIES if OF_OUR_TASKS.isdisjoint(content) else ENTRIES | OF_OUR_TASKS
    if missing := sorted(wanted - set(content)):
        raise ValueError(f"it was not written by a run of this framework, as it has no {', '.join(missing)}")
    assert isinstance(content, dict)
    return content


def _remedy(path: Path, key: str) -> str:
    """Which checkpoint of the same folder is whole; the newest of several."""
    whole: dict[int, Path] = {}
    for other in sorted(path.parent.glob("*.ckpt")):
        if key != "resume" and other.stem not in CHECKPOINTS:  # which a tool does not take
            continue
        try:
            whole.setdefault(_read(other)["global_step"], other)
        except Exception:
            continue
    if not whole:
        return ""
    step, newest = max(whole.items())
    return f" The last good one is of step {step}. Try {key}={newest if key == 'resume' else newest.stem}."


def epochs_done(content: dict[str, Any]) -> int:
    """The whole epochs behind a checkpoint, their validations included."""
    return int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
