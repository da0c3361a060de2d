"""The picture of inits side by side: variance through the layers, loss, and the weights that they began with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from numpy import concatenate, linspace, quantile

from tunelab.tuning.init_fits import Combination

STYLES = ("-", "--", ":", "-.")
MOST_PANELS = 10
BINS = 41


def draw(combinations: Sequence[Combination]) -> Figure:
    """The variances and the loss above, the weights of the first activation and the deepest model below.

    Args:
        combinations: In the order of the legend.
    """
    inits = list(dict.fromkeys(each.init for each in combinations))
    settings = list(dict.fromkeys((each.activation, each.depth) for each in combinations))
    colors = dict(zip(inits, (f"C{number % 10}" for number in range(len(inits))), strict=True))
    styles = dict(zip(settings, STYLES * len(settings), strict=False))
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.6, 1))
    above, below = parts
    forward, back, loss = above.subplots(1, 3)
    for each in combinations:
        look: dict[str, Any] = {"color": colors[each.init], "ls": styles[each.activation, each.depth], "marker": "."}
        for axes, variances in ((forward, each.activations), (back, each.gradients)):
            # what is zero has no place on a log axis
            values = [value if value > 0 else math.nan for value in variances.values()]
            axes.plot(range(1, len(values) + 1), values, **look)
        epochs = list(zip(*each.losses, strict=False))  # a callback of the user's own may have ended one
        loss.plot(range(1, len(epochs) + 1), [statistics.fmean(seeds) for seeds in epochs], **look)
    forward.set(yscale="log", xlabel="hidden layer", ylabel="variance", title="what layers put out")
    back.set(yscale="log", xlabel="hidden layer", ylabel="variance", title="gradient that comes back")
    loss.set(xlabel="epoch", ylabel="train loss", title="first epochs")
    for axes in (forward, back, loss):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    names = [loss.plot([], [], color=colors[init], label=init)[0] for init in inits]
    if len(settings) > 1:
        names += [
            loss.plot([], [], color="gray", ls=styles[setting], label=f"{setting[0]}, depth {setting[1]}")[0]
            for setting in settings
        ]
    above.legend(handles=names, loc="outside right upper", fontsize="small")
    _weights(below, combinations, colors)
    return figure


def _weights(figure: Any, combinations: Sequence[Combination], colors: Mapping[str, Any]) -> None:
    """A panel for each init: how the weights of the first, middle and last hidden layer are spread."""
    deepest = max(each.depth for each in combinations)
    first = combinations[0].activation
    shown = [each for each in combinations if each.depth == deepest and each.activation == first][:MOST_PANELS]
    of_each = {each.init: list(each.layers[0].items())[:-1] or list(each.layers[0].items()) for each in shown}
    weights = concatenate([layer.weights.numpy() for own in of_each.values() for _, layer in own])
    edge = float(quantile(abs(weights), 0.995)) or 1.0
    panels = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (init, own) in zip(panels, of_each.items(), strict=True):
        for number in sorted({0, len(own) // 2, len(own) - 1}):
            path, layer = own[number]
            shade = 1 - 0.6 * number / max(1, len(own) - 1)
            values = layer.weights.numpy()
            axes.hist(
                values,
                bins=linspace(-edge, edge, BINS),
                weights=[1 / len(values)] * len(values),
                histtype="step",
                color=colors[init],
                alpha=shade,
                label=path,
            )
        axes.set_title(init.replace("_", "\n"), fontsize="small")
        axes.tick_params(labelsize="x-small")
    panels[0].set(yscale="log", ylabel="share of weights")
    which = f"{first}, depth {deepest}; first, middle and last hidden layer from dark to light"
    figure.supxlabel(f"weight before the first step ({which})", fontsize="small")
