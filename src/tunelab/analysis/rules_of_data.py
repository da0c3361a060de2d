"""Faults of the data: parts that overlap, an order that is none, labels that nothing predicts, too few examples."""

from __future__ import annotations

import math

from tunelab.analysis.evidence import Evidence
from tunelab.analysis.readings import (
    at_the_end,
    beats_a_constant,
    by_epoch,
    fact,
    knowing_nothing,
    nothing_gives,
    number,
    share,
)
from tunelab.analysis.verdict import Verdict

OVERLAP = 0.1
"""Of the validation examples that train, too, beyond those that do so as training examples repeat each other."""

FEW_KINDS = 0.3
"""Different rows, of all: below it a row repeats others as its columns have few values, not as it was copied."""

SORTED = 0.5
"""Of the way from shuffled to sorted that an order may be: batches then see half of what they should."""

FEW_EXAMPLES, FEW_OF_A_CLASS = 100, 10
"""Fewer are too few to learn from, whatever the curves say: one example in a batch of validation counts per cents."""

GAP = 0.1
"""Between training and validation loss, of the loss of a constant prediction: what makes few examples show."""

LEARNED, NEVER_BETTER = 0.97, 0.95
"""Of the loss of a constant prediction: training below the first while validation was never below the second."""


def val_in_train(evidence: Evidence) -> Verdict | None:
    """Validation examples that train, too: the score says what was remembered, not what was learned."""
    overlap, repeats = fact(evidence, "val_in_train"), fact(evidence, "duplicate_train") or 0.0
    if overlap is None or overlap < OVERLAP:
        return None
    beyond = overlap - repeats  # a split at random gives 0, within a few standard errors
    error = math.sqrt(repeats * (1 - repeats) / max(1.0, fact(evidence, "val_examples") or 1.0))
    if beyond < max(OVERLAP, 3 * error):
        return _copied_before_the_split(evidence, overlap, repeats)
    return Verdict(
        "val_in_train",
        "Validation examples are training examples, too: the score does not say how well new ones are predicted.",
        f"{share(overlap)} of the {_count(evidence, 'val_examples')} validation examples have the very inputs of a "
        "training example",
        0.7 if beyond < 0.5 else 0.98,
        (),
        "Remove duplicates before the split, or leave the split to data.val_fraction.",
    )


def _copied_before_the_split(evidence: Evidence, overlap: float, repeats: float) -> Verdict | None:
    """Rows that repeat on both sides alike: copies if most are rare and their labels agree, else few kinds of rows."""
    if kinds(evidence) < FEW_KINDS or (fact(evidence, "label_conflicts") or 0.0) >= OVERLAP:
        return None
    return Verdict(
        "val_in_train",
        "Rows stand in the table more than once, on both sides of the split: if they are copies, the score does not "
        "say how well new examples are predicted.",
        f"{share(overlap)} of the {_count(evidence, 'val_examples')} validation examples and {share(repeats)} of the "
        f"training examples have the very inputs of another training example",
        0.5,
        (),
        "If they are copies, remove them before the split; if their columns have but few values, all is well.",
    )


def kinds(evidence: Evidence) -> float:
    """The share of different rows among the training examples; at least that where the run has not noted it."""
    noted = fact(evidence, "distinct_train")
    return 1 - (fact(evidence, "duplicate_train") or 0.0) if noted is None else noted


def ceiling(evidence: Evidence) -> str:
    """A sentence on a table of few kinds of rows that do not tell the classes apart; else empty.

    That is how such data are, and no fault.
    """
    conflicts, best = fact(evidence, "label_conflicts"), fact(evidence, "best_accuracy")
    if not evidence.facts.get("classes") or conflicts is None or conflicts < OVERLAP or kinds(evidence) >= FEW_KINDS:
        return ""
    said = "The inputs do not tell the classes apart"
    return f"{said}." if best is None else f"{said}: at best {share(best)} of the training examples can be right."


def data_not_shuffled(evidence: Evidence) -> Verdict | None:
    """Batches of one class after another: each step unlearns what the last one has learned."""
    runs, counts = fact(evidence, "label_runs"), evidence.facts.get("class_counts")
    if runs is None or not counts:
        return None
    total = sum(counts)
    by_chance = sum((count / total) ** 2 for count in counts)
    if by_chance >= 1 or (excess := (runs - by_chance) / (1 - by_chance)) < SORTED:
        return None
    off = evidence.recipe.get("data", {}).get("shuffle") is False
    return Verdict(
        "data_not_shuffled",
        "The training examples come sorted by label, so that a batch sees few of the classes.",
        f"{share(runs)} of the examples are followed by one of the same class, where shuffled ones have "
        f"{share(by_chance)}{'; data.shuffle=false' if off else ''}",
        0.98 if excess > 0.8 else 0.8,
        ("data.shuffle=true",) if off else (),
        "Shuffle the rows of the training part.",
    )


def too_few_examples(evidence: Evidence) -> Verdict | None:
    """Fewer examples than any model can learn from, the surer the wider validation lies above training."""
    examples, classes = fact(evidence, "train_examples"), fact(evidence, "classes") or 0
    if examples is None or examples >= max(FEW_EXAMPLES, FEW_OF_A_CLASS * classes):
        return None
    train, val, nothing = evidence.curve("train/loss"), evidence.curve("val/loss"), knowing_nothing(evidence, "val")
    seen = f"{examples:.0f} training examples" + (f" of {classes:.0f} classes" if classes else "")
    apart = False
    if len(train) and len(val) and nothing:
        low, high = at_the_end(by_epoch(train)), at_the_end(by_epoch(val))
        apart = high - low > GAP * nothing
        seen += f"; at the end the training loss is {number(low)}, the validation loss {number(high)}"
    return Verdict(
        "too_few_examples",
        "There are too few training examples to learn from.",
        seen,
        0.95 if apart else 0.6,
        (),
        "Get more data, begin from pretrained weights (init=pretrained), or take a smaller model; judge by "
        "cross-validation (fold=0/5), as a few examples decide the score.",
    )


def labels_random(evidence: Evidence) -> Verdict | None:
    """Labels that the inputs do not tell: training remembers them, validation never beats a constant."""
    train, val = by_epoch(evidence.curve("train/loss")), by_epoch(evidence.curve("val/loss"))
    nothing, nothing_val = fact(evidence, "chance_loss"), knowing_nothing(evidence, "val")
    if not len(train) or not len(val) or not nothing or not nothing_val:
        return None
    low, best = min(train.values), min(val.values)
    if low > LEARNED * nothing or best < NEVER_BETTER * nothing_val or at_the_end(val) < nothing_val:
        return None
    if beats_a_constant(evidence):  # by a score of its own: a loss also punishes answers that are right but too sure
        return None
    return Verdict(
        "labels_random",
        "Training learns its labels, yet nothing of it holds for validation: the labels look random.",
        f"the training loss fell to {number(low)}, while the validation loss was never below {number(best)}; "
        f"{nothing_gives(evidence, 'val')}",
        0.9 if low < 0.9 * nothing else 0.75,
        (),
        "Look at examples with their labels: were rows and labels joined in the same order? Is this the target?",
    )


def labels_in_conflict(evidence: Evidence) -> Verdict | None:
    """The same inputs under different labels, where the same inputs are rare: in a table of few kinds that is usual."""
    conflicts = fact(evidence, "label_conflicts")
    if conflicts is None or conflicts < OVERLAP or not evidence.facts.get("classes") or ceiling(evidence):
        return None
    return Verdict(
        "labels_in_conflict",
        "The same inputs stand under different labels.",
        f"{share(conflicts)} of the training examples have a twin with another label",
        0.9,
        (),
        "Look at them: a column that tells them apart may be missing, or labels are wrong.",
    )


def _count(evidence: Evidence, name: str) -> str:
    value = fact(evidence, name)
    return "" if value is None else f"{value:.0f}"
