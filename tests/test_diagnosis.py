"""What rules find in handmade curves, each on both sides of its threshold, and that healthy runs get no verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunelab.analysis import readings
from tunelab.analysis.diagnosis import EXPLAINS, RULES, Verdict, diagnose
from tunelab.analysis.evidence import Curve, Evidence, read
from tunelab.analysis.rules_of_data import (
    ceiling,
    data_not_shuffled,
    labels_in_conflict,
    labels_random,
    too_few_examples,
)
from tunelab.analysis.rules_of_data import val_in_train as overlap
from tunelab.analysis.rules_of_learning import (
    diverged,
    lr_too_high,
    lr_too_low,
    model_too_small,
    nothing_learned,
    overfit,
    too_few_epochs,
    too_many_epochs,
)
from tunelab.analysis.rules_of_signal import (
    clipped_too_often,
    dead_units,
    exploding_signal,
    layer_stands_still,
    vanishing_signal,
)
from tunelab.composing import composed
from tunelab.config import plain, validate
from tunelab.job import COMMAND_VARIABLE

NOTHING = math.log(10)  # the loss of knowing nothing, of ten classes
EPOCHS, STEPS = 20, 25  # steps of an epoch


def curve(values: list[float]) -> Curve:
    """One value at the end of each epoch."""
    return Curve(tuple(STEPS * (e + 1) for e in range(len(values))), tuple(range(len(values))), tuple(values))


def falling(end: float = 0.05, time: float = 2.0, epochs: int = EPOCHS) -> list[float]:
    """From the loss of knowing nothing to another, exponentially in epochs."""
    return [end + (NOTHING - end) * math.exp(-(e + 1) / time) for e in range(epochs)]


def healthy(facts: dict[str, Any] | None = None, /, **changes: Any) -> Evidence:
    """A run that nothing is wrong with, but for changes of its curves, as `train_loss=[…]` by name, or of its parts."""
    train, val = changes.pop("train", falling(0.02)), changes.pop("val", falling(0.05))
    epochs = len(train)
    cosine = [1e-3 * (1 + math.cos(math.pi * e / epochs)) / 2 for e in range(1, epochs + 1)]
    curves = {
        "train/loss": curve(train),
        "val/loss": curve(val),
        "val/accuracy": curve([1 - 0.1 * v for v in val]),
        "lr": curve(changes.pop("lr", cosine)),
        "gradients/norm": curve(changes.pop("norm", [1.0] * epochs)),
    }
    layered = {"gradient_norm": [0.5, 0.4, 0.8], "update_ratio": [[5e-3 * rate / 1e-3 for rate in cosine]] * 3}
    for measure, usual in layered.items():
        for name, values in zip(("hidden1", "hidden2", "head"), changes.pop(measure, usual), strict=True):
            written = values if isinstance(values, list) else [values] * epochs
            curves[f"layers/{measure}/{name}"] = curve(written)
    curves |= {f"layers/dead_share/{n}": curve(v) for n, v in changes.pop("dead_share", {}).items()}
    curves |= {name: curve(values) for name, values in changes.pop("curves", {}).items()}
    recipe = {
        "lr": 1e-3,
        "weight_decay": 0.01,
        "size": {"width": 2, "depth": 1},
        "data": {"shuffle": True},
        "model": {"normalization": "none", "dropout": 0.0},
        "clipping": None,
        "parameter_groups": {"rules": []},
    }
    result = {
        "status": "finished",
        "epochs": epochs,
        "epochs_asked": epochs,
        "steps": STEPS * epochs,
        "objective": {"metric": "val/accuracy", "direction": "maximize"},
    }
    noted = {
        **{"train_examples": 1600, "val_examples": 200, "classes": 10, "class_counts": [160] * 10},
        **{"chance_loss": NOTHING, "first_loss": 2.4, "parameters": 20_000, "val_in_train": 0.0, "label_runs": 0.1},
        **{"label_conflicts": 0.0},
    }
    choices = {"activation": "relu", "init": "default", "regularization": []}
    return Evidence(
        curves,
        recipe | changes.pop("recipe", {}),
        choices | changes.pop("choices", {}),
        result | changes.pop("result", {}),
        noted | (facts or {}),
    )


def verdict(found: Verdict | None) -> Verdict:
    """What is asserted to be there."""
    assert found is not None
    return found


FAST: dict[str, Any] = {"lr": [1e-3] * 20, "val": [0.6 * NOTHING] * 20}

THRESHOLDS: list[tuple[Callable[[Evidence], Verdict | None], Evidence, Evidence]] = [
    (overlap, healthy({"val_in_train": 0.09}), healthy({"val_in_train": 0.11})),
    # of ten equal classes a tenth follows its like by chance: half-way to sorted is 0.55
    (data_not_shuffled, healthy({"label_runs": 0.54}), healthy({"label_runs": 0.56})),
    (data_not_shuffled, healthy({"label_runs": 1.0, "class_counts": [1600]}), healthy({"label_runs": 1.0})),
    (too_few_examples, healthy({"train_examples": 100}), healthy({"train_examples": 99})),
    (too_few_examples, healthy({"train_examples": 110, "classes": 11}), healthy({"train_examples": 99})),
    (labels_in_conflict, healthy({"label_conflicts": 0.09}), healthy({"label_conflicts": 0.11})),
    (
        labels_random,
        healthy(train=falling(1.0), val=[0.94 * NOTHING] + [1.2 * NOTHING] * 19),
        healthy(train=falling(1.0), val=[0.96 * NOTHING] + [1.2 * NOTHING] * 19),
    ),
    (
        labels_random,
        healthy(train=[0.98 * NOTHING] * 20, val=[1.2 * NOTHING] * 20),
        healthy(train=[0.96 * NOTHING] * 20, val=[1.2 * NOTHING] * 20),
    ),
    (exploding_signal, healthy({"first_loss": 4.9 * NOTHING}), healthy({"first_loss": 5.1 * NOTHING})),
    (vanishing_signal, healthy(gradient_norm=[1.1e-3, 0.1, 1.0]), healthy(gradient_norm=[0.9e-3, 0.1, 1.0])),
    (vanishing_signal, healthy(gradient_norm=[1.0, 0.1, 0.9e-3]), healthy(gradient_norm=[0.9e-3, 0.1, 1.0])),
    (dead_units, healthy(dead_share={"act": [0.49] * 20}), healthy(dead_share={"act": [0.51] * 20})),
    (clipped_too_often, *(healthy(curves={"gradients/clipped_share": [share] * 20}) for share in (0.5, 0.51))),
    (layer_stands_still, *(healthy(update_ratio=[5e-3, 5e-3, ratio]) for ratio in (1e-9, 0.0))),
    (layer_stands_still, healthy(update_ratio=[0.0, 0.0, 0.0]), healthy(update_ratio=[0.0, 0.0, 5e-3])),
    (lr_too_high, healthy(train=[1.24 * 2.4, *falling()[1:]]), healthy(train=[1.26 * 2.4, *falling()[1:]])),
    (lr_too_high, *(healthy(val=[*falling()[:4], rose * 2.4, *falling()[5:]]) for rose in (1.24, 1.26))),
    (
        lr_too_high,
        healthy(val=[1.0, 1.0 + 0.19 * NOTHING] * 10),
        healthy(val=[1.0, 1.0 + 0.21 * NOTHING] * 10),
    ),
    (
        lr_too_high,
        *(healthy(**FAST, update_ratio=[r] * 3, train=[0.6 * NOTHING] * 20) for r in (0.049, 0.051)),
    ),
    (
        lr_too_high,
        *(healthy(**FAST, update_ratio=[0.1] * 3, train=[left * NOTHING] * 20) for left in (0.49, 0.51)),
    ),
    (
        lr_too_low,
        *(healthy(lr=[1e-3] * 20, update_ratio=[r] * 3, val=[0.9 * NOTHING] * 20) for r in (3.1e-4, 2.9e-4)),
    ),
    (
        lr_too_low,  # a loss that is low says that slow steps were enough
        *(healthy(lr=[1e-3] * 20, update_ratio=[1e-4] * 3, val=[left * NOTHING] * 20) for left in (0.49, 0.51)),
    ),
    (
        too_few_epochs,
        *(healthy(val=[NOTHING] * 9 + [(0.5 + fell) * NOTHING] + [0.5 * NOTHING] * 10) for fell in (0.049, 0.051)),
    ),
    (
        too_few_epochs,
        *(healthy(val=[NOTHING] * 9 + [0.2 * NOTHING] + [left * NOTHING] * 10) for left in (0.079, 0.081)),
    ),
    (
        model_too_small,
        *(
            healthy({"parameters": parameters}, train=[0.4 * NOTHING] * 20, val=[0.4 * NOTHING] * 20)
            for parameters in (320, 319)
        ),
    ),
    (
        model_too_small,
        *(
            healthy({"parameters": 100}, train=[high * NOTHING] * 20, val=[high * NOTHING] * 20)
            for high in (0.099, 0.101)
        ),
    ),
    (nothing_learned, *(healthy(train=[left * NOTHING] * 20) for left in (0.94, 0.96))),
    (overfit, *(healthy(val=falling(0.05)[:10] + [0.066 + r * NOTHING] * 10) for r in (0.09, 0.12))),
    (
        too_many_epochs,
        *(healthy(val=[1.0] * e + [0.05] * (20 - e), result={"steps": 2000}) for e in (2, 1)),
    ),
    (
        too_many_epochs,  # nine tenths of them wasted: 499.5 steps or 500.4
        *(healthy(val=[1.0] + [0.05] * 19, result={"steps": steps}) for steps in (555, 556)),
    ),
    (
        too_few_epochs,
        *(healthy(train=falling()[:2], val=[(0.5 + fell) * NOTHING, 0.5 * NOTHING]) for fell in (0.019, 0.021)),
    ),
    (diverged, healthy(), healthy(result={"status": "diverged", "message": "The loss became NaN at step 3."})),
]
"""Of each rule a run just within a threshold of it, and one just beyond."""


def test_a_healthy_run_gets_no_verdict() -> None:
    assert diagnose(healthy()) == []


def test_a_run_without_curves_or_facts_gets_no_verdict() -> None:
    assert diagnose(Evidence({}, {}, {}, {}, {})) == []
    unknown = dict.fromkeys(healthy().facts)  # null in facts.json: not to be had
    assert diagnose(healthy(unknown)) == []


@pytest.mark.parametrize(("rule", "silent", "fires"), THRESHOLDS)
def test_a_rule_fires_beyond_its_threshold_alone(
    rule: Callable[[Evidence], Verdict | None], silent: Evidence, fires: Evidence
) -> None:
    assert rule(silent) is None
    found = verdict(rule(fires))
    assert found.name == rule.__name__
    assert 0 < found.certainty <= 1
    assert found.overrides or found.advice


def test_what_is_explained_by_a_likely_cause_is_left_out() -> None:
    flat = healthy({"first_loss": 50 * NOTHING}, train=[3 * NOTHING] * 20, val=[3 * NOTHING] * 20)
    assert [found.name for found in diagnose(flat)] == ["exploding_signal"]
    assert verdict(nothing_learned(flat)).name == "nothing_learned"


def test_verdicts_are_ranked_by_severity_times_certainty() -> None:
    both = diagnose(healthy({"val_in_train": 1.0, "train_examples": 60}))
    assert [found.name for found in both] == ["val_in_train", "too_few_examples"]


def test_validation_that_rises_late_says_nothing_of_the_lr() -> None:
    late = [*falling()[:5], *(1.26 * 2.4 for _ in range(15))]
    assert lr_too_high(healthy(val=late)) is None
    assert verdict(overfit(healthy(val=late))).certainty_in_words == "sure"


def test_every_effect_that_a_cause_explains_is_a_verdict_of_some_rule() -> None:
    names = {rule.__name__ for rule in RULES}
    assert set(EXPLAINS) <= names
    assert {effect for effects in EXPLAINS.values() for effect in effects} <= names


def test_no_two_verdicts_explain_each_other() -> None:
    assert not [(a, b) for a, effects in EXPLAINS.items() for b in effects if a in EXPLAINS.get(b, ())]


def test_the_lr_to_try_is_computed_from_the_recipe() -> None:
    for top, lr in ((9.0, "lr=0.1"), (11 * NOTHING, "lr=0.03")):  # tenfold where the loss exploded alone
        high = healthy(train=[top] * 20, val=[2.0] * 20, recipe={"lr": 0.3})
        assert verdict(lr_too_high(high)).overrides == (lr,)
    # 1e-5 of a layer a step, where 2e-3 is usual: 200 times as much
    low = healthy(lr=[1e-6] * 20, update_ratio=[1e-5] * 3, val=[NOTHING] * 20, recipe={"lr": 1e-6})
    assert verdict(lr_too_low(low)).overrides == ("lr=0.0002",)


def test_the_limit_to_try_is_above_nine_tenths_of_the_norms() -> None:
    norms = [0.1 * (e + 1) for e in range(20)]  # the ninth tenth ends at 1.8
    clipped = healthy(
        norm=norms, curves={"gradients/clipped_share": [1.0] * 20}, recipe={"clipping": {"max_norm": 1e-3}}
    )
    assert verdict(clipped_too_often(clipped)).overrides == ("clipping.max_norm=2",)
    near = healthy(norm=norms, curves={"gradients/clipped_share": [0.7] * 20}, recipe={"clipping": {"max_norm": 1.0}})
    assert verdict(clipped_too_often(near)).overrides == ("lr=0.00033",)


def test_a_frozen_layer_is_freed_by_the_rules_without_that_which_froze_it() -> None:
    rules = [{"match": "head.*", "lr": 0}, {"type": "Conv2d", "weight_decay": 0.5}]
    frozen = healthy(update_ratio=[5e-3, 5e-3, 0.0], recipe={"parameter_groups": {"rules": rules}})
    assert verdict(layer_stands_still(frozen)).overrides == (
        "parameter_groups.rules=[{type: Conv2d, weight_decay: 0.5}]",
    )


def test_a_layer_that_asks_for_no_gradient_is_found_by_what_the_run_noted() -> None:
    found = verdict(layer_stands_still(healthy({"frozen_layers": ["embedding"]})))
    assert found.finding == "embedding never moves, while other layers learn."
    assert found.certainty_in_words == "sure"
    meant = verdict(layer_stands_still(healthy({"frozen_layers": ["embedding"]}, choices={"init": "pretrained"})))
    assert meant.certainty_in_words == "perhaps"


def test_overfitting_adds_to_the_regularization_that_the_recipe_has() -> None:
    rising = falling(0.05)[:10] + [1.0] * 10
    assert verdict(overfit(healthy(val=rising, choices={"regularization": ["ema"]}))).overrides == (
        "regularization=[ema,dropout,early_stopping]",
    )
    has = {"regularization": ["dropout", "early_stopping"]}
    assert verdict(overfit(healthy(val=rising, choices=has))).overrides == ("weight_decay=0.1",)


def test_a_small_model_is_to_be_wider_and_not_of_one_layer() -> None:
    high = healthy({"parameters": 100}, train=[1.0] * 20, val=[1.0] * 20)
    assert verdict(model_too_small(high)).overrides == ("size.width=32", "size.depth=2")


def test_a_vanishing_gradient_under_sigmoid_asks_for_another_activation_an_init_and_a_norm() -> None:
    deep = healthy(gradient_norm=[1e-7, 1e-3, 1.0], choices={"activation": "sigmoid"})
    found = verdict(vanishing_signal(deep))
    assert found.overrides == ("activation=relu", "init=kaiming_normal", "model.normalization=batch")
    assert found.evidence.startswith("in the first step its norm was 1e-07 in hidden1 and 1 in head")


def test_a_gradient_that_steps_have_made_small_did_not_vanish_on_its_way() -> None:
    later = {"gradient_norm": [1e-7, 1e-3, 1.0]}
    assert verdict(vanishing_signal(healthy(**later))).name == "vanishing_signal"
    begun = {"first_gradient_norms": {"hidden1": 0.5, "hidden2": 0.4, "head": 0.8}}
    assert vanishing_signal(healthy(begun, **later)) is None


def test_units_dead_from_the_start_and_those_that_died_have_other_remedies() -> None:
    born = healthy(dead_share={"activation1": [1.0] * 20})
    assert verdict(dead_units(born)).overrides == ("init=kaiming_normal", "activation=leaky_relu")
    died = healthy(dead_share={"activation1": [0.0] * 5 + [0.9] * 15})
    assert verdict(dead_units(died)).overrides == ("lr=0.00033", "activation=leaky_relu")


def test_a_run_that_was_stopped_says_nothing_of_its_epochs() -> None:
    stopped = {"epochs_asked": 40}
    assert too_few_epochs(healthy(val=[2.0 - 0.05 * e for e in range(20)], result=stopped)) is None
    assert too_many_epochs(healthy(val=[1.0, *[0.05] * 19], train=falling(0.0, 1), result=stopped)) is None


@pytest.mark.parametrize("status", ["interrupted", "pruned"])
def test_a_run_that_did_not_end_by_itself_may_have_been_about_to_learn(status: str) -> None:
    flat: dict[str, Any] = {"train": [NOTHING] * 20, "val": [NOTHING] * 20, "update_ratio": [1e-6] * 3}
    assert {found.name for found in diagnose(healthy({"parameters": 100}, **flat))} == {"lr_too_low", "model_too_small"}
    assert diagnose(healthy({"parameters": 100}, **flat, result={"status": status})) == []


def test_overfitting_is_seen_where_regularization_holds_the_training_loss_above_that_of_validation() -> None:
    rising = falling(0.05)[:10] + [0.5] * 10
    found = verdict(overfit(healthy(train=falling(1.2), val=rising)))
    assert found.evidence.startswith("the validation loss rose from 0.0652 at epoch 10 to 0.5")


def test_a_pace_is_that_at_the_peak_of_the_lr_whatever_the_schedule_took_off() -> None:
    rates = [1e-3, 5e-4, 1e-4, 1e-8]
    evidence = healthy(train=[1.0] * 4, val=[1.0] * 4, lr=rates, update_ratio=[[4 * rate for rate in rates]] * 3)
    assert np.allclose(readings.paces(evidence).values, [4e-3, 4e-3, 4e-3])  # the last is mostly rounding


def test_half_of_a_run_lies_between_its_epochs_where_their_number_is_odd() -> None:
    assert readings.at_half(curve([4.0, 2.0]), 8.0) == 4.0
    assert readings.at_half(curve([4.0, 2.0, 1.0]), 8.0) == 3.0  # 1.5 epochs
    assert readings.at_half(curve([4.0]), 8.0) == 6.0


def test_the_mean_of_an_epoch_is_that_of_what_was_written_in_it() -> None:
    found = readings.by_epoch(Curve((50, 60, 110, 120), (0, 0, 1, 1), (3.0, 1.0, 1.0, 0.0)))
    assert found == Curve((60, 120), (0, 1), (2.0, 0.5))


@pytest.mark.parametrize(("certainty", "words"), [(0.9, "sure"), (0.89, "likely"), (0.6, "likely"), (0.59, "perhaps")])
def test_a_certainty_is_said_in_words(certainty: float, words: str) -> None:
    assert Verdict("lr_too_high", "", "", certainty).certainty_in_words == words


RECIPES = (
    ("epochs=8", "optimizer=sgd"),
    ("epochs=40", "scheduler=plateau", "regularization=[early_stopping,ema]"),
    ("epochs=40", "batch_growth=factor", "scheduler.eta_min=5e-4", "warmup_steps=300"),
    ("epochs=40", "batch_growth=schedule", "clipping=norm", "init=normal", "activation=sigmoid", "model=cnn"),
)


@pytest.mark.parametrize(
    ("words", "all_rules"),
    [
        *((words, False) for words in RECIPES[:2]),  # 0.1 s each to compose
        *(pytest.param(words, True, marks=pytest.mark.slow) for words in RECIPES),
    ],
)
def test_every_override_of_every_rule_composes_to_a_recipe_that_is_valid(
    words: tuple[str, ...], all_rules: bool
) -> None:
    base = ("data=digits", "size=tiny", *words)
    made = composed(*base)
    recipe = {**plain(made.cfg, resolve=True), "weight_decay": 0.01}
    recipe["size"] = {**recipe["size"], "width": 2}  # for a model that is too small
    tried: set[tuple[str, ...]] = set()
    for rule, _, fires in THRESHOLDS:
        if all_rules or rule in (overfit, too_many_epochs, lr_too_high, diverged):
            facts = {**fires.facts, "steps_per_epoch": 23}
            tried.add(verdict(rule(replace(fires, recipe=recipe, choices=made.choices, facts=facts))).overrides)
    tried.discard(())
    assert len(tried) >= (8 if all_rules else 2)
    for overrides in tried:
        new = {override.split("=")[0]: override for override in (*base, *overrides)}
        validate(composed(*new.values()).cfg, list(new))


def test_overfitting_in_few_epochs_is_stopped_with_less_patience_than_the_run_has() -> None:
    rising = falling(0.05)[:3] + [1.0] * 5
    short = healthy(train=falling(0.02, epochs=8), val=rising, recipe={"epochs": 8})
    early = "regularization.early_stopping.patience=2"
    assert verdict(overfit(short)).overrides == ("regularization=[dropout,early_stopping]", early)
    assert verdict(overfit(replace(short, recipe={**short.recipe, "epochs": 11}))).overrides[1:] == ()
    seldom = {**short.recipe, "epochs": 20, "trainer": {"check_val_every_n_epoch": 4}}
    assert verdict(overfit(replace(short, recipe=seldom))).overrides[1:] == (early.replace("2", "1"),)


def test_an_lr_beyond_all_bounds_is_not_divided_by_ten() -> None:
    rising = [9.0, *falling()[1:]]
    assert verdict(lr_too_high(healthy(train=rising, recipe={"lr": 1e25}))).overrides == ("lr=0.01",)
    assert verdict(lr_too_high(healthy(train=rising, recipe={"lr": 3.0}))).overrides == ("lr=1",)
    sgd = healthy(train=rising, recipe={"lr": 10.0}, choices={"optimizer": "sgd"})
    assert verdict(lr_too_high(sgd)).overrides == ("lr=0.1",)
    least = {"lr": 0.03, "scheduler": {"eta_min": 0.01}}
    found = verdict(lr_too_high(healthy(train=rising, recipe=least)))
    assert found.overrides == ("lr=0.01", "scheduler.eta_min=0.0001")


def test_a_fast_run_that_ends_well_has_no_lr_that_is_too_high() -> None:
    # as sgd with lr=0.58 on digits: 7 % of the weights in a step, and validation jumps once, early
    jumped = falling(0.03)
    jumped[3] = jumped[2] + 0.3 * NOTHING
    fast: dict[str, Any] = {"lr": [0.58] * 20, "update_ratio": [0.07] * 3}
    assert diagnose(healthy(**fast, val=jumped)) == []
    ends = [*falling(0.03)[:-4], 1.0, 0.1, 1.5, 1.5]  # the same, where it jumps to the end
    assert "; a step moved the middle layer by 7 %" in verdict(lr_too_high(healthy(**fast, val=ends))).evidence


def test_of_a_run_that_rose_at_first_and_ended_well_the_lr_is_but_perhaps_too_high() -> None:
    rose = [9.0, *falling(0.02)[1:]]
    found = verdict(lr_too_high(healthy(train=rose)))
    assert found.finding == "The lr may be too high: its first steps overshot, and the run recovered."
    assert found.certainty_in_words == "perhaps"
    died = healthy(train=rose, dead_share={"act": [0.0] + [0.6] * 19})  # it left something behind
    assert [found.name for found in diagnose(died)] == ["lr_too_high"]
    assert verdict(lr_too_high(died)).certainty_in_words == "sure"


@pytest.mark.parametrize(
    ("lr", "optimizer", "tried"),
    [
        (0.044, "sgd", ()),
        (0.1, "sgd", ()),
        (0.009, "sgd", ("lr=0.09",)),
        (1e-3, "adamw", ()),
        (9e-5, "adamw", ("lr=0.0009",)),
    ],
)
def test_an_lr_in_the_usual_range_of_its_optimizer_is_measured_rather_than_raised_tenfold(
    lr: float, optimizer: str, tried: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(COMMAND_VARIABLE, raising=False)
    flat = healthy(train=[NOTHING] * 20, recipe={"lr": lr}, choices={"optimizer": optimizer})
    typed = ["model=cnn", f"optimizer={optimizer}", f"lr={lr}", "+find_lr=false"]
    found = verdict(nothing_learned(replace(flat, overrides=typed)))
    assert found.overrides == tried
    assert found.measure == f"python train.py find_lr model=cnn optimizer={optimizer}"


def test_other_inits_are_measured_without_the_keys_of_the_one_that_explodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMMAND_VARIABLE, raising=False)
    typed = ["data=digits", "init=normal", "init.std=1", "size.depth=4"]
    found = verdict(exploding_signal(replace(healthy({"first_loss": 50 * NOTHING}), overrides=typed)))
    assert found.measure == "python train.py compare_inits data=digits size.depth=4"


def test_an_lr_too_low_is_not_raised_beyond_what_is_usual_for_its_optimizer() -> None:
    still: dict[str, Any] = {"update_ratio": [2e-6] * 3, "val": [NOTHING] * 20, "choices": {"optimizer": "adamw"}}
    tried = [verdict(lr_too_low(healthy(**still, recipe={"lr": lr}, lr=[lr] * 20))).overrides for lr in (5e-5, 5e-4)]
    assert tried == [("lr=0.001",), ("lr=0.0015",)]


def test_of_a_run_that_diverged_the_remedies_it_named_are_tried_and_are_no_evidence() -> None:
    said = (
        "The loss became NaN at step 2.\nUntil step 1 all was finite.\n"
        "Try lr=0.01 or clipping=norm.\nFor a new run type: x"
    )
    found = verdict(diverged(healthy(result={"status": "diverged", "message": said}, recipe={"lr": 1e25})))
    assert found.evidence == "The loss became NaN at step 2. Until step 1 all was finite."
    assert (found.overrides, found.advice) == (("lr=0.01",), "Try clipping=norm.")
    data = "The loss became NaN at step 1.\nMend these values in the data, or leave them out."
    found = verdict(diverged(healthy(result={"status": "diverged", "message": data})))
    assert (found.overrides, found.advice) == ((), "Mend these values in the data, or leave them out.")


def test_an_lr_that_flung_the_weights_where_none_moves_is_too_high() -> None:
    # as sgd with lr=30 leaves it: the first steps kill every unit, and then nothing moves
    flung: dict[str, Any] = {"train": [3e4, *[NOTHING] * 19], "val": [2 * NOTHING, *[NOTHING] * 19]}
    still: dict[str, Any] = {"update_ratio": [0.0] * 3, "dead_share": {"activation1": [1.0] * 20}}
    began = {"first_gradient_norms": {"hidden1": 0.7, "head": 0.5}}
    assert [found.name for found in diagnose(healthy(began, **flung, **still, recipe={"lr": 3.0}))] == ["lr_too_high"]
    assert verdict(dead_units(healthy(began, **flung, **still))).advice == "They died on the way: the lr is too high."
    assert lr_too_high(healthy(train=[9 * NOTHING] * 20, update_ratio=[1e-4] * 3, lr=[1e-3] * 20)) is None


def test_a_layer_that_was_freed_later_does_not_stand_still() -> None:
    noted = {"frozen_layers": ["hidden1"]}
    freed = [0.0] * 5 + [5e-3] * 15
    assert layer_stands_still(healthy(noted, update_ratio=[freed, 5e-3, 5e-3])) is None
    assert verdict(layer_stands_still(healthy(noted, update_ratio=[0.0, 5e-3, 5e-3]))).certainty_in_words == "sure"


def test_rows_that_repeat_by_chance_on_both_sides_of_the_split_are_no_leak() -> None:
    # 60 kinds of rows: of 800 training examples every one has its like, and so has every validation example
    chance = {"val_in_train": 1.0, "duplicate_train": 1.0, "distinct_train": 60 / 800}
    noisy = {**chance, "label_conflicts": 1.0, "best_accuracy": 0.77}
    for facts in (chance, noisy, {**chance, "val_in_train": 0.55, "duplicate_train": 0.52, "distinct_train": 0.25}):
        assert diagnose(healthy(facts)) == []
    assert ceiling(healthy(noisy)) == (
        "The inputs do not tell the classes apart: at best 77 % of the training examples can be right."
    )
    assert ceiling(healthy(chance)) == ""
    old = {name: value for name, value in noisy.items() if name not in ("distinct_train", "best_accuracy")}
    assert diagnose(healthy(old)) == []
    assert ceiling(healthy(old)) == "The inputs do not tell the classes apart."


def test_what_validation_shares_with_training_counts_beyond_what_training_shares_with_itself() -> None:
    facts = {"duplicate_train": 0.25, "distinct_train": 0.2, "val_examples": 1000}
    assert overlap(healthy({**facts, "val_in_train": 0.34})) is None
    assert verdict(overlap(healthy({**facts, "val_in_train": 0.36}))).certainty_in_words == "likely"
    assert verdict(overlap(healthy({**facts, "val_in_train": 0.76}))).certainty_in_words == "sure"
    # of 27 examples the share has a standard error of 1/12: three of them are a quarter
    few = {**facts, "val_examples": 27}
    assert [overlap(healthy({**few, "val_in_train": 0.25 + beyond})) is None for beyond in (0.24, 0.26)] == [
        True,
        False,
    ]
    # nearly all repeat: what is left of the one share says nothing of the other
    assert overlap(healthy({**facts, "duplicate_train": 0.96, "val_in_train": 0.99})) is None


def test_a_table_that_was_copied_before_the_split_is_perhaps_a_leak() -> None:
    twice = {"val_in_train": 0.8, "duplicate_train": 0.8, "distinct_train": 0.6}
    found = verdict(overlap(healthy(twice)))
    assert found.certainty_in_words == "perhaps"
    assert found.finding.startswith("Rows stand in the table more than once, on both sides of the split")
    assert overlap(healthy({**twice, "label_conflicts": 0.3})) is None  # copies agree


def test_twins_with_other_labels_are_wrong_only_where_twins_are_rare() -> None:
    rare = {"label_conflicts": 0.2, "duplicate_train": 0.2, "distinct_train": 0.9}
    assert verdict(labels_in_conflict(healthy(rare))).certainty_in_words == "sure"
    assert ceiling(healthy(rare)) == ""
    assert labels_in_conflict(healthy({**rare, "duplicate_train": 1.0, "distinct_train": 0.1})) is None


def test_high_losses_alone_do_not_say_that_a_model_is_too_small() -> None:
    floor: dict[str, Any] = {"train": [0.5 * NOTHING] * 20, "val": [0.5 * NOTHING] * 20}
    said = {}
    for width in (3, 8, 12):
        facts = {"parameters": 161, "input_values": 12, "classes": None}
        said[width] = model_too_small(healthy(facts, **floor, recipe={"size": {"width": width, "depth": 1}}))
    assert said[12] is None
    assert verdict(said[8]).certainty < 0.6
    assert verdict(said[8]).finding.endswith("either the model is too small, or the inputs do not tell more.")
    assert verdict(said[3]).certainty_in_words == "likely"
    of_many = {"parameters": 161, "input_values": 2}
    widths = [healthy(of_many, **floor, recipe={"size": {"width": width, "depth": 1}}) for width in (8, 9)]
    assert [model_too_small(of) is None for of in widths] == [False, True]  # ten classes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "overrides"),
    [
        (None, ("epochs=20",)),
        ("lr_too_low", ("epochs=10", "lr=1e-6")),
        ("lr_too_high", ("epochs=10", "lr=0.3")),
        ("too_few_epochs", ("epochs=1",)),
        ("vanishing_signal", ("epochs=5", "activation=sigmoid", "size.depth=8")),
        ("clipped_too_often", ("epochs=5", "optimizer=momentum", "clipping=norm", "clipping.max_norm=0.001")),
        ("layer_stands_still", ("epochs=20", "parameter_groups.rules=[{match: head.*, lr: 0}]")),
        ("exploding_signal", ("epochs=5", "init=normal", "init.std=1", "size.depth=4")),
    ],
)
def test_a_real_run_gets_its_verdict(
    fit: Callable[..., tuple[dict[str, Any], Path]], first: str | None, overrides: tuple[str, ...]
) -> None:
    _, folder = fit(
        "data=digits", "size=small", "lr=2e-3", "test=false", "logger=[csv]",
        "callbacks=[finite,gradients,updates,dead_units,lr]", *overrides,
    )  # fmt: skip
    assert [found.name for found in diagnose(read(folder))][:1] == ([first] if first else [])
