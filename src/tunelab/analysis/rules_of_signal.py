"""Faults of what flows through the layers: it explodes, vanishes or dies, stops at one of them, or is cut off."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from tunelab.analysis.evidence import Curve, Evidence
from tunelab.analysis.readings import between, fact, first_gradients, knowing_nothing, number, share
from tunelab.analysis.remedies import A_STEP, measured_by, times_lr
from tunelab.analysis.verdict import Verdict

EXPLODED = 5.0
"""Times the loss of a constant prediction at the first step. Weights that keep variance begin within twice of it."""

VANISHED = 1e-3
"""Of the gradient near the output that reaches the input. Healthy networks of six layers keep a hundredth or more."""

DEAD = 0.5
"""Of a layer's units: half of its capacity is lost. A fifth is usual under relu."""

CLIPPED = 0.5
"""Of the steps: beyond it the limit, not the lr, sets the pace."""

FAR_ABOVE = 10.0
"""Times the limit: norms that lie so far above it show a limit set too low, others an lr set too high."""

SATURATING = ("sigmoid", "tanh", "softmax")
"""Activations whose slope fades on both sides."""


def exploding_signal(evidence: Evidence) -> Verdict | None:
    """Outputs of another size than the targets before the first step: the weights began too large."""
    first, nothing = fact(evidence, "first_loss"), knowing_nothing(evidence)
    noted = evidence.facts.get("chance_loss")
    if first is None or not noted or nothing is None or first < EXPLODED * nothing:
        return None
    gradients = first_gradients(evidence)
    shown = (
        f"; the gradients' norm was {number(math.hypot(*gradients.values()))} at the first step" if gradients else ""
    )
    return Verdict(
        "exploding_signal",
        "The signal explodes through the layers: the weights begin too large.",
        f"the loss of the first batch, before any step, was {number(first)}, {number(first / nothing)} times that of "
        f"a constant prediction ({number(nothing)}){shown}",
        between(first / nothing, EXPLODED, 4 * EXPLODED),
        _other_init(evidence, "default" if "relu" not in _activation(evidence) else "kaiming_normal"),
        "Draw weights that keep the variance from layer to layer.",
        measured_by("compare_inits", evidence, "init"),
    )


def vanishing_signal(evidence: Evidence) -> Verdict | None:
    """Gradients that shrink from layer to layer on their way down: the first layers hardly learn."""
    norms = list(first_gradients(evidence).items())
    if len(norms) < 3:
        return None
    top_name, top = max(norms[len(norms) // 2 :], key=lambda layer: layer[1])
    low_name, low = min(norms[: (len(norms) + 1) // 2], key=lambda layer: layer[1])
    if not 0 < low < VANISHED * top:
        return None
    activation, overrides = _activation(evidence), []
    if activation in SATURATING:
        overrides.append("activation=relu")
    overrides += _other_init(evidence, "kaiming_normal")
    if evidence.recipe.get("model", {}).get("normalization") == "none":
        overrides.append("model.normalization=batch")
    return Verdict(
        "vanishing_signal",
        f"The gradient vanishes on its way down: {low_name} hardly learns.",
        f"in the first step its norm was {number(low)} in {low_name} and {number(top)} in {top_name}, over "
        f"{len(norms)} layers{f' of {activation}' if activation in SATURATING else ''}",
        between(VANISHED * top / low, 1.0, 1e5),  # a thousandth may also be the work of a high lr
        tuple(overrides),
        "Use an activation whose slope does not fade, weights that keep the variance, norms, or residual blocks.",
    )


def dead_units(evidence: Evidence) -> Verdict | None:
    """Units that give every example the same answer: no gradient passes them."""
    shares = {name: curve for name, curve in evidence.layers("dead_share").items() if len(curve)}
    if not shares:
        return None
    name = max(shares, key=lambda layer: statistics.median(shares[layer].values))
    curve = shares[name]
    usual = statistics.median(curve.values)
    if usual < DEAD:
        return None
    began: dict[str, float | None] = evidence.facts.get("first_gradient_norms") or {"": None}
    flowed = curve.values[0] == 1 and all(began.values())
    from_the_start = curve.values[0] >= DEAD and not flowed  # no gradient passes a layer that is wholly dead
    overrides = (
        list(_other_init(evidence, "kaiming_normal")) if from_the_start else list(times_lr(evidence, 1 / A_STEP))
    )
    if _activation(evidence) == "relu":
        overrides.append("activation=leaky_relu")
    return Verdict(
        "dead_units",
        f"Units are dead: {share(usual)} of {name} give every example the same answer.",
        f"{share(curve.values[0])} at step {curve.steps[0]}, {share(curve.values[-1])} at step {curve.steps[-1]}",
        between(usual, DEAD, 1.0, (0.7, 0.97)),
        tuple(overrides),
        "They began so: look at biases and the init."
        if from_the_start
        else "They died on the way: the lr is too high.",
    )


def layer_stands_still(evidence: Evidence) -> Verdict | None:
    """A layer that no step moves although a gradient reaches it."""
    ratios, gradients = evidence.layers("update_ratio"), evidence.layers("gradient_norm")
    still = [
        name
        for name, curve in ratios.items()
        if len(curve) and max(curve.values) == 0 and max(gradients[name].values if name in gradients else (1.0,)) > 0
    ]
    noted = evidence.facts.get("frozen_layers") or []
    still += [name for name in noted if name not in still and not any(ratios.get(name, Curve()).values)]
    if not still or not any(len(curve) and max(curve.values) > 0 for curve in ratios.values()):
        return None
    rules = evidence.recipe.get("parameter_groups", {}).get("rules") or []
    frozen = [rule for rule in rules if rule.get("lr") == 0]
    named = f"{', '.join(still[:3])}{' and others' if len(still) > 3 else ''}"
    return Verdict(
        "layer_stands_still",
        f"{named} never {'move' if len(still) > 1 else 'moves'}, while other layers learn.",
        f"no step of {max(len(curve) for curve in ratios.values())} that were written moved "
        + ("them" if len(still) > 1 else "it")
        + (f"; parameter_groups.rules has {_rule(frozen[0])}" if frozen else ""),
        0.4 if evidence.choices.get("init") == "pretrained" else 0.95,  # there it is often meant
        (f"parameter_groups.rules=[{','.join(_rule(r) for r in rules if r not in frozen)}]",) if frozen else (),
        "If it is frozen on purpose, all is well; else let it train: requires_grad, and an lr above 0.",
    )


def clipped_too_often(evidence: Evidence) -> Verdict | None:
    """More steps clipped than not: the limit sets the pace."""
    clipped, norms = evidence.curve("gradients/clipped_share"), evidence.curve("gradients/norm")
    if not len(clipped) or (mean := statistics.fmean(clipped.values)) <= CLIPPED:
        return None
    clipping: Mapping[str, Any] = evidence.recipe.get("clipping") or {}
    limit, usual = clipping.get("max_norm"), statistics.median(norms.values) if len(norms) else math.nan
    seen = f"{share(mean)} of the steps were clipped"
    if isinstance(limit, (int, float)) and limit > 0 and usual > FAR_ABOVE * limit:
        return Verdict(
            "clipped_too_often",
            "Clipping is far too low: it shortens nearly every step.",
            f"{seen}; clipping.max_norm={limit:g}, while the gradients' norm was {number(usual)} in the middle",
            0.95 if mean > 0.9 else 0.8,
            (f"clipping.max_norm={_round_up(_high(norms.values))}",),
            "A limit is there for the rare step: set it above the usual norm.",
        )
    against = f"; clipping.max_norm={limit:g}, the gradients' norm was {number(usual)} in the middle" if limit else ""
    return Verdict(
        "clipped_too_often",
        "More steps are clipped than not: the limit sets the pace in place of the lr.",
        seen + against,
        0.7,
        times_lr(evidence, 1 / A_STEP),
        "Lower the lr, or raise the limit.",
    )


def _activation(evidence: Evidence) -> str:
    return str(evidence.choices.get("activation", ""))


def _other_init(evidence: Evidence, better: str) -> tuple[str, ...]:
    chosen = evidence.choices.get("init")
    return (f"init={better}",) if chosen != better else ("init=lsuv",)


def _rule(rule: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in rule.items()) + "}"


def _high(values: tuple[float, ...]) -> float:
    return sorted(values)[int(0.9 * (len(values) - 1))]


def _round_up(value: float) -> str:
    power = 10.0 ** math.floor(math.log10(value))
    return f"{math.ceil(value / power) * power:g}"
