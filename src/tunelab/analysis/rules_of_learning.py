"""Faults of the pace and the length of learning, and of a model's size: what the losses' curves show."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

from tunelab.analysis.evidence import Curve, Evidence
from tunelab.analysis.readings import (
    at_half,
    at_the_end,
    between,
    by_epoch,
    fact,
    is_over,
    knowing_nothing,
    lowest,
    nothing_gives,
    number,
    paces,
    ran_to_its_end,
    share,
)
from tunelab.analysis.remedies import (
    A_STEP,
    is_far_below,
    larger,
    measured_by,
    of_epochs,
    raised_lr,
    regularized,
    times_lr,
)
from tunelab.analysis.rules_of_signal import dead_units
from tunelab.analysis.verdict import Verdict
from tunelab.errors import counted

ROSE, EARLY = 1.25, 0.25
"""Times the loss of the first batch: a mean above it says that steps did harm, of validation in the run's first part.

Later, validation may rise as far by overfitting.
"""

FLUNG = 10.0
"""Times the loss of a constant prediction: a training loss so high shows steps that were too large."""

OVERWRITING = 0.05
"""Of a layer that a step moves: twenty of them write it anew. Healthy are up to 0.02, with momentum or Muon 0.03."""

JUMP = 0.2
"""Of the loss of a constant prediction that validation may rise from one epoch to the next, once in a run."""

STUCK = 0.5
"""Of the loss of a constant prediction: above it at the end, little was learned."""

CRAWLING, HEALTHY_PACE = 3e-4, 2e-3
"""Of a layer that a step moves at the peak of the lr: below the first it hardly moves; the second is usual."""

STILL_FALLING, LEFT = 0.05, 0.08
"""Of the loss of a constant prediction: what validation fell by in the run's second half, and what was left.

A decaying lr has healthy runs fall by 0.03 to their end."""

SHORT, STILL_FALLING_SHORT = 10, 0.02
"""Fewer epochs are too few sooner than many: of them less is asked."""

HIGH, HARDLY = 0.1, 0.95
"""Of the loss of a constant prediction that is left at the end: much for a small model, and for any.

Where labels are noisy a healthy run ends at 0.8 or 0.9."""

FEW_PARAMETERS = 0.2
"""Times the training examples."""

NARROW = 4
"""Units, or one fewer than the classes: a layer with fewer lets less through than nearly any task needs."""

RISEN = 0.1
"""Of the loss of a constant prediction that validation has risen above its minimum."""

SETTLED, CLOSE, WASTED_STEPS = 0.1, 0.02, 500
"""Share of the epochs after which nothing came that counts: 0.02 of the loss of a constant prediction, or one example.

An easy data set is learned in an epoch or two: of a few hundred steps more nobody should be told."""


REMEDY, TO_TYPE = ("Try ", "Mend ", "Look at ", "Add "), "For a new run"
"""How the lines of a message begin that say what to do: an evidence is without them."""


def diverged(evidence: Evidence) -> Verdict | None:
    """A loss or a weight that became NaN or Inf."""
    if evidence.result.get("status") != "diverged":
        return None
    said = str(evidence.result.get("message") or f"At step {evidence.result.get('steps')}.").splitlines()
    tried = [line for line in said if line.startswith(REMEDY)]
    lr = re.search(r"\bTry (lr=[0-9.e+-]+[0-9])", " ".join(tried))
    return Verdict(
        "diverged",
        "The run diverged.",
        " ".join(line.strip() for line in said if not line.startswith((*REMEDY, TO_TYPE))),
        0.98,
        (lr[1],) if lr else () if tried else times_lr(evidence, 0.1),
        re.sub(r"^Try lr=[^ ]+(?:, | or )", "Try ", " ".join(tried))
        or "Take smaller steps: a lower lr, a warm-up, or clipping.",
    )


def lr_too_high(evidence: Evidence) -> Verdict | None:
    """Steps so large that the loss rises, jumps, or stays where it was.

    How far a step moves the weights counts only where the loss is stuck or jumps to the end: many a good run is fast.
    Of one that ended well it is but perhaps so, and only if its loss rose at first.
    """
    train, val = by_epoch(evidence.curve("train/loss")), by_epoch(evidence.curve("val/loss"))
    nothing, nothing_val = knowing_nothing(evidence), knowing_nothing(evidence, "val")
    if not len(train) or nothing is None or nothing_val is None:
        return None
    unit = nothing_val if len(val) else nothing
    pace = paces(evidence)
    crawled = bool(len(pace)) and max(pace.values) < CRAWLING
    if crawled and max(train.values) < FLUNG * nothing:
        return None  # what hardly moves does no harm: dropout and small batches make such losses
    rise, certainty = _risen(train, val, max(nothing, fact(evidence, "first_loss") or 0.0))
    seen = [rise] if rise else []
    low, level = at_the_end(train), at_the_end(val if len(val) else train)
    best = min((val if len(val) else train).values)
    well = level < (STUCK if low < HIGH * nothing else HIGH) * unit and level - best < RISEN * unit
    recovered = well and dead_units(evidence) is None
    stuck = min(low / nothing, level / unit) > STUCK
    jumps = [(after - before, step) for before, after, step in _moves(val) if after - before > JUMP * nothing_val]
    last = bool(jumps) and jumps[-1][1] > val.steps[len(val) // 2 - 1]
    if len(jumps) > 1 and last:
        jump, step = max(jumps)
        seen.append(f"the validation loss jumped {len(jumps)} times, by {number(jump)} up to step {step}")
        certainty = max(certainty, 0.75)
    fastest = max(range(len(pace)), key=pace.values.__getitem__, default=0)
    if len(pace) and pace.values[fastest] > OVERWRITING and (stuck or (last and not well)):
        seen.append(
            f"a step moved the middle layer by {share(pace.values[fastest])} of its weights "
            f"(step {pace.steps[fastest]}; 0.1 % is usual)"
        )
        certainty = max(certainty + 0.1, 0.85) if certainty else 0.85
    if not seen or (well and not rise):
        return None
    exploded = max(train.values) > FLUNG * nothing and not well
    return Verdict(
        "lr_too_high",
        "The lr may be too high: its first steps overshot, and the run recovered."
        if recovered
        else "The lr is too high: steps overshoot.",
        "; ".join(seen),
        0.5 if recovered else min(certainty, 0.98),
        times_lr(evidence, 0.1 if exploded else 1 / A_STEP),
        "A warm-up (warmup_fraction=0.1) takes the first steps more gently." if recovered else "",
        measured_by("find_lr", evidence, "lr"),
    )


def _risen(train: Curve, val: Curve, begun: float) -> tuple[str, float]:
    """What says that a loss rose above that of the first batch, of validation early in the run, and how sure that is.

    Args:
        train: The training loss by epoch.
        val: The validation loss by epoch.
        begun: The loss of the first batch.
    """
    first = math.ceil(EARLY * len(val))
    early = Curve(val.steps[:first], val.epochs[:first], val.values[:first])
    for what, curve in (("training", train), ("validation", early)):
        top, step = max(zip(curve.values, curve.steps, strict=True), default=(0.0, 0))
        if top > ROSE * begun:
            said = f"the {what} loss rose to {number(top)} by step {step}; the first batch had {number(begun)}"
            return said, between(top / begun, ROSE, 2 * ROSE, (0.75, 0.97))
    return "", 0.0


def lr_too_low(evidence: Evidence) -> Verdict | None:
    """Steps so small that the weights hardly move and most of the loss is left."""
    pace, part = paces(evidence), "val" if len(evidence.curve("val/loss")) else "train"
    curve, nothing = by_epoch(evidence.curve(f"{part}/loss")), knowing_nothing(evidence, part)
    if not len(pace) or not len(curve) or nothing is None or not is_over(evidence):
        return None
    fastest, left = max(pace.values), at_the_end(curve)
    if not 0 < fastest < CRAWLING or left < STUCK * nothing:
        return None
    factor = min(1000.0, max(10.0, HEALTHY_PACE / fastest))
    return Verdict(
        "lr_too_low",
        "The lr is too low: the weights hardly move.",
        f"at its peak a step moved the middle layer by {number(fastest)} of its weights (1e-3 is usual); after "
        f"{curve.steps[-1]} steps the loss is {number(left)}, where {nothing_gives(evidence, part)}",
        between(CRAWLING / fastest, 1.0, 5.0),
        raised_lr(evidence, factor),
        measure=measured_by("find_lr", evidence, "lr"),
    )


def too_few_epochs(evidence: Evidence) -> Verdict | None:
    """Validation that was still improving when the run ended."""
    val, nothing = by_epoch(evidence.curve("val/loss")), knowing_nothing(evidence, "val")
    if not len(val) or nothing is None or not ran_to_its_end(evidence):
        return None
    middle, end = at_half(val, max(nothing, fact(evidence, "first_loss") or 0.0)), val.values[-1]
    fell, epochs = middle - end, int(evidence.result["epochs"])
    least = STILL_FALLING_SHORT if epochs < SHORT else STILL_FALLING
    if fell < least * nothing or end < LEFT * nothing:
        return None
    more = 2 if epochs >= 10 else max(3, round(20 / epochs))
    return Verdict(
        "too_few_epochs",
        "The run ended too early: validation was still improving.",
        f"in the second half of its {counted(epochs, 'epoch')} the validation loss fell from {number(middle)} to "
        f"{number(end)}, by {share(fell / nothing)} of where it begins ({nothing_gives(evidence, 'val')})",
        between(fell / nothing, least, 3 * least, (0.65, 0.95)),
        of_epochs(evidence, more * epochs),
        "Train longer.",
    )


def model_too_small(evidence: Evidence) -> Verdict | None:
    """Training and validation both high, and layers too narrow for what comes in or goes out.

    The losses alone look the same where a model is too small and where the inputs do not tell more: a model as wide as
    its inputs gets no verdict, one between is but perhaps too small, and none is surely.
    """
    train, val = by_epoch(evidence.curve("train/loss")), by_epoch(evidence.curve("val/loss"))
    nothing, nothing_val = knowing_nothing(evidence), knowing_nothing(evidence, "val")
    examples, parameters = fact(evidence, "train_examples"), fact(evidence, "parameters")
    if not len(train) or not len(val) or not nothing or not nothing_val or examples is None or parameters is None:
        return None
    high, low = at_the_end(val), at_the_end(train)
    few = parameters < FEW_PARAMETERS * examples
    left, learned = high / nothing_val, low / nothing
    if not few or not is_over(evidence) or min(left, learned) < HIGH or left - learned > HIGH:
        return None
    width, classes = (evidence.recipe.get("size") or {}).get("width"), int(fact(evidence, "classes") or 0)
    inputs = fact(evidence, "input_values") or 0
    if not isinstance(width, int) or width >= max(NARROW, classes - 1, inputs):
        return None
    narrow = width < max(NARROW, classes - 1)
    return Verdict(
        "model_too_small",
        "The model is too small: training and validation are both high."
        if narrow
        else "Training and validation are both high: either the model is too small, or the inputs do not tell more.",
        f"size.width={width} for {counted(int(inputs), 'input')}{f' and {classes} classes' if classes else ''}, "
        f"{parameters:.0f} parameters for {examples:.0f} examples; at the end the training loss is {number(low)}, the "
        f"validation loss {number(high)}, where {nothing_gives(evidence, 'val')}",
        between(left, HIGH, 5 * HIGH, (0.65, 0.85)) if narrow else 0.5,
        larger(evidence),
        "If it is no better, the inputs do not tell more.",
    )


def nothing_learned(evidence: Evidence) -> Verdict | None:
    """A loss that hardly fell, whatever the reason."""
    train, nothing = by_epoch(evidence.curve("train/loss")), knowing_nothing(evidence)
    if not len(train) or nothing is None or not is_over(evidence):
        return None
    if (left := at_the_end(train)) < HARDLY * nothing:
        return None
    return Verdict(
        "nothing_learned",
        "The loss hardly fell.",
        f"after {train.steps[-1]} steps the training loss is {number(left)}, where {nothing_gives(evidence)}",
        0.6,
        raised_lr(evidence, 10) if is_far_below(evidence) else (),
        "If no lr is of help, look at the data: do the inputs tell the target?",
        measured_by("find_lr", evidence, "lr"),
    )


def overfit(evidence: Evidence) -> Verdict | None:
    """Training low while validation has risen since its minimum."""
    train, val = by_epoch(evidence.curve("train/loss")), by_epoch(evidence.curve("val/loss"))
    nothing = knowing_nothing(evidence, "val")
    if not len(train) or not len(val) or nothing is None:
        return None
    best, end = lowest(val), at_the_end(val)
    rise, low = end - val.values[best], at_the_end(train)
    then = dict(zip(train.epochs, train.values, strict=True)).get(val.epochs[best], math.inf)
    if rise < RISEN * nothing or low >= then:
        return None
    return Verdict(
        "overfit",
        "The model overfits: it goes on learning its training examples, and validation gets worse.",
        f"the validation loss rose from {number(val.values[best])} at epoch {val.epochs[best] + 1} to {number(end)}, "
        f"while the training loss fell from {number(then)} to {number(low)}",
        between(rise / nothing, RISEN, 3 * RISEN, (0.75, 0.97)),
        regularized(evidence),
        f"Or stop at about epoch {val.epochs[best] + 1}.",
    )


def too_many_epochs(evidence: Evidence) -> Verdict | None:
    """A run in which nothing that counts came after its beginning."""
    val, nothing = by_epoch(evidence.curve("val/loss")), knowing_nothing(evidence, "val")
    if not len(val) or nothing is None or not ran_to_its_end(evidence):
        return None
    settled = max(_reached(val, CLOSE * nothing, sign=1), _objective_reached(evidence))
    epochs, steps = int(evidence.result["epochs"]), evidence.result["steps"]
    wasted = (1 - settled / epochs) * steps
    if settled > SETTLED * epochs or wasted < WASTED_STEPS or at_the_end(val) > STUCK * nothing:
        return None
    return Verdict(
        "too_many_epochs",
        "The run is far too long: nothing that counts came after its beginning.",
        f"the validation loss was within {share(CLOSE)} of its best, and {evidence.result['objective']['metric']} "
        f"within an example of it, by epoch {settled} of {epochs}",
        0.8,
        of_epochs(evidence, max(3, 3 * settled)),
        "A schedule that ends sooner often ends better.",
    )


def _moves(curve: Curve) -> list[tuple[float, float, int]]:
    """Each value with the one before it, and the step."""
    return [(a, b, step) for (a, b), step in zip(pairwise(curve.values), curve.steps[1:], strict=True)]


def _reached(curve: Curve, tolerance: float, *, sign: int) -> int:
    """The epoch, counted from 1, at which a curve first came within a tolerance of its best.

    Args:
        curve: Any.
        tolerance: In its unit.
        sign: 1 where less is better, -1 where more is.
    """
    values = [sign * value for value in curve.values]
    return next(
        epoch + 1 for epoch, value in zip(curve.epochs, values, strict=True) if value <= min(values) + tolerance
    )


def _objective_reached(evidence: Evidence) -> int:
    asked: dict[str, Any] = evidence.result.get("objective") or {}
    curve, sign = by_epoch(evidence.curve(str(asked.get("metric")))), -1 if asked.get("direction") == "maximize" else 1
    if not len(curve):
        return 0
    examples = fact(evidence, "val_examples")
    spread = max(curve.values) - min(curve.values)
    an_example = 1.001 / examples if sign == -1 and examples else 0.0
    return _reached(curve, max(an_example, CLOSE * spread), sign=sign)
