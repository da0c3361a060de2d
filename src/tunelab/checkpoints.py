"""How checkpoints are written and read: whole or not at all, without executing code."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tunelab.errors import ConfigError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: a kill or a full disk leaves the former one whole.

    (Lightning's own goes through the system's temporary folder, and copies from there if that is another disk.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        target = Path(path)
        aside = target.with_name(f".{target.name}.aside")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, aside)
            aside.replace(target)
        except (OSError, RuntimeError) as error:  # torch's writer has no error of its own for a full disk
            aside.unlink(missing_ok=True)
            free = shutil.disk_usage(target.parent).free / 1e6
            reason = getattr(error, "strerror", None) or f"the disk has {free:.1f} MB left"
            if target.is_file():
                remedy = f"The former one is whole. Make room, then type: python train.py resume={target.parent.parent}"
            else:
                remedy = "No former one is there. Make room, or choose another disk with hydra.run.dir=…"
            raise ConfigError(f"The checkpoint {target} could not be written: {reason}. {remedy}") from error


def read_checkpoint(path: Path, key: str) -> dict[str, Any]:
    """A checkpoint's content, loaded without executing code.

    Args:
        path: The file.
        key: What the user typed it for, for the message.

    Raises:
        ConfigError: If it is not a whole checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as records:
            if damaged := records.testzip():  # each record carries a CRC-32, which torch.load does not look at
                raise ValueError(f"its checksum is wrong in {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not {"state_dict", "data_spec", "epoch", "global_step"} <= set(content):
            raise ValueError("it was not written by a run of this framework")
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        others = sorted(str(p) for p in path.parent.glob("*.ckpt") if p != path)
        remedy = f" Try {key}={others[0]}." if others else ""
        raise ConfigError(f"`{key}` must be a whole checkpoint, got {path}: {reason}.{remedy}") from None
    assert isinstance(content, dict)
    return content
