"""Loggers that cost no run: what one of them cannot write is said, and the run goes on without it."""

from __future__ import annotations

import functools
import inspect
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, FunctionType
from typing import Any, TypeVar

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.tensorboard import SummaryWriter

from tunelab.errors import ConfigError, unexpected

log = logging.getLogger("tunelab")

Thing = TypeVar("Thing")

MAX_LOST_SECONDS = 120.0
"""What a logger may cost a run by calls that fail: one that hangs is ended then, and left out from then on."""


class _LateError(BaseException):
    """What has taken too long; no Exception, as what reads from a network would catch it and try again."""


@dataclass
class Calls:
    """What the calls of a logger have come to.

    Args:
        name: Its key in the config.
        failures: Where the first failure of each logger is noted, by name.
    """

    name: str
    failures: dict[str, str]
    lost_seconds: float = 0.0
    is_inside: bool = field(default=False, repr=False)

    @property
    def is_over(self) -> bool:
        """Whether its failures have taken so long that it is left out."""
        return self.lost_seconds >= MAX_LOST_SECONDS

    def call(self, function: Callable[[], Any], instead: Any = None) -> Any:
        """Calls a function of the logger.

        Args:
            function: Without arguments.
            instead: What is returned where it fails.
        """
        if self.is_inside:  # what it calls of itself
            return function()
        if self.is_over:
            return instead
        began, self.is_inside = time.monotonic(), True
        try:
            with _ended_after(MAX_LOST_SECONDS - self.lost_seconds):
                return function()
        except (Exception, _LateError) as error:
            self.lost_seconds += time.monotonic() - began
            self._say(error)
            return instead
        finally:
            self.is_inside = False

    def _say(self, error: BaseException) -> None:
        said = str(error) if isinstance(error, _LateError) else f"{type(error).__name__}: {error}"
        reason = " ".join(said.split())
        if self.name not in self.failures:
            self.failures[self.name] = reason
            log.warning(
                "logger=%s could not write, and the run goes on without what is missing there: %s", self.name, reason
            )
        if self.is_over:
            log.warning(
                "logger=%s has cost %.0f seconds by failures, and is left out from here on.",
                self.name,
                self.lost_seconds,
            )


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Raises _LateError in what takes longer, where that can be: in the main thread, if nobody else has a timer."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise _LateError(f"no answer within {seconds:.0f} seconds")

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, should what hangs have caught the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)


def made(name: str, make: functools.partial[Logger], failures: dict[str, str]) -> Logger | None:
    """A logger, none of whose methods and properties raises.

    Args:
        name: Its key in the config.
        make: What makes it.
        failures: Where the first failure of each logger is noted, by name.

    Returns:
        None if it cannot be made, which is said.

    Raises:
        ConfigError: If its arguments are not those that it takes, or what it needs is not installed.
    """
    key = f"logger.{name}"
    try:
        takes = inspect.signature(make.func)
    except ValueError:  # of a class that does not say what it takes
        takes = None
    try:
        if takes is not None:
            takes.bind(*make.args, **make.keywords)
    except TypeError as error:
        raise ConfigError(
            unexpected(key, str(error), list(make.keywords))
            or f"`{key}` must be given arguments that it takes: {error}"
        ) from None

    def make_it() -> Logger:
        try:
            return make()
        except ImportError as error:
            raise _MistakeError(f"`{key}` must have what it needs installed: {error}") from error
        except ConfigError as error:
            raise _MistakeError(str(error)) from error

    calls = Calls(name, failures)
    try:
        logger = calls.call(make_it)
    except _MistakeError as error:
        raise ConfigError(str(error)) from error.__cause__
    return None if logger is None else harmless(logger, calls)


class _MistakeError(BaseException):
    """What is refused before the first step, in the place of a failure that the run goes on after."""


def harmless(thing: Thing, calls: Calls) -> Thing:
    """The same object, none of whose public methods and properties raises.

    Its class becomes one below its own, so that who asks for the class finds it.

    Args:
        thing: A logger, or what it writes with.
        calls: Of the logger.
    """
    own = type(thing)
    tried: dict[str, Any] = {}
    for name in dir(own):
        attribute = inspect.getattr_static(own, name)
        if name.startswith("_"):
            continue
        if isinstance(attribute, FunctionType):
            tried[name] = _method(attribute, calls)
        elif isinstance(attribute, property) and attribute.fget is not None:
            tried[name] = _property(attribute, name, calls)
    thing.__class__ = type(own.__name__, (own,), {**tried, "__module__": own.__module__, "__doc__": own.__doc__})
    return thing


def _method(own: FunctionType, calls: Calls) -> Callable[..., Any]:
    @functools.wraps(own)
    def method(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return calls.call(functools.partial(own, self, *arguments, **keywords))

    return method


def _property(own: property, name: str, calls: Calls) -> property:
    instead = {"experiment": DummyLogger().experiment, "name": calls.name, "version": ""}.get(name)

    def get(self: Any) -> Any:
        assert own.fget is not None
        found = calls.call(functools.partial(own.fget, self), instead)
        # what a task of the user's own draws goes to the writer itself
        return harmless(found, calls) if type(found) is SummaryWriter else found

    return property(get, own.fset, own.fdel, own.__doc__)
