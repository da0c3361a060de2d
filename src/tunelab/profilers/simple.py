"""Where a step spends its time: data, forward, backward, optimizer, callbacks, logging, validation and the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from lightning import Trainer

from tunelab.loggers import LOGGING
from tunelab.profilers.fit import FitProfiler, Report, in_words, table_of, timed, unit

LOOP = "Lightning's loop"
PHASES = (
    *("data", "forward", "backward", "optimizer", "callbacks", "logging", "validation", "checkpoints"),
    LOOP,
)
HOOKS = {
    "train_dataloader_next": "data",
    "on_before_batch_transfer": "data",
    "transfer_batch_to_device": "data",
    "on_after_batch_transfer": "data",
    "batch_to_device": "data",
    "training_step": "forward",
    "backward": "backward",
    "optimizer_step": "optimizer",
    "optimizer_zero_grad": "optimizer",
    "configure_gradient_clipping": "optimizer",
    "lr_scheduler_step": "optimizer",
    "save_checkpoint": "checkpoints",
    "on_save_checkpoint": "checkpoints",
    "run_training_epoch": LOOP,
    "run_training_batch": LOOP,
}
"""The phase of an action by the last word of its name; other hooks belong to callbacks."""

LEADING = {
    "data": "train_dataloader_next",
    "forward": "training_step",
    "backward": "backward",
    "optimizer": "optimizer_step",
    "validation": "on_validation_epoch_end",
    "checkpoints": "save_checkpoint",
}
"""The hook whose calls are those of its phase; elsewhere all calls count."""

SHOWN_SHARE = 0.01
SHOWN_PARTS = 3
"""Of a phase: its largest parts that take at least this share of the time."""


@dataclass
class Row:
    """What one kind of action took."""

    seconds: float = 0.0
    calls: int = 0


Found = dict[tuple[bool, str], Row]
"""By whether it was part of a validation, and the action's name."""


class SimpleProfiler(FitProfiler):
    """A table of the phases of a step, each with its own time: without what is nested in it.

    The rows add up to the time that passed. The first step is left out: it is slower than the others, by what
    is set up in it. A GPU works beside the processor that asks it to; here it is waited for wherever one phase ends
    and another begins, so that each is charged what it asked for. That costs time, and only this profiler does it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stack: list[str] = []
        self._found: Found = {}
        self._first: Found = {}
        self._last = 0.0
        self._waits = False

    def prepare(self, trainer: Trainer) -> None:
        self._waits = trainer.strategy.root_device.type != "cpu"
        self._stack.clear()

    def begin_step(self) -> None:
        if self.steps == 0:
            self._found, self._last = {}, time.perf_counter()
        elif not self._first:
            self._charge()
            self._first, self._found = self._found, {}

    def enter(self, action_name: str) -> None:
        self._charge()
        self._stack.append(action_name)
        self._row().calls += 1

    def leave(self, action_name: str) -> None:
        if self._stack and self._stack[-1] == action_name:  # or it began before the first step
            self._charge()
            self._stack.pop()

    def end(self) -> None:
        self._charge()

    def _charge(self) -> None:
        """Charges the time since it was last called to the innermost action."""
        if self._waits:
            torch.accelerator.synchronize()
        now = time.perf_counter()
        self._row().seconds += now - self._last
        self._last = now

    def _row(self) -> Row:
        assert self.trainer is not None
        key = self.trainer.validating, self._stack[-1] if self._stack else "run_training_epoch"
        row = self._found.get(key)
        if row is None:
            row = self._found[key] = Row()
        return row

    def phases(self) -> dict[str, dict[str, Row]]:
        """What each part of each phase took, in the order of a step."""
        phases: dict[str, dict[str, Row]] = {phase: {} for phase in PHASES}
        of_all = [self._found, self._first] if self.steps < 2 else [self._found]
        for (validating, action), found in chain.from_iterable(rows.items() for rows in of_all):
            phase, part = classified(action, validating)
            row = phases.setdefault(phase, {}).setdefault(part, Row())
            row.seconds += found.seconds
            row.calls += found.calls
        return {phase: parts for phase, parts in phases.items() if parts}

    def report(self) -> Report:
        phases = self.phases()
        total = sum(row.seconds for parts in phases.values() for row in parts.values())
        steps = max(1, self.steps - 1)
        per_step = total / steps
        table = table_of("phase", f"{unit(per_step)}/step", "share", "calls")

        def add(name: str, seconds: float, calls: str, style: str = "") -> None:
            table.add_row(timed(seconds / steps, per_step), f"{seconds / total:.1%}", calls, name, style=style)

        for phase, parts in phases.items():
            add(phase, sum(row.seconds for row in parts.values()), _calls(phase, parts))
            for part, row in _shown(parts, total) if phase != LOOP else ():
                add(f"  {part}", row.seconds, f"{row.calls:,}" if row.calls else "", "dim")
        add("together", total, "", "bold")
        title = f"Where {steps:,} {'steps' if steps > 1 else 'step'} spent {total:,.2f} s: {in_words(per_step)}"
        return Report(title, table, list(self._notes()))

    def _notes(self) -> Iterator[str]:
        if self.steps < 2:
            yield "The only step: what is set up in a first step is in it."
        else:
            first = sum(row.seconds for row in self._first.values())
            yield f"The first step is left out: it took {first * 1e3:,.1f} ms, with much set up in it."
        if self._waits:
            yield "The device was waited for wherever a phase ends, so that each has its own time: steps are slower."


def classified(action: str, validating: bool = False) -> tuple[str, str]:
    """The phase and the part of it that an action of Lightning's belongs to.

    Args:
        action: Its name, such as `[Callback]Progress.on_train_batch_end`.
        validating: Whether it is done during a validation.
    """
    owner, _, hook = action.rpartition(".")
    kind, _, name = owner.rpartition("]")
    of_callback = kind == "[Callback"
    part = name.split("{")[0] if of_callback else hook
    if action == LOGGING:
        return "logging", "logging"
    if HOOKS.get(hook) == "checkpoints" or (of_callback and "Checkpoint" in name):
        return "checkpoints", part
    if validating:
        return "validation", "loop" if HOOKS.get(hook) == LOOP else part
    if hook in HOOKS:
        return HOOKS[hook], part
    if kind == "[LightningModule":
        return "callbacks", name
    if kind == "[LightningDataModule":
        return "data", part
    if kind == "[Strategy":
        return LOOP, part
    return ("callbacks", part) if of_callback else (action, action)  # an action of the user's own


def _calls(phase: str, parts: dict[str, Row]) -> str:
    if phase == LOOP:
        return ""
    leading = parts.get(LEADING.get(phase, ""))
    return f"{leading.calls if leading else sum(row.calls for row in parts.values()):,}"


def _shown(parts: dict[str, Row], total: float) -> list[tuple[str, Row]]:
    large = [(part, row) for part, row in parts.items() if row.seconds >= SHOWN_SHARE * total]
    return sorted(large, key=lambda item: -item[1].seconds)[:SHOWN_PARTS] if len(parts) > 1 else []
