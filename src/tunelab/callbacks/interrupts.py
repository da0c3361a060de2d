"""Ctrl-C and SIGTERM, which end a run between two steps."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WAITING = b"\nEnding after this step. Ctrl-C again ends at once, without saving.\n"


class Interrupted(BaseException):
    """A run that was told to end.

    Args:
        signum: By which signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


class Interrupts(Callback):
    """Takes note of the first signal while steps are made, so that the state of a whole step can be saved.

    Before the first step, after the last and after an error there is nothing to save, and the run ends at once; so it
    does at a second signal. As a context it sets the handlers, puts back those that were there, and ends the process
    with the code of the signal, 130 or 143.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._waits = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python's rule for handlers
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if isinstance(error, Interrupted):
            raise SystemExit(error.exit_code) from None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's worker, which the run ends
            return
        if not self._waits or self.received is not None:
            raise Interrupted(signum)
        self.received = signum
        with suppress(OSError):
            os.write(2, WAITING)  # a log or a bar may be in the middle of writing

    def end_if_received(self) -> None:
        """Ends the run if it was told to.

        Raises:
            Interrupted: With the signal.
        """
        if self.received is not None:
            raise Interrupted(self.received)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._waits = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._waits = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._waits = False
