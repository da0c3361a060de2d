"""What was found of a batch size: in words, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from tunelab.errors import counted
from tunelab.instrument import Answer
from tunelab.scaling import rescaled_lr
from tunelab.tuning.free_memory import GB
from tunelab.tuning.largest import Largest
from tunelab.tuning.steps import batches_taken
from tunelab.tuning.throughput import Speed, knee


@dataclass(frozen=True)
class Before:
    """What the recipe says.

    Args:
        batch_size: In examples; that of `full` counted.
        lrs: What follows the batch size: the lr, and others of the optimizer, by the key to type.
        examples: Of the training part; None where nobody knows.
        limit: Its trainer.limit_train_batches.
        accumulated: Batches whose gradients make a step.
        wants_all: Whether its optimizer is made for all examples at once.
    """

    batch_size: int
    lrs: dict[str, float]
    examples: int | None
    limit: float = 1.0
    accumulated: int = 1
    wants_all: bool = False

    def steps(self, batch_size: int) -> int | None:
        """How many optimizer steps an epoch has with batches of this size; None where nobody knows."""
        if not self.examples:
            return None
        return math.ceil(batches_taken(self.limit, math.ceil(self.examples / batch_size)) / self.accumulated)


@dataclass(frozen=True, repr=False)
class BatchSize(Answer):
    """What was found.

    Args:
        before: What the recipe says.
        speeds: Of each batch size.
        doubling_gain: What a doubled batch was to bring, times the samples per second.
        rule: How the lr follows.
        largest: What fits; None if it was not looked for.
    """

    before: Before
    speeds: dict[int, Speed]
    doubling_gain: float
    rule: str
    largest: Largest | None

    @property
    def knee(self) -> int:
        """The batch size from which doubling no longer pays."""
        return knee(list(self.speeds), [s.samples_per_second for s in self.speeds.values()], self.doubling_gain)

    @property
    def lrs(self) -> dict[str, float]:
        """The lr, and others of the optimizer, for the knee."""
        old = self.before.batch_size
        return {key: rescaled_lr(lr, old, self.knee, self.rule) for key, lr in self.before.lrs.items()}

    def _gain(self, size: int) -> float | None:
        """How many times the samples per second the doubled batch brings."""
        twice = self.speeds.get(2 * size)
        return twice.samples_per_second / self.speeds[size].samples_per_second if twice else None

    def said(self) -> str:
        return "\n".join([*self._fastest(), *self._fitting(), "", *self._table(), "", *self._typed()])

    def _fastest(self) -> Iterator[str]:
        speed, gain = self.speeds[self.knee], self._gain(self.knee)
        if gain is None:
            why = "every doubling up to it paid" if len(self.speeds) > 1 else "twice as many do not fit"
        else:
            why = f"doubling it gives {gain:.2f} times that, and was to give {self.doubling_gain:g}"
        yield f"knee     batch_size={self.knee}: {speed.samples_per_second:,.0f} samples per second; {why}"

    def _fitting(self) -> Iterator[str]:
        if (found := self.largest) is None:
            yield "largest  not looked for: a CPU's memory is the machine's. To know, add memory_limit_gb=<GB>."
            return
        peak, spare = found.tried[found.batch_size], 1 - found.usable / found.limit
        assert peak is not None
        of = f"{peak / GB:.3g} of {found.limit / GB:.3g} GB" + (f", {spare:.0%} to stay free" if spare else "")
        if found.batch_size == self.before.examples:
            yield f"largest  batch_size={found.batch_size}: all {found.batch_size} training examples fit ({of})"
        elif found.batch_size == found.examples:
            yield f"largest  batch_size={found.batch_size}, up to which was tried, fits ({of})"
        else:
            tries = "1 try" if len(found.tried) == 1 else f"{len(found.tried)} tries"
            yield f"largest  batch_size={found.batch_size} ({of}), after {tries}"
        if found.line is None:
            yield "         no estimate: small batches do not differ in memory"
        else:
            fixed, each = found.line
            yield f"         estimated {found.estimate}: {fixed / GB:.3g} GB, and {each / 1e6:.3g} MB for each example"

    def _table(self) -> Iterator[str]:
        yield f"{'batch_size':>10}  {'samples/s':>10}  {'ms/step':>8}  doubling"
        for size, speed in self.speeds.items():
            gain = self._gain(size)
            doubled = "" if gain is None else f"× {gain:.2f}"
            mark = "  ← knee" if size == self.knee else ""
            rate = f"{speed.samples_per_second:>10,.0f}  {speed.ms_per_step:>8.3g}  {doubled:<8}"
            yield f"{size:>10}  {rate}{mark}".rstrip()

    def _typed(self) -> Iterator[str]:
        old, new = self.before.batch_size, self.knee
        if self.before.wants_all:
            yield "lbfgs learns from all examples at once: smaller batches would mislead its search, however fast."
            if self.largest and self.before.examples and self.largest.batch_size < self.before.examples:
                yield "They do not fit: choose another optimizer, or a smaller model."
                yield "optimizer=adamw"
            else:
                yield "batch_size=full"
            return
        if old == new:
            yield f"The recipe has batch_size={old} already."
        else:
            rule = {"linear": "in proportion", "sqrt": "by the square root", "none": "not at all"}[self.rule]
            yield f"From batch_size={old} to {new} the lr follows {rule}."
            steps, were = self.before.steps(new), self.before.steps(old)
            if steps is not None and were is not None and steps != were:
                fewer = "fewer" if steps < were else "more"
                yield f"An epoch then has {counted(steps, 'step')} instead of {were}: {fewer} if the epochs stay."
        yield " ".join([f"batch_size={new}", *(f"{key}={lr:.3g}" for key, lr in self.lrs.items())])

    def values(self) -> dict[str, Any]:
        fit = self.largest
        return {
            "knee": {"batch_size": self.knee, "doubling_gain": self.doubling_gain, **self.lrs},
            "rule": self.rule,
            "training_examples": self.before.examples,
            "largest": fit
            and {
                "batch_size": fit.batch_size,
                "peak_bytes": fit.tried[fit.batch_size],
                "limit_bytes": fit.limit,
                "usable_bytes": fit.usable,
                "estimate": fit.estimate,
                "tries": len(fit.tried),
            },
        }

    def rows(self) -> list[dict[str, Any]]:
        tried = self.largest.tried if self.largest else {}
        rows: list[dict[str, Any]] = []
        for size in sorted({*self.speeds, *tried}):
            row: dict[str, Any] = {"batch_size": size}
            if speed := self.speeds.get(size):
                row |= {"samples_per_second": speed.samples_per_second, "ms_per_step": speed.ms_per_step}
            if self.largest and size in tried:
                peak = tried[size]
                row |= {"peak_bytes": peak, "fits": peak is not None and peak <= self.largest.usable}
            rows.append(row)
        return rows

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        """The step of a curve is the batch size."""
        for row in self.rows():
            for name in ("samples_per_second", "ms_per_step", "peak_bytes"):
                if row.get(name) is not None:
                    yield name, row["batch_size"], float(row[name])

    def figure(self) -> Figure:
        figure = Figure(figsize=(8, 4), layout="constrained")
        panels = figure.subplots(1, 3 if self.largest else 2)
        sizes = list(self.speeds)
        for axes, name in zip(panels, ("samples_per_second", "ms_per_step"), strict=False):
            axes.plot(sizes, [getattr(speed, name) for speed in self.speeds.values()], "o-")
            axes.axvline(self.knee, color="C3", linestyle="--", label=f"knee {self.knee}")
            axes.set(title="speed" if axes is panels[0] else "step", xlabel="batch size in examples")
            axes.set_ylabel("samples per second" if axes is panels[0] else "ms per step")
            _by_powers(axes)
            axes.legend()
        if self.largest:
            _draw_memory(panels[2], self.largest)
        return figure


def _by_powers(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.tick_params(axis="x", labelrotation=45)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _draw_memory(axes: Axes, found: Largest) -> None:
    peaks = sorted((size, peak / GB) for size, peak in found.tried.items() if peak is not None)
    axes.plot(*zip(*peaks, strict=True), ".", label="measured")
    if found.line is not None:
        fixed, each = found.line
        axes.plot([s for s, _ in peaks], [(fixed + each * s) / GB for s, _ in peaks], "C0:", label="estimated")
    axes.axhline(found.usable / GB, color="C2", label="usable")
    axes.axvline(found.batch_size, color="C3", linestyle="--", label=f"largest {found.batch_size}")
    axes.set(title="memory", xlabel="batch size in examples", ylabel="most memory in GB")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
