"""Several processes that train one model: this one is rank 0 and starts the others from the recorded recipe.

Lightning's own launcher would run the command line again in each of them, which in a sweep is the whole sweep.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tunelab.errors import ConfigError

SECONDS_TO_END = 10.0


def rank() -> int:
    """Which process of a run this is; 0 leads and is the only one that writes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


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
    arguments = [sys.executable, "-m", "tunelab.follower", str(folder), *([str(checkpoint)] if checkpoint else [])]
    others = []
    try:
        os.environ.update(shared)
        for number, path in enumerate(logs, start=1):
            with path.open("w") as output:
                environment = {**os.environ, "LOCAL_RANK": str(number), "PYTHONPATH": os.pathsep.join(sys.path)}
                others.append(subprocess.Popen(arguments, env=environment, stdout=output, stderr=output))
        os.environ["LOCAL_RANK"] = "0"
        yield
        for other in others:
            other.wait(SECONDS_TO_END)
    except RuntimeError as error:  # what a collective raises when the other end has gone
        failed = [path for path, other in zip(logs, others, strict=True) if _failed(other)]
        if not failed:
            raise
        last = [line for line in failed[0].read_text().splitlines() if line.strip()][-1:]
        raise ConfigError(
            f"`trainer.devices` must be processes that all go on, but {failed[0].stem} ended: {' '.join(last)} "
            f"The whole of it is in {failed[0]}."
        ) from error
    finally:
        for other in others:
            other.kill()
            other.wait()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for path in logs:
            if path.exists() and not path.read_text().strip():
                path.unlink()


def for_run(cfg: Any, folder: Path, checkpoint: Path | None) -> Any:
    """The context in which a recipe is fitted: with other ranks if it asks for several, unless this is one of them."""
    count = int(cfg.trainer.devices)
    alone = count == 1 or rank() or "TORCHELASTIC_RUN_ID" in os.environ
    return nullcontext() if alone else started(count, folder, checkpoint)


def _failed(process: subprocess.Popen[bytes]) -> bool:
    try:
        return process.wait(SECONDS_TO_END) != 0
    except subprocess.TimeoutExpired:
        return False
