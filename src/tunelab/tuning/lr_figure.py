"""The picture of a learning-rate range test: the loss of each seed where it falls and diverges, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunelab.tuning.lr_curve import Curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAT_SHOWN = 30.0
"""How many times below the valley the picture begins: what lies before is flat."""

BEYOND_SHOWN = 3.0
"""How many times above the last divergence it ends."""

SEEDS_NAMED = 6
"""In the legend, at most."""


@dataclass(frozen=True)
class Marks:
    """The lrs that are marked, the medians over seeds; `divergence` is None if no loss diverges."""

    lr: float
    valley: tuple[float, float]
    steepest: float
    minimum: float
    divergence: float | None


def draw(curves: Sequence[Curve], marks: Marks, title: str) -> Figure:
    """The losses against the lr, thin those of each step, bold the smoothed.

    Args:
        curves: Of each seed; a seed that speaks for no lr is dashed.
        marks: What was found.
        title: What stands above it.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for index, curve in enumerate(curves):
        shown, color = len(curve.finite), colors[index % len(colors)]
        named = f"seed {curve.seed}" if len(curves) <= SEEDS_NAMED else None
        axes.plot(curve.rates[:shown], curve.finite, color=color, alpha=0.25, linewidth=0.7)
        style = "-" if curve.answers else "--"
        axes.plot(curve.rates[:shown], curve.smoothed, style, color=color, linewidth=1.4, label=named)
    low, high = marks.valley
    axes.axvspan(low, high, color="tab:green", alpha=0.18, zorder=0, label=f"valley {low:.1e} to {high:.1e}")
    axes.axvline(marks.lr, color="black", linewidth=2, label=f"lr {marks.lr:.2g}, the answer")
    for value, color, line, name in (
        (marks.steepest, "tab:purple", ":", "steepest fall"),
        (marks.minimum, "dimgray", "-.", "minimum"),
        (marks.divergence, "tab:red", "--", "divergence"),
    ):
        if value is not None:
            axes.axvline(value, color=color, linestyle=line, label=f"{name} {value:.1e}")
    axes.set(xscale="log", xlabel="lr", ylabel="training loss (thin: of each step, bold: smoothed)", title=title)
    axes.set_xlim(*_across(curves, marks))
    axes.set_ylim(*_upright([curve for curve in curves if curve.answers]))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
    return figure


def _across(curves: Sequence[Curve], marks: Marks) -> tuple[float, float]:
    """From which lr to which: some of what is flat, the valley, and the divergence of every seed."""
    lowest = min(marks.lr, marks.steepest, min(curve.valley[0] for curve in curves if curve.answers))
    ends = [curve.divergence for curve in curves if curve.answers and curve.divergence is not None]
    rates = curves[0].rates
    last = max(ends) if len(ends) == sum(curve.answers for curve in curves) else rates[-1]
    return max(rates[0], min(marks.valley[0] / FLAT_SHOWN, lowest / 2)), min(rates[-1], BEYOND_SHOWN * last)


def _upright(curves: Sequence[Curve]) -> tuple[float, float]:
    """From which loss to which: what is gained, and some of what is lost again."""
    low, first = min(curve.lowest for curve in curves), max(curve.first for curve in curves)
    noise = max(curve.noise for curve in curves)
    return low - 0.1 * (first - low) - 2 * noise, first + 0.4 * (first - low) + 4 * noise
