"""What the other ranks of a run do: the same fit, from the recipe that rank 0 has recorded."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.5


def main(leader: str, folder: str, checkpoint: str | None = None) -> None:
    """Trains with rank 0.

    Args:
        leader: The process id of rank 0.
        folder: The run's folder.
        checkpoint: Where it resumes from.
    """
    threading.Thread(target=_end_with, args=(int(leader),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when they end
    # only now, and after seconds: rank 0 may be gone meanwhile
    from tunelab.errors import ConfigError
    from tunelab.folder import RunFolder
    from tunelab.record import Start
    from tunelab.run import train

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    run = RunFolder.find(folder, "resume")
    asked = run.record
    start = Start(asked["command"], asked["overrides"], asked["choices"], unread=asked.get("unread", ()))
    try:
        train(run.config, run.path, start, checkpoint=Path(checkpoint) if checkpoint else None)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def _end_with(leader: int) -> None:
    """Ends this process when rank 0 has gone without a word."""
    while os.getppid() == leader:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
