"""What trials cannot be ranked by: a loss that varies itself, and scores of other examples. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunelab.errors import ConfigError
from tunelab.rules import logged_metrics
from tunelab.sweep.checks import probed
from tunelab.sweep.recipes import Recipes
from tunelab.sweep.space import Knob, Value

IN_TRAINING_ALONE = {"tunelab.losses.CrossEntropy": ("label_smoothing",)}
"""The keys of a loss that its value in validation does not depend on; of a loss of the user's own nobody knows."""

SAME_EXAMPLES = (
    *("batch_size", "shuffle", "seed", "fold", "workers", "in_memory", "memory_limit_gb", "task", "encoding"),
    *("separator", "drop", "categorical", "max_categories", "missing", "image_size", "color"),
)
"""The keys of our data that do not decide which examples validate, nor what is asked of them; folds are averaged."""

OURS = "tunelab.data."

RANKS_NONE = "hydra/sweeper=basic runs them all and ranks none."


def refuse_unlike(recipes: Recipes) -> list[str]:
    """Refuses a search whose trials' scores are no numbers of one kind.

    Args:
        recipes: Of the search, without mistakes.

    Returns:
        A sentence for each key of which only its author knows whether it changes what is scored.

    Raises:
        ConfigError: With the objective or the keys to type instead.
    """
    objective = str(recipes.unchanged().objective)
    of_loss: list[Knob] = []
    of_data: list[Knob] = []
    remarks, metrics = [], ["val/loss"]
    for knob in recipes.space.knobs:
        found = list(_recipes(recipes, knob))
        if not found:
            continue
        metrics = logged_metrics(found[0]) if "metrics" in found[0].get("task", {}) else metrics
        if is_loss(objective) and _differ([judged_loss(values.get("loss")) for values in found]):
            of_loss.append(knob)
        data = [values.get("data") or {} for values in found]
        if _differ([_examples(each) for each in data]):
            if _differ([each.get("_target_") for each in data]) or str(data[0].get("_target_")).startswith(OURS):
                of_data.append(knob)
            else:
                remarks.append(
                    f"{knob.key}: if it changes which examples validate, or what is asked of them, these trials cannot "
                    "be compared."
                )
    mistakes = []
    if of_loss:
        mistakes.append(loss_mistake(objective, [f"{knob.key}={knob.typed}" for knob in of_loss], metrics))
    mistakes += [_data_mistake(knob) for knob in of_data]
    if mistakes:
        raise ConfigError(*mistakes)
    return remarks


def unlike_keys(objective: str, knobs: Sequence[str], recipe: Mapping[str, str]) -> list[str]:
    """The keys of a search that has been made, by which its trials' scores are no numbers of one kind.

    Args:
        objective: The metric.
        knobs: What it varied, by key.
        recipe: What all trials began from, by dotted key, interpolations as they stand; empty where nobody kept it.
    """
    loss = {key.removeprefix("loss."): text for key, text in recipe.items() if key.startswith("loss.")}
    ours = OURS in str(recipe.get("data._target_", OURS))
    found = []
    for key in knobs:
        group, _, rest = key.partition(".")
        read = [name for name, value in loss.items() if f"${{{key}}}" in value]
        own = [rest] if group == "loss" and rest else read
        target = loss.get("_target_", "tunelab.losses.CrossEntropy").strip("'\"")
        ignored = IN_TRAINING_ALONE.get(target, ())
        if is_loss(objective) and (key == "loss" or any(name.partition(".")[0] not in ignored for name in own)):
            found.append(key)
        if key in ("data", "experiment") or (group == "data" and ours and rest.partition(".")[0] not in SAME_EXAMPLES):
            found.append(key)
    return found


def is_loss(metric: str) -> bool:
    """Whether a metric is a loss that is trained on, by its name."""
    return metric.rpartition("/")[2].endswith("loss")


def judged_loss(loss: Any) -> Any:
    """What a validation loss depends on of a recipe's loss.

    Args:
        loss: Its config, resolved.
    """
    if not isinstance(loss, dict):
        return loss
    ignored = IN_TRAINING_ALONE.get(str(loss.get("_target_")), ())
    return {key: value for key, value in loss.items() if key not in ignored}


def loss_mistake(objective: str, varied: Sequence[str], metrics: Sequence[str]) -> str:
    """The sentence for an objective that is a loss where the loss varies.

    Args:
        objective: The metric.
        varied: What varies it, as it is typed.
        metrics: What the trials log.
    """
    others = [f"objective={metric}" for metric in metrics if not is_loss(metric)]
    instead = f"Type {' or '.join(others)}" if others else "Type objective=<a metric that the loss does not change>"
    return (
        f"`objective` must be the same measure in all trials, got {objective} with {' '.join(varied)}: each loss has "
        f"units of its own. {instead}; {RANKS_NONE}"
    )


def _data_mistake(knob: Knob) -> str:
    instead = "Search each in a command of its own"
    if knob.key in ("data.split_seed", "data.val_fraction", "data.test_fraction"):
        instead = "For several splits of the same examples type fold=0/5,1/5,2/5,3/5,4/5"
    return (
        f"`{knob.key}` must be the same in all trials that are ranked, got {knob.typed}: their scores would be of "
        f"other examples. {instead}; {RANKS_NONE}"
    )


def _examples(data: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which examples validate, of a recipe's data."""
    return {key: value for key, value in data.items() if key not in SAME_EXAMPLES}


def _differ(found: Sequence[Any]) -> bool:
    return any(each != found[0] for each in found)


def _recipes(recipes: Recipes, knob: Knob) -> Iterator[dict[str, Any]]:
    """The resolved recipes of the values of a knob, all else being as it is in the recipe itself."""
    options = next((o for o in recipes.each_option() if knob.key in recipes.active(o)), None)
    if options is None:
        return
    for value in probed(knob):
        values: dict[str, Value] = {**recipes.start(), **options, knob.key: value}
        try:
            yield recipes.recipe(recipes.with_effect(values)).values
        except ConfigError:  # wrong beside the recipe's own values, right in another combination
            continue
