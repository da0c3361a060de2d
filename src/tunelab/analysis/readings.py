"""What rules read off a run: where a loss began and ended, how fast weights moved, how gradients lie in depth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from tunelab.analysis.evidence import Curve, Evidence

LAST_SHARE = 0.1
"""Of a curve, what counts as its end."""

CLEAR = 3.0
"""Standard deviations of a score by chance, above which the best of a run's validations is no work of chance."""


def fact(evidence: Evidence, name: str) -> float | None:
    """A number that the run noted, if it did."""
    value = evidence.facts.get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def is_over(evidence: Evidence) -> bool:
    """Whether the run came to an end of its own: one that was interrupted or pruned may have been about to learn."""
    return evidence.result.get("status") == "finished"


def ran_to_its_end(evidence: Evidence) -> bool:
    """Whether every epoch asked for was trained: an end that something else set says nothing of the number asked."""
    return is_over(evidence) and evidence.result.get("epochs") == evidence.result.get("epochs_asked")


def knowing_nothing(evidence: Evidence, part: str = "train") -> float | None:
    """The loss that others are measured against: that of the best constant output, else that of the first batch.

    Args:
        evidence: Of a run.
        part: Whose losses they are: `val` is without what acts in training alone, and has other targets.
    """
    constant = fact(evidence, "chance_loss")
    of_part = fact(evidence, "chance_val_loss") if part == "val" else None
    noted = of_part or constant or fact(evidence, "first_loss")
    return noted if noted is not None and noted > 0 else None


def nothing_gives(evidence: Evidence, part: str = "train") -> str:
    """The same in words, such as `a constant prediction has 2.3`; asked for where there is such a loss."""
    value = knowing_nothing(evidence, part)
    assert value is not None
    constant = fact(evidence, "chance_loss") or (part == "val" and fact(evidence, "chance_val_loss"))
    return f"{'a constant prediction' if constant else 'the first batch'} has {number(value)}"


def beats_a_constant(evidence: Evidence) -> bool:
    """Whether a score that is no loss says that validation was better than any constant prediction, beyond chance."""
    majority, examples = fact(evidence, "majority_val_share"), fact(evidence, "val_examples")
    accuracy, r2 = evidence.curve("val/accuracy"), evidence.curve("val/r2")
    if len(accuracy) and majority is not None and examples:
        chance = math.sqrt(majority * (1 - majority) / examples)
        return max(accuracy.values) > majority + CLEAR * chance
    return bool(len(r2)) and bool(examples) and max(r2.values) > CLEAR / math.sqrt(examples or 1.0)


def by_epoch(curve: Curve) -> Curve:
    """A curve with one value an epoch, the mean of those written in it; its steps are those of the last."""
    values: dict[int, list[float]] = {}
    steps: dict[int, int] = {}
    for step, epoch, value in zip(curve.steps, curve.epochs, curve.values, strict=True):
        values.setdefault(epoch, []).append(value)
        steps[epoch] = step
    epochs = tuple(sorted(values))
    return Curve(tuple(steps[e] for e in epochs), epochs, tuple(statistics.fmean(values[e]) for e in epochs))


def at_the_end(curve: Curve) -> float:
    """The mean of the last tenth of a curve that has a value."""
    return statistics.fmean(curve.values[-max(1, round(LAST_SHARE * len(curve))) :])


def lowest(curve: Curve) -> int:
    """The place of the smallest value of a curve that has one."""
    return min(range(len(curve)), key=curve.values.__getitem__)


def at_half(curve: Curve, beginning: float) -> float:
    """What a curve by epoch was when half of its epochs were over, on the line between its neighbours.

    Args:
        curve: One value at the end of each epoch.
        beginning: Its value before the first.
    """
    values = (beginning, *curve.values)
    middle = (len(values) - 1) / 2
    left, rest = int(middle), middle - int(middle)
    return values[left] if not rest else values[left] * (1 - rest) + values[left + 1] * rest


def paces(evidence: Evidence) -> Curve:
    """How far a step moves the weights when the lr stands at its peak: the middle layer's update ratio, at each step.

    What a schedule has taken off the lr is put back, so that the beginning of a warm-up and the end of a decay say
    the same as the steps between them. Where less than a thousandth is left, rounding speaks instead: left out.
    """
    layers, rates = evidence.layers("update_ratio"), lrs(evidence)
    peak = max(rates.values(), default=0.0)
    found: dict[int, list[float]] = {}
    for curve in layers.values():
        for step, value in zip(curve.steps, curve.values, strict=True):
            found.setdefault(step, []).append(value)
    pace = {
        step: statistics.median(values) * (peak / rates[step] if step in rates else 1.0)
        for step, values in found.items()
        if step not in rates or rates[step] > 1e-3 * peak
    }
    steps = tuple(sorted(pace))
    return Curve(steps, tuple(0 for _ in steps), tuple(pace[step] for step in steps))


def lrs(evidence: Evidence) -> dict[int, float]:
    """The lr of each step that it was written of; of several groups that of the fastest."""
    rates: dict[int, float] = {}
    for name, curve in evidence.curves.items():
        if name == "lr" or name.startswith("lr/"):
            for step, value in zip(curve.steps, curve.values, strict=True):
                rates[step] = max(value, rates.get(step, 0.0))
    return rates


def first_gradients(evidence: Evidence) -> dict[str, float]:
    """The norm of each layer's gradient in the first step, else in the first that was written; in the model's order."""
    noted: dict[str, float | None] = evidence.facts.get("first_gradient_norms") or {}
    written = {layer: curve.values[0] for layer, curve in evidence.layers("gradient_norm").items() if len(curve)}
    return {layer: value for layer, value in noted.items() if value is not None} or written


def number(value: float) -> str:
    """A measured value in three digits."""
    return f"{value:.3g}"


def share(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.0f} %"


def dial(value: float) -> str:
    """A value as it would be typed: two digits."""
    return f"{value:.2g}"


def between(value: float, low: float, high: float, certainties: Sequence[float] = (0.6, 0.95)) -> float:
    """A certainty that grows with the logarithm of a value, from the first at `low` to the second at `high`."""
    place = (math.log(max(value, low)) - math.log(low)) / (math.log(high) - math.log(low))
    return certainties[0] + (certainties[1] - certainties[0]) * min(1.0, place)
