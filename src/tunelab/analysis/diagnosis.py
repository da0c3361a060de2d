"""What is wrong with a run, in words: every rule asked, causes before their consequences. No torch."""

from __future__ import annotations

from collections.abc import Callable

from tunelab.analysis import rules_of_data as data
from tunelab.analysis import rules_of_learning as learning
from tunelab.analysis import rules_of_signal as signal
from tunelab.analysis.evidence import Evidence
from tunelab.analysis.verdict import LIKELY, Verdict

__all__ = ["Verdict", "diagnose"]

Rule = Callable[[Evidence], Verdict | None]

RULES: dict[Rule, float] = {
    data.val_in_train: 1.0,
    data.data_not_shuffled: 1.0,
    signal.exploding_signal: 1.0,
    learning.diverged: 0.95,
    signal.dead_units: 0.95,
    signal.vanishing_signal: 0.95,
    data.labels_random: 0.95,
    learning.lr_too_high: 0.9,
    signal.clipped_too_often: 0.9,
    learning.lr_too_low: 0.85,
    signal.layer_stands_still: 0.85,
    data.too_few_examples: 0.85,
    data.labels_in_conflict: 0.8,
    learning.model_too_small: 0.8,
    learning.overfit: 0.75,
    learning.too_few_epochs: 0.7,
    learning.nothing_learned: 0.6,
    learning.too_many_epochs: 0.5,
}
"""How severe each finding is: 1 where the score means nothing or training cannot work, 0.5 where it only takes time."""

EXPLAINS: dict[str, tuple[str, ...]] = {
    "data_not_shuffled": ("labels_random", "lr_too_high", "overfit", "too_few_epochs", "nothing_learned"),
    "exploding_signal": (
        *("diverged", "dead_units", "lr_too_high", "clipped_too_often", "lr_too_low", "model_too_small", "overfit"),
        *("too_few_epochs", "nothing_learned"),
    ),
    "diverged": ("dead_units", "lr_too_high", "nothing_learned"),
    "dead_units": ("lr_too_low", "layer_stands_still", "too_few_epochs", "nothing_learned"),
    "vanishing_signal": ("dead_units", "lr_too_low", "layer_stands_still", "too_few_epochs", "nothing_learned"),
    "labels_random": ("model_too_small", "overfit", "nothing_learned"),
    "lr_too_high": (
        *("dead_units", "clipped_too_often", "model_too_small", "overfit", "too_few_epochs"),
        "nothing_learned",
    ),
    "clipped_too_often": ("lr_too_low", "too_few_epochs", "nothing_learned"),
    "lr_too_low": ("too_few_epochs", "nothing_learned"),
    "too_few_examples": ("labels_random", "overfit", "too_few_epochs", "too_many_epochs"),
    "model_too_small": ("dead_units", "too_few_epochs", "nothing_learned"),
    "overfit": ("too_many_epochs",),
    "too_few_epochs": ("nothing_learned",),
}
"""What each finding brings about. To mend the effect would be no help, and its advice may contradict the cause's."""


def diagnose(evidence: Evidence) -> list[Verdict]:
    """What is wrong with a run.

    Args:
        evidence: What it recorded.

    Returns:
        By severity x certainty, without what a likely cause explains (what a cause that is but perhaps there may
        explain comes after it); none for a healthy run.
    """
    found = [(verdict, severity) for rule, severity in RULES.items() if (verdict := rule(evidence)) is not None]
    ranks = {verdict.name: severity * verdict.certainty for verdict, severity in found}
    verdicts = sorted((verdict for verdict, _ in found), key=lambda verdict: -ranks[verdict.name])
    kept: list[Verdict] = []
    for verdict in verdicts:
        if not any(c.certainty >= LIKELY and verdict.name in EXPLAINS.get(c.name, ()) for c in verdicts):
            kept.append(verdict)
    return kept
