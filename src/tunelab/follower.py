"""What the other ranks of a run do: the same fit, from the recipe that rank 0 has recorded."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

from tunelab.errors import ConfigError
from tunelab.folder import RunFolder
from tunelab.record import Start
from tunelab.run import train

log = logging.getLogger("tunelab")


def main(folder: str, checkpoint: str | None = None) -> None:
    """Trains with rank 0.

    Args:
        folder: The run's folder.
        checkpoint: Where it resumes from.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when they end
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    run = RunFolder.find(folder, "resume")
    asked = run.record
    start = Start(asked["command"], asked["overrides"], asked["choices"])
    try:
        train(run.config, run.path, start, checkpoint=Path(checkpoint) if checkpoint else None)
    except ConfigError as error:
        log.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
