"""Several processes that train one model: this one is rank 0 and starts the others from the recorded recipe.

Lightning's own launcher would run the command line again in each of them, which in a sweep is the whole sweep.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch.distributed

from tunelab.errors import ConfigError

log = logging.getLogger("tunelab")

SECONDS_TO_END = 10.0
SECONDS_BETWEEN_LOOKS = 0.2
SHOWN_LINES = 10
"""Of the log of a process that failed: the end of its traceback, where the user's own code is."""


def rank() -> int:
    """Which process of a run this is; 0 leads and is the only one that writes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def for_run(cfg: Any, folder: Path, checkpoint: Path | None) -> Any:
    """The context in which a recipe is fitted: with other ranks if it asks for several, unless this is one of them.

    Raises:
        ConfigError: If another program has started this process as one of several.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("`trainer` must be started once: it starts its processes itself. Type python, not torchrun.")
    alone = cfg.trainer.devices == 1 or "LOCAL_RANK" in os.environ
    return nullcontext() if alone else started(cfg.trainer.devices, folder, checkpoint)


@contextmanager
def started(count: int, folder: Path, checkpoint: Path | None) -> Iterator[None]:
    """The other ranks of a run, which end with it.

    Args:
        count: Processes in all.
        folder: The run's folder, in which the recipe is recorded.
        checkpoint: Where they resume from.

    Raises:
        ConfigError: If one of them failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(count)}
    before = {name: os.environ.get(name) for name in (*shared, "LOCAL_RANK")}
    logs = [folder / f"rank{number}.log" for number in range(1, count)]
    others: dict[Path, subprocess.Popen[bytes]] = {}
    ended = threading.Event()
    hook = sys.excepthook  # torch puts the rank before every line of it
    try:
        os.environ.update(shared)
        for number, path in enumerate(logs, start=1):
            others[path] = _start(number, folder, checkpoint, path)
        os.environ["LOCAL_RANK"] = "0"
        threading.Thread(target=_watch, args=(others, ended), daemon=True).start()
        yield
        for other in others.values():
            with suppress(subprocess.TimeoutExpired):
                other.wait(SECONDS_TO_END)
    except RuntimeError as error:
        if not _is_lost_connection(error) or not (failed := _first_failed(others, SECONDS_TO_END)):
            raise
        raise ConfigError(failed) from error
    finally:
        ended.set()
        _kill(others)
        if torch.distributed.is_initialized():  # or the next run of this process would take it for its own
            torch.distributed.destroy_process_group()
        sys.excepthook = hook
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for path in logs:
            if path.exists() and not path.read_text().strip():
                path.unlink()


def _start(number: int, folder: Path, checkpoint: Path | None, output: Path) -> subprocess.Popen[bytes]:
    """One of the other ranks. In a session of its own: what Ctrl-C means to the run is for rank 0 to say."""
    # -P and PYTHONPATH: it finds exactly the modules that this process finds
    arguments = [sys.executable, "-P", "-m", "tunelab.follower", str(os.getpid()), str(folder)]
    environment = {**os.environ, "LOCAL_RANK": str(number), "PYTHONPATH": os.pathsep.join(sys.path)}
    with output.open("w") as file:
        return subprocess.Popen(
            [*arguments, *([str(checkpoint)] if checkpoint else [])],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def _watch(others: dict[Path, subprocess.Popen[bytes]], ended: threading.Event) -> None:
    """Ends this process if another has failed and the fit does not notice.

    It waits outside Python for ranks that have not joined yet, and on GPUs for results that never come.
    """
    while not ended.wait(SECONDS_BETWEEN_LOOKS):
        if (failed := _first_failed(others)) and not ended.wait(SECONDS_TO_END):
            log.error("%s", failed)
            _kill(others)
            os._exit(1)


def _first_failed(others: dict[Path, subprocess.Popen[bytes]], patience: float = 0.0) -> str:
    """What is said of a process that failed; empty if within so many seconds none has."""
    deadline = time.monotonic() + patience
    while True:
        for path, process in others.items():
            if code := process.poll():
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"
                lines = "\n".join(path.read_text(errors="replace").strip().splitlines()[-SHOWN_LINES:])
                return f"`trainer.devices` must be processes that all go on, but {path.stem} {how}. {lines}".strip()
        if time.monotonic() >= deadline:
            return ""
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether it says no more than that another process has gone."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _kill(others: dict[Path, subprocess.Popen[bytes]]) -> None:
    for other in others.values():
        other.kill()
        other.wait()
