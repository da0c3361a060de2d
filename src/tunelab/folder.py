"""A run's folder: what it holds, how it is written so that a kill leaves it whole, how it is found again. No torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from tunelab.errors import ConfigError, training

CHECKPOINTS = ["best", "last", "previous"]
"""What a run keeps in `checkpoints/`; the previous one is the last but one."""

FACTS = "facts.json"
"""What a run notes of its data and its first step."""


def write_atomic(path: Path, text: str) -> None:
    """Writes a file so that a reader or a kill sees the old content or the new, never a part."""
    aside = path.with_name(f".{path.name}.aside")  # the same each time: what a kill left is written over
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a mapping as indented JSON, atomically."""
    write_atomic(path, json.dumps(values, indent=2) + "\n")


def claim(wanted: Path) -> Path:
    """Makes a new folder of this name, or of this name with a number behind it if two runs begin in the same second.

    Raises:
        ConfigError: If the folder cannot be written.
    """
    for number in range(1, 1000):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if path.is_dir():
                continue
            raise ConfigError(f"`hydra.run.dir` must be a folder, got the file {path}. Choose another.") from None
        except OSError as error:
            raise ConfigError(unwritable(path, error)) from None
        return path
    raise ConfigError(f"`name` must lead to a new folder, got {wanted}, of which 999 exist. Choose another name=.")


def discard(folder: Path) -> None:
    """Removes the folder of a run that did not begin, and what is empty above it up to where the user stands."""
    shutil.rmtree(folder)
    for parent in folder.parents:
        if not parent.is_relative_to(Path.cwd()) or parent == Path.cwd():
            return
        try:
            parent.rmdir()
        except OSError:  # it holds something
            return


@contextlib.contextmanager
def in_use(folder: Path, key: str) -> Iterator[None]:
    """Keeps a run's folder to this process while it trains there; the system lets go of it however the process ends.

    Where files cannot be locked nothing is kept. A POSIX lock, which workers that this process forks do not hold on to.

    Args:
        folder: The run's folder, which exists.
        key: What the user typed it for, for the message.

    Raises:
        ConfigError: If another process has it.
    """
    path = folder / ".lock"
    file = _locked(path, key)
    try:
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)  # while it is still ours: nobody else can have locked this file
            file.close()


def _locked(path: Path, key: str) -> TextIO | None:
    """The file, open and locked by this process; None where that is not possible."""
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError:
            return None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}")
                file.flush()
                return file
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise ConfigError(
                f"`{key}` must be a folder in which no other run is going on, got {path.parent}, which is in use by "
                f"{holder}. Wait for it, or end it."
            ) from None
        except FileNotFoundError:
            pass  # its owner removed it between our open and our lock
        except OSError:
            file.close()
            return None
        file.close()


def no_room(error: BaseException | None) -> bool:
    """Whether the disk, the quota or what the system allows for a file is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def unwritable(path: Path, error: OSError) -> str:
    """The sentence for a folder that cannot be written."""
    return (
        f"`hydra.run.dir` must be a folder that can be written, got {path} ({error.strerror}). "
        "Try hydra.run.dir=/tmp/my_run."
    )


@dataclass(frozen=True)
class RunFolder:
    """What a finished or interrupted run left behind."""

    path: Path

    @classmethod
    def find(cls, path: str | Path, key: str) -> RunFolder:
        """The run folder at a path, or the one that holds a checkpoint.

        Args:
            path: A run folder, or a checkpoint inside one.
            key: What the user typed it for, for the message.

        Raises:
            ConfigError: If there is none.
        """
        given = Path(path).expanduser()
        is_checkpoint = given.is_file() and given.suffix == ".ckpt" and key != "run"
        folder = given.parent.parent if is_checkpoint else given
        if not given.exists():
            raise ConfigError(f"`{key}` must be a run's folder, got {given}, which does not exist.{_recent_runs()}")
        if not (folder / "config.yaml").is_file() or not (folder / "run.json").is_file():
            raise ConfigError(
                f"`{key}` must be a run's folder with its config.yaml and run.json, got {given}.{_recent_runs()}"
            )
        return cls(folder)

    @property
    def config(self) -> DictConfig:
        """The resolved config of the run."""
        try:
            cfg = OmegaConf.load(self.path / "config.yaml")
        except (OSError, ValueError, YAMLError) as error:
            raise ConfigError(_damaged(self.path / "config.yaml", str(error))) from None
        if not isinstance(cfg, DictConfig):
            raise ConfigError(_damaged(self.path / "config.yaml", "it has no keys"))
        return cfg

    @property
    def record(self) -> dict[str, Any]:
        """How the run was started: command, overrides, choices, versions, machine, code."""
        record = self._json("run.json")
        if missing := [key for key in ("command", "overrides", "choices") if key not in record]:
            raise ConfigError(_damaged(self.path / "run.json", f"it has no {', '.join(missing)}"))
        for key, kind in (("command", str), ("choices", dict), ("overrides", list), ("resumes", list)):
            value, each = record.get(key, kind()), dict if key == "resumes" else str
            if not isinstance(value, kind) or (kind is list and not all(isinstance(item, each) for item in value)):
                raise ConfigError(_damaged(self.path / "run.json", f"it has {key}: {json.dumps(value)}"))
        return record

    @property
    def result(self) -> dict[str, Any]:
        """What the run ended with; empty while it has not ended."""
        return self._json("result.json") if (self.path / "result.json").is_file() else {}

    @property
    def facts(self) -> dict[str, Any]:
        """What the run noted of its data and its first step; empty before its first step."""
        return self._json(FACTS) if (self.path / FACTS).is_file() else {}

    @property
    def last_result(self) -> dict[str, Any]:
        """The same, also while a resume, which has put it away into its record, goes on."""
        resumes = self.record.get("resumes") or [{}]
        return self.result or resumes[-1].get("result_before", {})

    def command(self, *changes: str) -> str:
        """What to type for a new run of its recipe, each key once.

        Args:
            changes: Overrides that take the place of its own, such as lr=0.01.
        """
        new = {change.split("=")[0].lstrip("+~"): change for change in changes}
        kept = []
        for override in self.record["overrides"]:
            key = override.split("=")[0].lstrip("+~")
            if key == "find_lr" and "lr" in new:  # a run is told its lr, or finds it
                continue
            option = new.get(key.split(".")[0], "=[").partition("=")[2]
            if "." in key and not option.startswith("["):  # of an option that another takes the place of
                continue
            instead = new.get(key)
            # an added key must be there for its value to be changed
            if instead is None or (override.startswith("+") and not instead.startswith("+")):
                kept.append(override)
        return shlex.join([*training().split(), *kept, *new.values()])

    def checkpoint(self, which: str = "best", key: str = "checkpoint") -> Path:
        """The path of the `best`, the `last` or the `previous` checkpoint.

        Args:
            which: Its name.
            key: What the user typed it for, for the message.

        Raises:
            ConfigError: If the run does not have it, with one that it has.
        """
        path = self.path / "checkpoints" / f"{which}.ckpt"
        if path.is_file():
            return path
        there = [name for name in CHECKPOINTS if path.with_stem(name).is_file()]
        remedy = "This run left none. Train it with callbacks=[checkpoint]."
        if there:
            instead = shlex.quote(str(path.with_stem(there[-1]))) if key == "resume" else there[0]
            remedy = f"It has {', '.join(there)}. Try {key}={instead}."
        rule = f"a run with its {which}.ckpt, got" if key == "resume" else "one that"
        got = "" if key == "resume" else f" has, got {which}"
        raise ConfigError(f"`{key}` must be {rule} {self.path}{got}. {remedy}")

    def _json(self, name: str) -> dict[str, Any]:
        try:
            values = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(_damaged(self.path / name, str(error))) from None
        if not isinstance(values, dict):
            raise ConfigError(_damaged(self.path / name, "it has no keys"))
        return values


def _damaged(path: Path, reason: str) -> str:
    first, *_ = reason.splitlines() or [""]
    return f"`{path}` must be as the run wrote it, but cannot be read: {first}. Name the folder of another run."


def _recent_runs() -> str:
    """The newest run folders below outputs/, as a hint."""
    timed = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
    runs = [p.parent for p in Path("outputs").glob("*/*/run.json") if timed.match(p.parent.name)]
    newest = sorted(runs, key=lambda p: p.name)[-1:]
    return f" The newest is {newest[0]}." if newest else " Train one first: python train.py"
