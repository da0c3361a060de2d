"""Which functions of Python a fit spends its time in."""

from __future__ import annotations

import cProfile
import pstats
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from lightning import Trainer

from tunelab.errors import ConfigError
from tunelab.profilers.fit import FitProfiler, Report, in_words, shown, table_of, timed, unit


class AdvancedProfiler(FitProfiler):
    """Python's own profiler over all steps but the first; all of it stays in profile.prof.

    The functions in which the steps spend the most time of their own, without what they call. Each call is
    made slower by being counted, so that Python weighs more and the operations inside PyTorch less than without it.

    Args:
        rows: How many functions the table has.
    """

    def __init__(self, rows: int = 15) -> None:
        super().__init__()
        self.rows = rows
        self._profile = cProfile.Profile()

    def prepare(self, trainer: Trainer) -> None:
        watched = sys.getprofile() is not None
        try:
            self._profile.enable()
            self._profile.disable()
        except ValueError:  # what Python says from 3.12 on
            watched = True
        if watched:
            raise ConfigError(
                "`profiler` must not be advanced where another profiler of Python watches the process already, "
                "and there is one. Start without it, or try profiler=simple."
            )

    def begin_step(self) -> None:
        if self.steps <= 1:  # anew: the first step sets up what the others find
            self._profile.disable()
            self._profile = cProfile.Profile()
            self._profile.enable()

    def enter(self, action_name: str) -> None:
        """Nothing: functions are watched, not actions."""

    def leave(self, action_name: str) -> None:
        """Nothing: functions are watched, not actions."""

    def end(self) -> None:
        self._profile.disable()

    def report(self) -> Report:
        steps, notes = max(1, self.steps - 1), []
        entries = sorted(self._profile.getstats(), key=lambda entry: -entry.inlinetime)
        total = sum(entry.inlinetime for entry in entries)
        per_step = total / steps
        table = table_of("function", f"{unit(per_step)}/step", "share", "calls/step")
        for entry in entries[: self.rows]:
            own = timed(entry.inlinetime / steps, per_step)
            calls = f"{entry.callcount / steps:,.1f}"
            table.add_row(own, f"{entry.inlinetime / total:.1%}", calls, function_name(entry.code))
        if self.folder is not None:
            path = self.folder / "profile.prof"
            pstats.Stats(self._profile).dump_stats(path)
            notes.append(f"All of them, and who calls whom: python -m pstats {shlex.quote(shown(path))}")
        notes.append("Each without what it calls. Counting slows calls down: Python weighs more than without it.")
        title = (
            f"Where {steps:,} {'steps' if steps > 1 else 'step'} spent {total:,.2f} s in Python: {in_words(per_step)}"
        )
        return Report(title, table, notes)


def function_name(code: object) -> str:
    """A function by where it stands, short enough for a table.

    Args:
        code: What cProfile knows it by: a code object, or the name of a function that is not written in Python.
    """
    if isinstance(code, str):
        method = re.fullmatch(r"<method '(.*)' of '(.*)' objects>", code)
        return f"{method[2]}.{method[1]}" if method else code.strip("<>").removeprefix("built-in method ")
    path, line, name = code.co_filename, code.co_firstlineno, code.co_qualname  # type: ignore[attr-defined]
    for root in sorted(_roots(), key=len, reverse=True):
        path = path.removeprefix(root)
    return f"{name}  {path}:{line}"


def _roots() -> Iterator[str]:
    """The folders that a reader need not see: where modules are found, and where the user stands."""
    return (f"{Path(folder).resolve()}/" for folder in [*sys.path, "."] if Path(folder).is_dir())
