"""The picture of a diagnosis: the curves of a run, with the steps marked that its verdicts speak of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunelab.analysis.evidence import Curve, Evidence
from tunelab.analysis.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARK = "tab:red"

LOG_RATIO = 20.0
"""From the least to the greatest of the losses, from which on their axis is logarithmic."""

MEASURES = {"gradient_norm": "gradient norm", "update_ratio": "update / weight", "dead_share": "share of dead units"}


def draw(evidence: Evidence, verdicts: Sequence[Verdict], title: str) -> Figure:
    """Both losses, and beside them the lr and what was measured of each layer.

    Args:
        evidence: What the run recorded.
        verdicts: What was found; the steps and epochs of the main finding are marked.
        title: What stands above it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    marks = marked(evidence, verdicts[0]) if verdicts else []
    lr = (
        evidence.curve("lr")
        if len(evidence.curve("lr"))
        else next((curve for name, curve in evidence.curves.items() if name.startswith("lr/")), Curve())
    )
    side: list[tuple[str, dict[str, Curve]]] = [("lr", {"lr": lr})] if len(lr) else []
    side += [(label, layers) for measure, label in MEASURES.items() if (layers := evidence.layers(measure))]
    left: Any = figure
    if side:
        panels: Any = figure.subfigures(1, 2)
        left, right = panels
        cells = right.subplots(-(-len(side) // 2), 2 if len(side) > 1 else 1, squeeze=False, sharex=True).ravel()
        for axes, (label, curves) in zip(cells, side, strict=False):
            _layers(axes, label, curves, marks)
        for axes in cells[len(side) :]:
            axes.set_visible(False)
    _losses(left.subplots(), evidence, marks)
    return figure


def marked(evidence: Evidence, verdict: Verdict) -> list[int]:
    """The steps that a finding's evidence names, as steps or as epochs."""
    found = {int(number) for number in re.findall(r"\bstep (\d+)", verdict.evidence)}
    curve = evidence.curve("val/loss") if len(evidence.curve("val/loss")) else evidence.curve("train/loss")
    ends = dict(zip(curve.epochs, curve.steps, strict=True))  # of each epoch its last
    found |= {
        ends[int(number) - 1] for number in re.findall(r"\bepoch (\d+)", verdict.evidence) if int(number) - 1 in ends
    }
    return sorted(found)


def _losses(axes: Any, evidence: Evidence, marks: list[int]) -> None:
    shown = [(part, evidence.curve(f"{part}/loss")) for part in ("train", "val")]
    for (part, curve), color in zip(shown, ("tab:blue", "tab:orange"), strict=True):
        if len(curve):
            axes.plot(
                curve.steps, curve.values, color=color, marker="." if len(curve) < 40 else "", label=f"{part}/loss"
            )
    if isinstance(first := evidence.facts.get("first_loss"), float):
        axes.plot([1], [first], color="tab:blue", marker="*", linestyle="", label="first batch")
    nothing = evidence.facts.get("chance_loss")
    if isinstance(nothing, float) and nothing > 0:
        axes.axhline(nothing, color="tab:gray", linestyle=":", linewidth=1, label="a constant prediction")
    _mark(axes, marks, "seen here")
    values = [value for _, curve in shown for value in curve.values]
    if values and min(values) > 0 and max(values) > LOG_RATIO * min(values):
        axes.set_yscale("log")
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel("loss", fontsize=8)
    axes.tick_params(labelsize=7)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7)


def _layers(axes: Any, label: str, curves: dict[str, Curve], marks: list[int]) -> None:
    from matplotlib import colormaps

    positive = all(value > 0 for curve in curves.values() for value in curve.values)
    several = len(curves) > 1
    for place, (name, curve) in enumerate(curves.items()):
        color = colormaps["viridis"](0.9 * place / max(1, len(curves) - 1))
        named = several and (len(curves) <= 5 or place in (0, len(curves) - 1))
        axes.plot(curve.steps, curve.values, color=color, linewidth=1.2, label=name if named else None)
    _mark(axes, marks, None)
    if positive and label != "share of dead units" and label != "lr":
        axes.set_yscale("log")
    if label == "share of dead units":
        axes.set_ylim(-0.03, 1.03)
    axes.set_title(label, fontsize=8)
    axes.set_xlabel("step", fontsize=7)
    axes.tick_params(labelsize=6)
    if several:
        axes.legend(fontsize=5, loc="best")


def _mark(axes: Any, steps: list[int], label: str | None) -> None:
    for place, step in enumerate(steps):
        axes.axvline(step, color=MARK, linewidth=1, linestyle="--", label=label if not place else None)
