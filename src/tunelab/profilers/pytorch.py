"""Which of PyTorch's operations a step spends its time in."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.profilers.pytorch import RegisterRecordFunction
from rich.table import Table
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerAction

from tunelab.profilers.fit import FitProfiler, Report, in_words, shown, table_of, timed, unit

log = logging.getLogger("tunelab")

RECORD = ProfilerAction.RECORD

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells on the terminal when it begins and ends


class PyTorchProfiler(FitProfiler):
    """PyTorch's profiler on a few steps: the operations that took longest, and trace.json with each one in its place.

    https://ui.perfetto.dev opens the trace; the actions of the loop and the layers of the model are marked in it.
    A step lasts until the next one begins: a validation or a checkpoint between the two is in it.

    Args:
        wait: Steps to skip.
        warmup: Steps to watch without keeping, as watching is slow at first.
        active: Steps to keep. A run that is too short for all of these skips fewer, then keeps fewer.
        rows: How many operations the table has.
        record_shapes: Whether operations are told apart by the shapes of their inputs.
        profile_memory: Whether to count what each operation allocates.
        with_stack: Whether to note the line of Python that asked for each operation. Slow.
    """

    def __init__(
        self,
        wait: int = 1,
        warmup: int = 1,
        active: int = 3,
        rows: int = 15,
        *,
        record_shapes: bool = True,
        profile_memory: bool = True,
        with_stack: bool = False,
    ) -> None:
        super().__init__()
        self.wait, self.warmup, self.active, self.rows = wait, warmup, active, rows
        self.record_shapes, self.profile_memory, self.with_stack = record_shapes, profile_memory, with_stack
        self._profile: torch.profiler.profile | None = None
        self._modules: RegisterRecordFunction | None = None
        self._open: list[tuple[str, record_function]] = []
        self._started = False
        self._first: int | None = None  # of the steps that are kept
        self._last = 0
        self._operations: list[Operation] = []

    def prepare(self, trainer: Trainer) -> None:
        loop = trainer.fit_loop.epoch_loop
        epochs = (trainer.max_epochs or math.inf) - trainer.current_epoch
        left = epochs * trainer.num_training_batches - loop.batch_progress.current.ready
        if left < self.wait + self.warmup + self.active:
            self._shorten(int(left))
        if not any(getattr(module, "_compiled_call_impl", None) for module in trainer.lightning_module.modules()):
            self._modules = RegisterRecordFunction(trainer.lightning_module)
        if self.profile_memory:
            _hear_out()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Profiler won't be using warmup")
            schedule = torch.profiler.schedule(wait=self.wait, warmup=self.warmup, active=self.active, repeat=1)
        self._profile = torch.profiler.profile(
            schedule=schedule,
            on_trace_ready=self._keep,
            record_shapes=self.record_shapes,
            profile_memory=self.profile_memory,
            with_stack=self.with_stack,
            acc_events=True,
            # without it the operations have no stacks
            experimental_config=torch._C._profiler._ExperimentalConfig(verbose=self.with_stack),
        )

    def _shorten(self, steps: int) -> None:
        asked = self.wait + self.warmup + self.active
        self.active = max(1, min(self.active, steps - 2))
        self.warmup = max(0, min(self.warmup, steps - self.active))
        self.wait = max(0, steps - self.active - self.warmup)
        log.info(
            "Profiled %s of the run's %d: it is shorter than the %d of profiler.wait, warmup and active.",
            *("is the last step" if self.active == 1 else f"are the last {self.active} steps", steps, asked),
        )

    def begin_step(self) -> None:
        if self._profile is None:
            return
        if not self._started:
            self._started = True
            self._profile.start()
        else:
            self._profile.step()
        if self._first is None and self._profile.current_action in (RECORD, ProfilerAction.RECORD_AND_SAVE):
            self._first = self.steps + 1
            if self._modules is not None:
                self._modules.__enter__()
        elif self._operations:
            self.end()

    def enter(self, action_name: str) -> None:
        if self._first is not None and self._profile is not None:
            record = record_function(action_name)
            record.__enter__()
            self._open.append((action_name, record))

    def leave(self, action_name: str) -> None:
        if self._open and self._open[-1][0] == action_name:  # or it began before the steps that are kept
            self._open.pop()[1].__exit__(None, None, None)

    def end(self) -> None:
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.stop()
        if self._modules is not None and self._first is not None:
            self._modules.__exit__(None, None, None)
        while self._open:
            self._open.pop()[1].__exit__(None, None, None)

    def _keep(self, profile: torch.profiler.profile) -> None:
        """What PyTorch calls when the last step to keep has ended, or the fit."""
        assert self._first is not None
        self._last = max(self._first, self.steps)
        self._operations = summed(profile.events(), by_shape=self.record_shapes)
        if self.folder is not None:
            aside = self.folder / ".trace.json"
            profile.export_chrome_trace(str(aside))
            aside.replace(self.folder / "trace.json")

    def report(self) -> Report:
        if self._first is None or not self._operations:
            first = self.wait + self.warmup + 1
            note = f"The fit ended before step {first}, the first that profiler.wait and warmup leave to keep."
            return Report("No operation was recorded", Table(box=None), [note])
        steps = self._last - self._first + 1
        on_device = any(operation.device_seconds for operation in self._operations)
        ranked = sorted(self._operations, key=lambda o: -(o.device_seconds if on_device else o.seconds))
        total = sum(operation.device_seconds if on_device else operation.seconds for operation in ranked)
        per_step = total / steps
        memory = ["bytes/step"] if self.profile_memory else []
        table = table_of("operation", f"{unit(per_step)}/step", "share", "calls/step", *memory)
        for operation in ranked[: self.rows]:
            own = operation.device_seconds if on_device else operation.seconds
            table.add_row(
                *(timed(own / steps, per_step), f"{own / total:.1%}", f"{operation.calls / steps:,.0f}"),
                *[size(operation.bytes / steps) for _ in memory],
                operation.name,
            )
        which = f"steps {self._first:,} to {self._last:,}" if steps > 1 else f"step {self._first:,}"
        device = " on the GPU" if on_device else ""
        title = f"Where {which} spent {total * 1e3:,.1f} ms in PyTorch's operations{device}: {in_words(per_step)}"
        notes = ["Each without the operations inside it. What Python does between them is not among them."]
        if self.folder is not None:
            notes.insert(0, f"One by one: open {shown(self.folder / 'trace.json')} in https://ui.perfetto.dev")
        return Report(title, table, notes)


def _hear_out() -> None:
    """Lets PyTorch say unheard what it says once in a process: that memory is given back which it has not seen taken.

    So it is in every profile that begins within a program. It is said by C++ code, straight to the terminal.
    """
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    early = torch.empty(1)
    try:
        os.dup2(nowhere, 2)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True):
            del early
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


@dataclass
class Operation:
    """What one kind of operation took.

    Args:
        name: Its name, with the shapes of its inputs if they are told apart.
        seconds: Of the processor, without the operations inside it.
        device_seconds: Of the GPU.
        bytes: Allocated by it, without what it gave back.
        calls: How many there were.
    """

    name: str
    seconds: float = 0.0
    device_seconds: float = 0.0
    bytes: int = 0
    calls: int = 0


def summed(events: Iterable[Any], *, by_shape: bool) -> list[Operation]:
    """The operations among what PyTorch's profiler has recorded, the same ones together.

    Args:
        events: Of the profiler; functions of Python and what a device did are among them, and are left out.
        by_shape: Whether those whose inputs have other shapes are others.
    """
    found: dict[str, Operation] = {}
    for event in events:
        if event.activity_type != "cpu_op":
            continue
        name = event.name.removeprefix("aten::")
        if by_shape and (shapes := [str(shape).replace(" ", "") for shape in event.input_shapes or [] if shape]):
            name = f"{name} {' '.join(shapes)}"
        if line := asking(event.stack):
            name = f"{name}  {line}"
        operation = found.setdefault(name, Operation(name))
        operation.seconds += event.self_cpu_time_total / 1e6
        operation.device_seconds += event.self_device_time_total / 1e6
        operation.bytes += max(0, event.self_cpu_memory_usage) + max(0, event.self_device_memory_usage)
        operation.calls += 1
    return list(found.values())


def asking(stack: list[str]) -> str:
    """The innermost line of a stack that is not PyTorch's or Lightning's own.

    Args:
        stack: Frames such as `mlp.py(40): forward`, innermost first.
    """
    others = (frame for frame in stack if not frame.startswith(("torch/", "lightning/", "<", "nn.Module")))
    return next(others, "")


def size(count: float) -> str:
    """A number of bytes in the unit that suits it."""
    if not count:
        return ""
    power = min(3, int(math.log10(max(1.0, count)) / 3))
    return f"{count / 1000**power:,.0f} {('B', 'kB', 'MB', 'GB')[power]}"
