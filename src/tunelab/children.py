"""Processes that are forked from one which has imported torch, whatever program this is. No torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")


def begin_loading(preloaded: str, unheard: Collection[signal.Signals]) -> None:
    """Starts the process that the others are forked from, which takes seconds to import what they need.

    It finds exactly the modules that this process finds.

    Args:
        preloaded: The module that it imports.
        unheard: Signals that it and its children do not hear, not even while it imports, but for those that allow them.
    """
    CONTEXT.set_forkserver_preload([preloaded])
    resource_tracker.ensure_running()
    found = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    before = {name: os.environ.get(name) for name in found}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, unheard)  # which a program inherits
    try:
        os.environ.update(found)
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def no_main_module() -> Iterator[None]:
    """Keeps a new process from running the user's script once more: what it needs is in tunelab."""
    module = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: vars(module).pop(name) for name in ("__file__", "__spec__") if name in vars(module)}
    module.__spec__ = None
    try:
        yield
    finally:
        vars(module).update(hidden)
