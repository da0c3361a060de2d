"""A function called in a process of its own, which may take only so much memory and gives all of it back. No torch."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any

from tunelab.children import CONTEXT, begin_loading, no_main_module
from tunelab.errors import ConfigError, RunFailed

PRELOADED = "tunelab.tuning.fits"
"""What the processes are forked with: it imports torch, lightning and what a fit needs."""

SLACK = 2**28
"""Bytes that a process may reserve beyond its limit: what is reserved need never be touched, and only that counts."""

NOT_ENOUGH = (
    *("can't allocate memory", "not enough memory", "cannot allocate memory", "bad_alloc", "out of memory"),
    *("could not create a memory", "could not create a primitive", "alloc_failed", "memoryerror"),
    *("can't start new thread", "thread creation failed"),
)
"""What libraries say, in lower case, where an allocation failed."""

OUT_OF_MEMORY = (signal.SIGKILL, signal.SIGBUS)
"""How the system ends a process for which it has no memory left."""

STATUS = Path("/proc/self/status")
"""What Linux tells of this process."""

SECONDS_TO_END = 10
"""Of a process whose end of the pipe is closed."""


@dataclass(frozen=True)
class Made:
    """How a call ended.

    Args:
        peak: The most memory that it held beyond what the process held before, in bytes; None if it ran out.
        mistake: What the user did wrong, if that ended it.
        failure: What ended it otherwise.
    """

    peak: int | None
    mistake: tuple[str, ...] = ()
    failure: str = ""


def ran_out(error: BaseException) -> bool:
    """Whether an error says, or comes from one that says, that memory ran out."""
    said = f"{type(error).__name__}: {error}".lower()
    if isinstance(error, MemoryError) or any(words in said for words in NOT_ENOUGH):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and ran_out(cause)


def peak_of(function: Callable[..., object], *arguments: Any, limit: int) -> int | None:
    """The most memory that a call takes, measured in a process of its own.

    Args:
        function: At the top of a module of ours.
        *arguments: What can be pickled.
        limit: In bytes. More ends the call, on Linux; elsewhere it is only measured.

    Returns:
        Bytes beyond those of Python and its libraries; None if it ran out of memory, or was ended for that.

    Raises:
        ConfigError: If it raises one.
        RunFailed: If it fails for another reason.
    """
    with NamedTemporaryFile("r", errors="replace") as said:
        made = _made(said, limit, function, arguments)
    if made.mistake:
        raise ConfigError(*made.mistake)
    if made.failure:
        raise RunFailed(made.failure)
    return made.peak


def _made(said: IO[str], limit: int, function: Callable[..., object], arguments: tuple[Any, ...]) -> Made:
    """Makes the call; what its process says to nobody stands in the file afterwards."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_child, args=(theirs, said.name, dict(os.environ), limit, function, arguments))
    with no_main_module():
        begin_loading(PRELOADED, (signal.SIGINT,))
        process.start()
    theirs.close()
    try:
        return ours.recv()  # type: ignore[no-any-return]
    except (EOFError, OSError):  # it was ended, by the system or by a library that could not go on
        process.join(SECONDS_TO_END)
        return _ended(process.exitcode, said.read())
    finally:
        if process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):  # it may have ended, or not yet have a group of its own
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        process.close()
        ours.close()


def _ended(code: int | None, said: str) -> Made:
    """How a process ended that told nothing."""
    if (code is not None and -code in OUT_OF_MEMORY) or any(words in said.lower() for words in NOT_ENOUGH):
        return Made(None)
    how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
    *_, last = said.strip().splitlines() or [""]
    return Made(None, failure=f"The process that tried the steps {how}{f': {last}' if last else '.'}")


def _child(
    connection: Connection,
    said: str,
    environment: dict[str, str],
    limit: int,
    function: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    os.setsid()  # a Ctrl-C of the terminal is for the tool, which ends this process
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    threading.Thread(target=_end_with_the_tool, daemon=True).start()
    with suppress(OSError):  # of a machine that runs out of memory this process is ended, not another
        Path("/proc/self/oom_score_adj").write_text("1000")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nothing, number)
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), 2)
    os.environ.update(environment)
    try:
        before = _begin(limit)
        function(*arguments)
        made = Made(max(0, _peak() - before))
    except ConfigError as error:
        made = Made(None, mistake=error.mistakes)
    except BaseException as error:
        made = Made(None, failure="" if ran_out(error) else f"{type(error).__name__}: {error}")
    connection.send(made)
    os._exit(0)  # what is left of the call may take long to put away


def _begin(limit: int) -> int:
    """Bounds this process, and says how much memory it holds before the call, in bytes."""
    if not STATUS.exists():
        return _peak()
    forget_peak()
    held = _status("VmData") + limit + SLACK
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held if hard == resource.RLIM_INFINITY else min(held, hard), hard))
    return _status("VmRSS")


def forget_peak() -> None:
    """Has the peak of this process begin at what it holds now, on Linux."""
    with suppress(OSError, AttributeError):  # what has been left free would be used again without being counted
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The most memory that this process has held, in bytes."""
    if STATUS.exists():  # getrusage would count what the process was forked from
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(name: str) -> int:
    """A size of this process that Linux tells, in bytes."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) * 1024


def _end_with_the_tool() -> None:
    tool = multiprocessing.parent_process()
    if tool is not None:
        tool.join()
        os.killpg(0, signal.SIGKILL)
