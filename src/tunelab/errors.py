"""How a user's mistake is said. Imports nothing heavy: every part may use it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence with the closest known words, or an empty string."""
    close = get_close_matches(word, list(dict.fromkeys(known)), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def show(value: Any) -> str:
    """A value as the user would type it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
