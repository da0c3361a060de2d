"""The picture of which knob matters: a bar for each with the noise, and the curves of the first six."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunelab.analysis.effects import Effect, is_ordered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = 6

BARS = 12

LOG_RATIO = 8.0
"""From the smallest value of a knob to the largest, from which on its axis is logarithmic."""

REAL, NOISE, FLOOR = "tab:blue", "tab:gray", "tab:orange"


def draw(objective: str, effects: Sequence[Effect]) -> Figure:
    """The effects as bars, each with its noise floor, and beside them the mean of each value with its seeds.

    Args:
        objective: The metric.
        effects: Those to be shown, in order.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    shown = effects[:CURVES]
    columns = 1 if len(shown) == 1 else 2 if len(shown) <= 4 else 3
    rows = max(1, -(-len(shown) // columns))
    grid = figure.add_gridspec(1, 2, width_ratios=(2, 3))
    _bars(figure.add_subplot(grid[0, 0]), objective, effects[:BARS])
    figure.suptitle("grey: within the noise · mean ± sd and each seed · dotted: the recipe's own value", fontsize=8)
    if shown:
        cells = grid[0, 1].subgridspec(rows, columns).subplots(squeeze=False, sharey=True).ravel()
        for index, (axes, each) in enumerate(zip(cells, shown, strict=False)):
            _curve(axes, each)
            if index % columns == 0:
                axes.set_ylabel(objective, fontsize=8)
        for axes in cells[len(shown) :]:
            axes.set_visible(False)
    return figure


def _bars(axes: Any, objective: str, shown: Sequence[Effect]) -> None:
    effects = list(reversed(shown))
    places = range(len(effects))
    colors = [NOISE if each.is_noise else REAL for each in effects]
    axes.barh(places, [each.size for each in effects], color=colors, height=0.6)
    for place, each in zip(places, effects, strict=True):
        if math.isfinite(each.floor):
            axes.plot([each.floor] * 2, [place - 0.4, place + 0.4], color=FLOOR, linewidth=3)
    axes.plot([], [], color=FLOOR, linewidth=3, label="noise floor of the seeds")
    axes.set_yticks(list(places), [each.key for each in effects], fontsize=8)
    axes.set_xlabel(f"effect on {objective}: best mean - worst mean", fontsize=8)
    axes.set_ylim(-0.7, max(len(effects), 1) - 0.3)
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)


def _curve(axes: Any, each: Effect) -> None:
    values = [place.value for place in each.places]
    ordered = is_ordered(each.places)
    xs = [float(value) for value in values] if ordered else list(range(len(values)))
    means = [place.mean for place in each.places]
    color = NOISE if each.is_noise else REAL
    axes.errorbar(
        xs, means, [p.deviation for p in each.places], color=color, capsize=3, fmt="o-" if ordered else "o", zorder=2
    )
    for x, place in zip(xs, each.places, strict=True):
        axes.scatter([x] * len(place.scores), place.scores, s=8, color="black", alpha=0.4, zorder=3)
    if each.own is not None:
        axes.axvline(xs[each.places.index(each.own)], color="tab:green", linestyle=":", linewidth=1)
    if ordered and min(xs) > 0 and max(xs) / min(xs) >= LOG_RATIO:
        axes.set_xscale("log")
    if not ordered:
        axes.set_xticks(xs, [place.shown for place in each.places])
        axes.set_xlim(-0.5, len(xs) - 0.5)
    axes.set_xlabel(each.key, fontsize=8)
    axes.tick_params(labelsize=7)
