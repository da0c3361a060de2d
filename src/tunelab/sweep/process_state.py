"""What a trial may change in its process, and is as it was before the next one."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module


def _hooks() -> dict[str, dict[int, Any]]:
    """Torch's hooks on every module, by the name of their table."""
    return {name: dict(table) for name, table in vars(module).items() if name.startswith("_global_") and table}


def _put_hooks(before: Mapping[str, Mapping[int, Any]]) -> None:
    for name, table in vars(module).items():
        if name.startswith("_global_") and isinstance(table, dict):
            table.clear()
            table.update(before.get(name, {}))


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _put_handlers(before: Mapping[int, Any]) -> None:
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


def put_environment(names: Mapping[str, str]) -> None:
    """Makes the environment these variables and no others."""
    for name in os.environ.keys() - names.keys():
        del os.environ[name]
    os.environ.update(names)


def _of(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (lambda: torch.is_autocast_enabled("cpu"), lambda on: torch.set_autocast_enabled("cpu", on)),
    _of(torch.backends.cudnn, "benchmark"),
    _of(torch.backends.cudnn, "deterministic"),
    _of(torch.backends.mkldnn, "enabled"),
    (_hooks, _put_hooks),
    (np.geterr, lambda how: np.seterr(**how)),
    (lambda: list(sys.path), lambda path: sys.path.__setitem__(slice(None), path)),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    _of(sys, "excepthook"),
    _of(threading, "excepthook"),
    (lambda: dict(os.environ), put_environment),
    (os.getcwd, os.chdir),
    (_handlers, _put_handlers),
    (lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()), lambda m: signal.pthread_sigmask(signal.SIG_SETMASK, m)),
)
"""How it is asked for and set, what a run's parts or a user's own code set for the whole process."""


@contextmanager
def kept() -> Iterator[None]:
    """Puts back what a trial has changed of its process."""
    before = [get() for get, _ in SETTINGS]
    device, mask = torch.get_default_device(), os.umask(0o022)
    os.umask(mask)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for (get, put), value in zip(SETTINGS, before, strict=True):
            now = None
            with suppress(OSError):  # a working directory that is gone
                now = get()
            if now != value:
                put(value)
        if torch.get_default_device() != device:
            torch.set_default_device(None)
        torch.set_flush_denormal(False)  # which cannot be asked for
        os.umask(mask)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def speak() -> None:
    """What is said and logged from here on goes where descriptors 1 and 2 lead, whatever a trial did to the streams."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        with suppress(OSError, ValueError):  # no room, or closed
            getattr(sys, name).flush()
        stream = open(number, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    logging.disable(logging.NOTSET)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    logging.captureWarnings(True)
    own = logging.getLogger("tunelab")
    own.handlers.clear()
    own.setLevel(logging.NOTSET)
    own.disabled, own.propagate = False, True
    faulthandler.enable(2)
