"""What is seen of a search while it runs: a live table in a terminal, otherwise a line per finished trial."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from optuna.trial import FrozenTrial, TrialState
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tunelab.errors import counted
from tunelab.sweep.owner import alone
from tunelab.sweep.plan import Plan
from tunelab.sweep.repeats import headline, winner
from tunelab.sweep.space import Value
from tunelab.sweep.trials import OWNER, RETRY, Claim, Trials
from tunelab.sweep.wording import STATES, assignments, compact, duration, reached, score, spoken

log = logging.getLogger("tunelab")

REFRESH_SECONDS = 0.25

SHARE = 0.005
"""Of a core that drawing may take: the trials need it."""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

STYLES = {"running": "", "finished": "", "pruned": "dim", "failed": "red"}


@dataclass
class Row:
    """A trial as the table has it.

    Args:
        number: Of the trial.
        values: Of its knobs.
        epochs: How many it will train.
        state: In a word.
        value: The last value of the objective; of one that has ended its best.
        epoch: Of that value.
        began: When, by time.monotonic.
    """

    number: int
    values: dict[str, Value]
    epochs: int | None = None
    state: str = "running"
    value: float | None = None
    epoch: int | None = None
    began: float = field(default_factory=time.monotonic)


class Screen:
    """Shows a search on stderr.

    Args:
        plan: What is searched.
        trials: Of the study.
        again: How many failed trials are tried again.
    """

    def __init__(self, plan: Plan, trials: Trials, again: int = 0) -> None:
        self.plan, self.trials = plan, trials
        self.direction = trials.study.direction.name.lower()
        self._again = again
        self._running: dict[int, Row] = {}
        self._ended: deque[Row] = deque(maxlen=100)
        self._durations: list[float] = []
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._next = self._drawn = 0.0
        self._changed = True
        self._look()

    def __enter__(self) -> Screen:
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        there, elsewhere = self._all, self._elsewhere()
        most, of_grid = self.trials.most, self.trials.of_grid
        for line in opening(self.plan, most, self.direction, there, self._again, elsewhere, of_grid):
            self._console.print(line, markup=False, soft_wrap=not terminal)
        if terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._live.start()
            self.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _elsewhere(self) -> int:
        """How many trials other processes run."""
        owner, running = self.trials.owner, [t for t in self._all if t.state == TrialState.RUNNING]
        with alone(self.plan.folder):
            return sum(owner.is_alive(trial.system_attrs.get(OWNER)) for trial in running)

    def say(self, text: str) -> None:
        """Says something while the search runs, above the table."""
        if self._live is None:
            log.info("%s", text)
        else:
            self._console.print(text, markup=False)

    def stood(self, interrupted: int) -> str:
        """How far the search has come, in a line; empty if no trial has begun.

        Args:
            interrupted: How many trials were told to end.
        """
        self._look()
        count = self._counted()
        parts = [f"{interrupted} interrupted"] if interrupted else []
        parts += [f"{count[state]} {state}" for state in ("finished", "pruned", "failed") if count[state]]
        if self._headline:
            parts.append(f"best {self.plan.objective} {self._headline}")
        return f"{', '.join(parts)}." if parts else ""

    def began(self, claim: Claim, epochs: int | None = None) -> None:
        """A trial begins, or is taken up again."""
        self._running[claim.number] = Row(claim.number, claim.values, epochs)
        self._changed = True

    def reported(self, claim: Claim, epoch: int, value: float) -> None:
        """A trial has a validation result."""
        if row := self._running.get(claim.number):
            row.epoch, row.value, self._changed = epoch, value, True

    def ended(self, claim: Claim, state: str, value: float | None, cause: str = "", epoch: int | None = None) -> None:
        """A trial has ended, and the study knows it."""
        row = self._running.pop(claim.number, None)
        took = None if row is None else time.monotonic() - row.began
        if took is not None and state != "failed":
            self._durations.append(took)
        row = row or Row(claim.number, claim.values)
        row.state, row.value, row.epoch = state, value, epoch or row.epoch
        self._ended.append(row)
        self._changed = True
        self._look()
        if self._live is None:
            log.info("%s", self._line(row, took, cause))

    def _look(self) -> None:
        """What the study holds, the trials of other processes among it."""
        self._all = self.trials.all()
        self._best = winner(self._all, self.plan.space, self.direction)
        self._headline = headline(self._all, self.plan.space, self.direction, with_values=False)

    @property
    def done(self) -> int:
        """How many trials have ended, and are not tried again."""
        return self._counted().total()

    def _counted(self) -> Counter[str]:
        retried = {trial.user_attrs.get(RETRY) for trial in self._all}
        return Counter(STATES[t.state] for t in self._all if t.state in ENDED and t.number not in retried)

    def _line(self, row: Row, took: float | None, cause: str) -> str:
        """A finished trial, to be read on its own."""
        what = f"{self.plan.objective} {score(row.value)} (epoch {row.epoch})  " if row.value is not None else ""
        because = f": {next(iter(cause.splitlines()), '')}" if cause else ""
        seconds = "" if took is None else f"  {duration(took)}"
        best = f"best {self._headline}" if self._headline else "none finished"
        done = f"[{self.done} of {_most(self.trials.most, self.trials.of_grid)}, {best}]"
        values = f"{assignments(row.values)}  " if row.values else ""
        return f"trial {row.number}  {values}{what}{row.state}{because}{seconds}  {done}"

    def refresh(self) -> None:
        """Draws the table anew, if that is due."""
        now = time.monotonic()
        if self._live is None or now < self._next or (not self._changed and now < self._drawn + 1):
            return
        begin = time.thread_time()
        width, height = self._console.size
        self._live.update(Group(*self.lines(width, height)), refresh=True)
        self._changed, self._drawn = False, now
        self._next = now + max(REFRESH_SECONDS, (time.thread_time() - begin) / SHARE)

    def lines(self, width: int, height: int) -> list[Text]:
        """The table and what stands below it.

        Args:
            width: Of the terminal, in characters.
            height: Of the terminal, in lines.
        """
        rows = sorted(self._running.values(), key=lambda row: row.number)
        best = self._best
        if best is not None:
            rows.append(self._best_row(best))
        rows += [row for row in reversed(self._ended) if best is None or row.number != best.number]
        rows = rows[: max(1, height - 4)]
        names = list(dict.fromkeys(knob.key for knob in self.plan.space.knobs))
        cells = [
            [
                *(str(row.number), *(compact(row.values[n]) if n in row.values else "" for n in names)),
                *(score(row.value), _epochs(row)),
                "best" if best is not None and row.number == best.number else row.state,
            ]
            for row in rows
        ]
        table = columns(["trial", *names, self.plan.objective, "epoch", "state"], cells, width)
        styles = ["bold" if cell[-1] == "best" else STYLES[row.state] for row, cell in zip(rows, cells, strict=True)]
        lines = [Text(line, style, no_wrap=True) for line, style in zip(table, ["bold", *styles], strict=True)]
        room = max(0, width - 2)  # for the ^C of a terminal, which would begin a line of its own
        return [*lines, *(Text(_cut(line, room), no_wrap=True) for line in self._below())]

    def _best_row(self, best: FrozenTrial) -> Row:
        epochs = best.user_attrs.get("epochs")
        return Row(best.number, best.params, epochs, "finished", *reached(best, self.direction))

    def _below(self) -> list[str]:
        count = self._counted()
        found = headline(self._all, self.plan.space, self.direction)
        best = f"{self.plan.objective} {found}" if found else "none has finished yet"
        elapsed = [time.monotonic() - row.began for row in self._running.values()]
        to_begin = max(0, self.trials.most - count.total() - len(self._running))
        left = seconds_left(self._durations, elapsed, to_begin, self.plan.dials["n_jobs"])
        counts = [f"{count[state]} {state}" for state in ("finished", "pruned", "failed") if count[state]]
        counts += [f"{len(self._running)} running", f"{to_begin} to come"]
        about = "time left unknown" if left is None else f"about {duration(left)} left"
        return [f"best so far: {best}", " · ".join([about, *counts])]


def _most(most: int, of_grid: int | None) -> str:
    """How many trials there shall be, for one that has ended to be counted among."""
    return str(most) if of_grid in (None, most) else f"the grid's {of_grid}"


def opening(
    plan: Plan,
    most: int,
    direction: str,
    there: Sequence[FrozenTrial],
    again: int,
    elsewhere: int = 0,
    of_grid: int | None = None,
) -> list[str]:
    """What is about to be searched, in a line, and what of it is there already.

    Args:
        plan: What it will do.
        most: How many trials there shall be.
        direction: Of the objective.
        there: The trials of the study.
        again: How many of them, failed ones, are tried again.
        elsewhere: How many of them another process runs.
        of_grid: How many combinations the grid has; None of another search.
    """
    knobs = ", ".join(knob.key for knob in plan.space.knobs)
    pruner = spoken(plan.pruner)
    by = spoken(plan.sampler) + ("" if pruner in ("nop", "none") else f" with {pruner} pruning")
    jobs = plan.dials["n_jobs"]
    trials = counted(most, "trial") if of_grid in (None, most) else f"{most} of the grid's {counted(of_grid, 'trial')}"
    at_once = f"{jobs if jobs > 1 else 'one'} at once, "
    searched = f"{knobs} by {by}: {trials}, {at_once}" if knobs else f"{trials} of the recipe as it is, "
    lines = [f"{searched}to {direction} {plan.objective}, into {plan.folder}"]
    if there:
        count = Counter(STATES[trial.state] for trial in there)
        retried = {trial.user_attrs.get(RETRY) for trial in there}
        if all(t.state.is_finished() for t in there) and sum(t.number not in retried for t in there) >= most:
            return [*lines, "Complete: nothing left to do."]
        count["waiting"] += count.pop("running", 0) - again - elsewhere
        count["running elsewhere"] = elsewhere
        parts = [f"{count[state]} {state}" for state in (*STATES.values(), "running elsewhere") if count[state] > 0]
        tried = f"; {again} failed {'is' if again == 1 else 'are'} tried again" if again else ""
        lines.append(f"It goes on: {', '.join(parts)}{tried}.")
        return lines
    return [*lines, *plan.remarks]


def seconds_left(durations: Sequence[float], running: Sequence[float], to_begin: int, jobs: int) -> float | None:
    """How long a search still takes, if its trials go on to take as long as those before; None if there were none.

    Args:
        durations: Of the finished and pruned trials, in seconds.
        running: How long each of those that run has been running.
        to_begin: How many have not begun.
        jobs: How many run at once.
    """
    if not to_begin and not running:
        return 0.0
    if not durations:
        return None
    mean = sum(durations) / len(durations)
    rest = [max(0.0, mean - elapsed) for elapsed in running]
    return max((sum(rest) + to_begin * mean) / jobs, max(rest, default=0.0))


def columns(header: list[str], rows: list[list[str]], width: int) -> list[str]:
    """A table as lines that are no wider than the terminal.

    What is too wide loses, in this order: what stands before the last dot or slash of a name, the end of long values,
    and knobs, from the last one on, for which an ellipsis stands.

    Args:
        header: trial, a name for each knob, the objective, epoch, state.
        rows: A text for each column.
        width: Of the terminal, in characters.
    """
    header = list(header)
    first, last = 1, len(header) - 3

    def widths(most: int) -> list[int]:
        found = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
        return [min(w, most) if first <= i < last else w for i, w in enumerate(found)]

    fitting = widths(24)
    if sum(fitting) + 2 * len(fitting) - 2 > width:
        short = [name.rsplit(".", 1)[-1].rsplit("/", 1)[-1] for name in header]
        header = [s if short.count(s) == 1 else name for s, name in zip(short, header, strict=True)]
    for most in (24, 12, 8):
        fitting = widths(most)
        if sum(fitting) + 2 * len(fitting) - 2 <= width:
            break
    kept, left_out = list(range(len(header))), 0
    while sum(fitting[i] for i in kept) + 2 * len(kept) - 2 + 3 * bool(left_out) > width and len(kept) > 2:
        middle = [i for i in kept if first <= i < last]
        kept.remove(middle[-1] if middle else kept[-2])
        left_out += bool(middle)
    lines = []
    for row in [header, *rows]:
        cells = [set_cell_size(_cut(row[i], fitting[i]), fitting[i]) for i in kept]
        if left_out:
            cells.insert(sum(i < last for i in kept), "…")
        lines.append(_cut("  ".join(cells).rstrip(), width))
    return lines


def _cut(text: str, width: int) -> str:
    """A text that is no wider than it may be; an ellipsis says that there was more."""
    text = " ".join(text.split("\n"))
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)).rstrip() + "…"


def _epochs(row: Row) -> str:
    if row.epoch is None:
        return ""
    return f"{row.epoch}/{row.epochs}" if row.epochs else str(row.epoch)
