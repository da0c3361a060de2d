"""The picture of what mattered in a search: importances with their floors, and the strongest pair as a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunelab.analysis.forest import Array, Measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = 10

LOG_RATIO = 20.0
"""From the smallest place to the largest, from which on an axis is logarithmic."""


Pair = tuple[str, str]


def draw(
    objective: str,
    real: Sequence[str],
    fanova: Mapping[str, Measure],
    ped: Mapping[str, Measure],
    pairs: Mapping[Pair, Measure],
    surfaces: Mapping[Pair, tuple[list[Any], list[Any], Array]],
) -> Figure:
    """Bars of both importances, and the forest's mean over the strongest pair of knobs.

    Args:
        objective: The metric.
        real: The knobs above chance.
        fanova: Of each knob.
        ped: PED-ANOVA of each.
        pairs: The interactions, the strongest first.
        surfaces: Of each pair, their places and the forest's mean there.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    keys = list(fanova)[:BARS]
    _bars(left, keys, fanova, ped)
    left.set_yticks(range(len(keys)), [key if key in real else f"{key}\n(noise)" for key in keys], fontsize=8)
    left.set_xlabel(f"share of what moves {objective}")
    if pairs:
        pair, found = next(iter(pairs.items()))
        _map(right, pair, surfaces[pair], objective)
        noise = ", within the noise" if found.is_noise else ""
        right.set_title(f"interaction {found.value:.0%} (floor {found.floor:.0%}{noise})", fontsize=10)
    else:
        right.set_visible(False)
    return figure


def _bars(axes: Any, keys: Sequence[str], fanova: Mapping[str, Measure], ped: Mapping[str, Measure]) -> None:
    rows = [("fANOVA", "tab:blue", -0.18, fanova), ("PED-ANOVA", "tab:cyan", 0.18, ped)]
    for name, color, shift, found in rows:
        measures: list[Measure] = [found[key] for key in keys]
        places = np.arange(len(keys)) + shift
        axes.barh(places, [m.value for m in measures], height=0.32, color=color, label=name)
        for place, m in zip(places, measures, strict=True):
            axes.plot([m.floor] * 2, [place - 0.17, place + 0.17], color="tab:orange", linewidth=3)
    axes.plot([], [], color="tab:orange", linewidth=3, label="floor: values shuffled")
    axes.invert_yaxis()
    axes.legend(fontsize=8)


def _map(axes: Any, pair: Pair, drawn: tuple[list[Any], list[Any], Array], objective: str) -> None:
    one, other, surface = drawn
    xs, ys = _places(axes, "x", one), _places(axes, "y", other)
    mesh = axes.pcolormesh(xs, ys, surface.T, shading="nearest", cmap="viridis")
    axes.figure.colorbar(mesh, ax=axes, label=f"{objective}, the forest's mean")
    axes.set(xlabel=pair[0], ylabel=pair[1])


def _places(axes: Any, which: str, values: list[Any]) -> list[float]:
    """Where the values stand on an axis, which becomes logarithmic or named as they need it."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    is_log = len(numbers) == len(values) and min(numbers) > 0 and max(numbers) / min(numbers) >= LOG_RATIO
    if len(numbers) < len(values) or len(values) <= BARS:
        ticks = axes.set_xticks if which == "x" else axes.set_yticks
        ticks(range(len(values)), [f"{v:.3g}" if v in numbers else str(v) for v in values])
        return [float(place) for place in range(len(values))]
    if is_log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    return [float(number) for number in numbers]
