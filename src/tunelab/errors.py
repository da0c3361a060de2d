"""How a user's mistake is said. Imports nothing heavy: every part may use it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

MOST_LINES = 8


class ConfigError(Exception):
    """One or more mistakes in what the user asked for, each a sentence that says what to type instead.

    Args:
        mistakes: The sentences. All are kept; the text shows the first eight.
    """

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = mistakes
        shown = list(mistakes[:MOST_LINES])
        if len(mistakes) > MOST_LINES:
            shown.append(f"and {len(mistakes) - MOST_LINES} more")
        super().__init__("\n".join(shown))


class RunFailed(Exception):  # noqa: N818  # no mistake of the user
    """A run that ended for a reason that is no mistake in what was asked for; the text says which, and what to try."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a process as Ctrl-C does."""


def exit_code(stop: KeyboardInterrupt) -> int:
    """What a process ends with that was told to: 128 and the number of the signal."""
    return 143 if isinstance(stop, Terminated) else 130


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence with the closest known words, or an empty string."""
    close = closest(word, known)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def unexpected(part: str, reason: str, given: Iterable[str]) -> str:
    """The sentence for a key that a part does not take, or an empty string if the reason is another.

    Args:
        part: Where it stands in the config.
        reason: What Python said of the call.
        given: The keys that the part was given, the wrong one among them.
    """
    found = re.search(r"unexpected keyword argument '(\w+)'", reason)
    names = list(given)
    if found is None or found[1] not in names:
        return ""
    others = [name for name in names if name != found[1]]
    near = did_you_mean(f"{part}.{found[1]}", [f"{part}.{name}" for name in closest(found[1], others)])
    has = f" Its file has {', '.join(others)}." if others else " Leave it out."
    return f"`{part}.{found[1]}` must be a key that the part takes, got {found[1]}.{near or has}"


def closest(word: str, known: Iterable[str]) -> list[str]:
    """Up to three known words that are like one, whatever their case; of equally close ones those that begin like it.

    Args:
        word: What was typed.
        known: What might have been meant.
    """
    typed = word.casefold()
    near: list[tuple[float, bool, str]] = []
    for name in dict.fromkeys(known):
        other = name.casefold()
        likeness = SequenceMatcher(None, other, typed).ratio()
        if likeness >= 0.6:
            near.append((-likeness, other[:3] != typed[:3], name))
    return [name for _, _, name in sorted(near)[:3]]


def program() -> str:
    """How this process was called: python train.py, python scripts/evaluate.py, tunelab."""
    path = Path(sys.argv[0])
    if path.suffix != ".py":
        return path.name
    return f"python scripts/{path.name}" if path.parent.name == "scripts" else f"python {path.name}"


def training() -> str:
    """How a run is started where this process was called: by itself, or where a script or a notebook was, train.py."""
    own = program()
    is_own = "TUNELAB_COMMAND" in os.environ and not own.startswith(("python scripts/", "-"))  # of `python -c`
    return own if is_own else "python train.py"


def as_typed(path: Path) -> str:
    """A path as the user would type it: relative to where they stand, if it is below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def show(value: Any) -> str:
    """A value as the user would type it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def counted(number: float, noun: str) -> str:
    """A number with its noun: 1 epoch, 30 epochs."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
