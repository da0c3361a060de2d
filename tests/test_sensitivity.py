"""Which knob matters: effects beside the noise of the seeds, importances beside chance, and the runs behind them."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import Forks
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, create_trial
from scipy.stats import f_oneway, ttest_rel, tukey_hsd
from swept import AT_ONCE
from test_command import refused, typed

import tunelab
from tunelab.analysis.effects import Effect, Place, chance_range, effect
from tunelab.analysis.forest import Measure, axis, decomposed
from tunelab.analysis.importance import importance, seed_share
from tunelab.analysis.importance_answer import Finished, Importance, narrowed
from tunelab.analysis.sensitivity import Sensitivity, sensitivity
from tunelab.analysis.significance import floor_of_chance
from tunelab.composing import found_by_hydra
from tunelab.errors import ConfigError
from tunelab.sweep.plan import make_folder
from tunelab.sweep.probes import Probes, tried
from tunelab.sweep.space import Knob, Space, read_space
from tunelab.tools.sensitivity import as_search

SCRIPT = "scripts/sensitivity.py"
MOMENTUM = "optimizer.momentum=0.5,0.9"
TINY = ("data=iris", "size=tiny", "epochs=2")


def places(key: str, means: dict[Any, float], noise: float, seeds: int, seed: int = 0, own: Any = None) -> list[Place]:
    """The values of a knob whose scores are these means and normal noise."""
    rng = np.random.default_rng(seed)
    return [
        Place(value, f"{key}={value}", tuple(mean + noise * rng.standard_normal(seeds)), is_own=value == own)
        for value, mean in means.items()
    ]


def found(key: str, values: list[Place], *, knobs: int = 1, maximize: bool = True) -> Effect:
    each = effect(key, values, knobs, maximize=maximize)
    assert isinstance(each, Effect), each
    return each


# ---- effects from scores


def test_a_linear_response_has_its_slope_times_the_range_as_its_effect() -> None:
    values = places("x", {x: 0.5 + 2.0 * x for x in (0.0, 0.1, 0.2)}, 0.01, 5000)
    each = found("x", values)
    assert each.size == pytest.approx(0.4, abs=0.002)
    assert each.noise == pytest.approx(0.01, rel=0.05)
    assert (each.best.value, each.worst.value, each.said()) == (0.2, 0.0, "higher is better")
    assert each.error == pytest.approx(0.01 * math.sqrt(2 / 5000), rel=0.05)


def test_the_floor_is_tukeys_least_significant_range() -> None:
    values = places("x", {1: 0.0, 2: 0.3, 3: 0.1}, 0.2, 4, seed=1)
    test = tukey_hsd(*(place.scores for place in values))
    each = found("x", values)
    assert each.p == pytest.approx(test.pvalue.min(), rel=1e-6)
    half_width = (test.confidence_interval(0.95).high - test.confidence_interval(0.95).low)[0, 1] / 2
    assert each.floor == pytest.approx(half_width, rel=1e-6)


def test_of_two_values_the_judgement_is_that_of_the_analysis_of_variance() -> None:
    for seed in range(4):
        values = places("x", {1: 0.0, 2: 0.4}, 0.2, 3, seed=seed)
        assert found("x", values).p == pytest.approx(f_oneway(*(p.scores for p in values)).pvalue, rel=1e-3)


def of_seeds(table: np.ndarray[Any, Any]) -> list[Place]:
    """The values of a knob whose scores are the rows, each of the same seeds."""
    return [Place(i, f"x={i}", tuple(row), seeds=tuple(range(len(row)))) for i, row in enumerate(table.tolist())]


def test_of_the_same_seeds_at_two_values_the_judgement_is_that_of_the_paired_test() -> None:
    rng = np.random.default_rng(0)
    for size in (0.0, 0.5, 1.0):
        x, y = rng.standard_normal((2, 4)) + 5 * rng.standard_normal((1, 4))
        each = found("x", of_seeds(np.array([x, y + size])))
        assert each.is_blocked
        assert each.p == pytest.approx(ttest_rel(x, y + size).pvalue, rel=1e-3)


def test_of_seeds_that_are_not_the_same_the_values_are_compared_as_a_whole() -> None:
    rng = np.random.default_rng(1)
    values = of_seeds(rng.standard_normal((2, 3)))
    other = replace(values[1], seeds=(0, 1, 7))
    each = found("x", [values[0], other])
    assert not each.is_blocked
    assert each.p == pytest.approx(f_oneway(values[0].scores, other.scores).pvalue, rel=1e-3)
    shuffled = replace(values[1], scores=values[1].scores[::-1], seeds=(2, 1, 0))
    assert found("x", [values[0], shuffled]).p == pytest.approx(found("x", values).p)


def test_blocking_by_seed_doubles_the_power_where_seeds_differ_and_keeps_the_rate_of_false_alarms() -> None:
    rng, said = np.random.default_rng(2), {"blocked": 0, "not": 0, "false": 0}
    for _ in range(200):
        seeds, noise = 3 * rng.standard_normal((1, 3)), rng.standard_normal((3, 3))
        gain = np.array([[0.0], [1.5], [3.0]])
        values = of_seeds(seeds + noise + gain)
        said["blocked"] += not found("x", values).is_noise
        said["not"] += not found("x", [replace(value, seeds=()) for value in values]).is_noise
        said["false"] += not found("x", of_seeds(seeds + noise)).is_noise
    assert said["blocked"] >= 2 * said["not"]
    assert said["blocked"] >= 0.5 * 200
    assert said["false"] <= 0.08 * 200


@pytest.mark.parametrize("values", [2, 5, 12])
def test_pure_noise_is_called_noise_however_many_values_are_compared(values: int) -> None:
    rng = np.random.default_rng(values)
    alarms, draws = 0, 200
    for _ in range(draws):
        scores = rng.standard_normal((values, 3))
        errors = math.sqrt(np.mean(scores.var(1, ddof=1)) / 3)
        floor = errors * chance_range(values, 2 * values, 0.05 / 4)  # as of one of four knobs
        alarms += float(np.ptp(scores.mean(1))) > floor
    assert alarms <= 0.05 * draws


def test_a_larger_number_of_knobs_and_of_values_asks_for_a_larger_effect() -> None:
    by_values = [chance_range(values, 20, 0.05) for values in (2, 3, 10)]
    assert all(a < b for a, b in pairwise(by_values))
    assert chance_range(3, 20, 0.05 / 4) > by_values[1]


def test_knobs_are_ranked_with_those_within_the_noise_last() -> None:
    knobs = {
        "noisy": places("noisy", {1: 0.0, 2: 0.9}, 1.0, 3, seed=4),
        "small": places("small", {1: 0.0, 2: 0.2}, 0.01, 3, own=1),
        "large": places("large", {1: 0.0, 2: 0.5}, 0.01, 3, own=1),
    }
    answer = sensitivity(knobs, "val/accuracy", 3, maximize=True)
    assert [each.key for each in answer.effects] == ["large", "small", "noisy"]
    assert [each.is_noise for each in answer.effects] == [False, False, True]
    assert answer.said().splitlines()[0].startswith("large matters most: val/accuracy 0.")
    assert answer.said().endswith("Type:\n  python train.py large=2 small=2")
    assert [row["knob"] for row in answer.rows()] == ["large"] * 2 + ["small"] * 2 + ["noisy"] * 2


@pytest.mark.parametrize(
    ("means", "said"),
    [
        ([0.0, 0.5, 1.0], "higher is better"),
        ([1.0, 0.5, 0.0], "lower is better"),
        ([0.0, 1.0, 0.5], "best at 2, worse on both sides"),
        ([0.0, 1.0, 1.0], "higher is better up to 2, then no clear difference"),
        ([1.0, 1.0, 0.0], "lower is better down to 2, then no clear difference"),
        ([0.0, 1.0, 1.0, 0.0], "best between 2 and 3, worse on both sides"),
        ([0.5, 0.0, 1.0], "best at 3, with no one direction"),
        ([0.5, 0.5, 0.5], "within the noise"),
    ],
)
@pytest.mark.parametrize("maximize", [True, False])
def test_the_direction_is_said_in_words(means: list[float], said: str, maximize: bool) -> None:
    sign = 1 if maximize else -1
    values = places("x", {i + 1: sign * mean for i, mean in enumerate(means)}, 0.001, 3)
    assert found("x", list(reversed(values)), maximize=maximize).said() == said  # in whatever order they were typed


def test_the_recipe_is_kept_where_its_own_value_is_as_good_as_the_best() -> None:
    values = places("lr", {1e-4: 0.2, 1e-3: 0.9, 1e-2: 0.901}, 0.01, 3, own=1e-3)
    answer = sensitivity({"lr": values}, "val/accuracy", 3, maximize=True, recipe="python train.py model=cnn")
    assert not answer.effects[0].is_noise
    assert answer.said().endswith(
        "Keep the recipe: nothing is better than it beyond the noise.\n  python train.py model=cnn"
    )


def test_values_at_which_every_seed_failed_are_told_and_take_no_part() -> None:
    values = [*places("lr", {1e-3: 0.5, 1e-2: 0.9}, 0.01, 3), Place(10.0, "lr=10", (), failed=3)]
    each = found("lr", values)
    assert each.size == pytest.approx(0.4, abs=0.05)
    assert each.said() == "higher is better; every run failed at 10"
    alone = effect("lr", [values[0], values[2]], 1, maximize=True)
    assert alone == "lr: no effect can be stated, as every run failed at 10."
    single = [Place(1, "x=1", (0.5,)), Place(2, "x=2", (0.6,))]
    assert effect("x", single, 1, maximize=True) == (
        "x: no noise can be stated, as no value of it has two seeds that finished."
    )


def test_a_value_at_which_more_seeds_failed_than_of_the_recipe_is_told_and_not_typed() -> None:
    values = [*places("lr", {1e-4: 0.1, 1e-3: 0.5, 1e-2: 0.8}, 0.01, 3, own=1e-3), Place(0.1, "lr=0.1", (0.99,), 2)]
    answer = sensitivity({"lr": values}, "val/accuracy", 3, maximize=True)
    said = answer.said()
    assert said.startswith("lr matters most: val/accuracy 0.99 with lr=0.1 (2 of 3 runs failed), 0.1")
    assert "higher is better; 2 of 3 runs failed at 0.1" in said
    assert said.endswith("Better than the recipe beyond the noise. Type:\n  python train.py lr=0.01")
    assert answer.values()["effects"][0]["override"] == "lr=0.01"
    kept = sensitivity({"lr": [values[1], values[3]]}, "val/accuracy", 3, maximize=True)
    assert kept.said().endswith("Keep the recipe: nothing is better than it beyond the noise.\n  python train.py")


def test_a_finer_search_is_advised_in_the_region_of_the_best_trials() -> None:
    spaces = {
        "lr": FloatDistribution(1e-4, 1.0, log=True),
        "size.width": IntDistribution(16, 256),
        "+x": CategoricalDistribution([8, 32, "on"]),
        "betas": CategoricalDistribution(["[0.9,0.99]", "[0.8,0.99]"]),
    }
    rows = [(0.0123, 40, 32, "[0.9,0.99]"), (0.25, 32, 8, "[0.8,0.99]"), (0.05, 64, 32, "[0.9,0.99]")]
    best = [
        create_trial(
            params={"lr": lr, "size.width": width, "x": x, "betas": betas},
            distributions={key.lstrip("+"): of for key, of in spaces.items()},
            value=1.0,
        )
        for lr, width, x, betas in rows
    ]
    assert [narrowed(key, best) for key in [*spaces, "momentum"]] == [
        "'lr=tag(log,interval(0.012,0.25))'",
        "'size.width=int(interval(32,64))'",
        "+x=8,32",
        "",  # of values that commas do not part
        "",
    ]


def test_a_difference_of_one_example_is_noise_where_the_seeds_agree() -> None:
    by_one = [Place(x, f"x={x}", (right / 180,) * 3, is_own=x == 1) for x, right in ((1, 176), (2, 177))]
    answer = sensitivity({"x": by_one}, "val/accuracy", 3, maximize=True, least=1 / 180)
    assert (answer.effects[0].said(), answer.effects[0].p) == ("within the noise", None)
    assert "and one example makes 0.0056, which is the least" in answer.said()
    assert answer.said().endswith(
        "Keep the recipe: nothing is better than it beyond the noise; seeds=6 would see finer.\n  python train.py"
    )
    by_two = [by_one[0], Place(2, "x=2", (178 / 180,) * 3)]
    assert found("x", by_two).is_noise  # as long as no least difference is known
    assert not sensitivity({"x": by_two}, "val/accuracy", 3, maximize=True, least=1 / 180).effects[0].is_noise


def test_where_the_seeds_do_not_differ_it_is_said_that_no_noise_is_known() -> None:
    values = [Place(x, f"x={x}", (x / 7,) * 3, is_own=x == 1) for x in (1, 2)]
    answer = sensitivity({"x": values}, "val/loss", 3, maximize=False)
    assert answer.effects[0].said() == "within the noise: the seeds did not differ, so none is known"
    assert answer.said().splitlines()[3].split()[:3] == ["x", "0.143", "unknown"]
    assert "noise_floor/x" not in {name for name, _, _ in answer.scalars()}
    assert answer.figure().axes[0].get_xlim()[1] < 1


@pytest.mark.slow
def test_in_the_picture_no_words_lie_on_others() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    keys = ("label_smoothing", "warmup_fraction", "optimizer.betas", "weight_decay", "optimizer.momentum", "size.width")
    made = {key: places(key, {0.1: 0.2, 0.2: 0.25, 0.3: 0.3}, 0.1, 3) for key in keys}
    figure = sensitivity(made, "val/accuracy", 3, maximize=True).figure()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    bars, *curves = figure.axes
    assert len(curves) == len(keys)
    boxes = [axes.xaxis.label.get_window_extent(renderer) for axes in curves]
    boxes += [figure._suptitle.get_window_extent(renderer), bars.get_legend().get_window_extent(renderer)]
    assert not [(i, j) for i, one in enumerate(boxes) for j, two in enumerate(boxes) if i < j and one.overlaps(two)]
    assert not any(box.overlaps(axes.get_window_extent(renderer)) for box in boxes for axes in figure.axes)


# ---- importances from trials


UNIT = FloatDistribution(0.0, 1.0)


def trials(count: int, interaction: float, noise: float = 0.05) -> list[FrozenTrial]:
    """Trials of y = u + v / 2 + interaction u v + noise, u = 2 a - 1, v = 2 b - 1, a and b in [0, 1]."""
    rng = np.random.default_rng(0)
    values = rng.random((count, 3))
    u, v, _ = (2 * values - 1).T
    scores = u + v / 2 + interaction * u * v + noise * rng.standard_normal(count)
    return [
        create_trial(
            params=dict(zip("abc", map(float, row), strict=True)), distributions=dict.fromkeys("abc", UNIT), value=y
        )
        for row, y in zip(values, scores.tolist(), strict=True)
    ]


def search(made: list[FrozenTrial], others: str = "") -> Finished:
    return Finished("s", "val/loss", False, made, others, {"a": "'a=interval(0,1)'"}, ["size=tiny"])


@pytest.mark.parametrize("interaction", [0.0, 1.0])
def test_the_shares_are_those_of_the_response_in_closed_form(interaction: float) -> None:
    made = trials(200, interaction)
    encoded = np.array([[t.params[key] for key in "abc"] for t in made])
    variance = decomposed({key: axis(UNIT) for key in "abc"}, encoded, np.array([t.value for t in made], float), 0)
    parts = np.array([1 / 3, 1 / 12, interaction**2 / 9])  # Var u = 1/3, Var v/2 = 1/12, Var uv = 1/9
    expected = parts / parts.sum()
    measured = [variance.single["a"], variance.single["b"], variance.pairs["a", "b"]]
    assert np.array(measured) / variance.total == pytest.approx(expected, abs=0.06)
    assert variance.single["c"] / variance.total < 0.01


@pytest.mark.slow
def test_the_shares_agree_with_optunas_own_fanova() -> None:
    import optuna

    made = trials(80, 0.0)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    study.add_trials(made)
    theirs = FanovaImportanceEvaluator(seed=0).evaluate(study)
    encoded = np.array([[t.params[key] for key in "abc"] for t in made])
    ours = decomposed({key: axis(UNIT) for key in "abc"}, encoded, np.array([t.value for t in made], float), 0)
    assert {key: ours.single[key] / ours.total for key in "abc"} == pytest.approx(theirs, abs=0.1)


@pytest.mark.slow
def test_what_does_nothing_is_below_the_floor_and_what_belongs_together_above_it() -> None:
    answer = importance(search(trials(40, 1.0), "2 failed"), shuffles=8)
    assert answer.fanova["c"].is_noise
    assert [answer.fanova[key].is_noise for key in "ab"] == [False, False]
    assert answer.real_pairs == [("a", "b")]
    said = answer.said()
    assert said.startswith("a mattered most to val/loss: ")
    assert "a and b interact (" in said
    assert "Of s 40 trials finished; not looked at: 2 failed." in said
    assert (
        "Search finer in what matters, where the 5 best trials are:\n  python train.py -m size=tiny 'a=interval("
        in said
    )


@pytest.mark.parametrize(
    ("gap", "slope", "real"),
    [
        pytest.param(0.3, 1.0, ["optimizer", "momentum"], marks=pytest.mark.slow),
        (6.0, 0.1, ["optimizer"]),
        (-0.5, 1.0, ["momentum"]),
    ],
)
def test_a_knob_that_some_trials_have_counts_by_their_part(gap: float, slope: float, real: list[str]) -> None:
    rng = np.random.default_rng(1)
    kinds, made = CategoricalDistribution(["adamw", "sgd"]), []
    for number in range(60):
        has = number % 2 == 0
        params = {"optimizer": "sgd" if has else "adamw"} | ({"momentum": float(rng.random())} if has else {})
        spaces = {"optimizer": kinds} | ({"momentum": UNIT} if has else {})
        value = (gap + slope * params["momentum"] if has else 0.0) + 0.01 * rng.standard_normal()
        made.append(create_trial(params=params, distributions=spaces, value=float(value)))
    answer = importance(search(made), shuffles=12 if len(real) > 1 else 4)  # two floors to be told from effects
    assert answer.trials == {"optimizer": 60, "momentum": 30}
    parts = np.array([(gap + slope / 2) ** 2 / 4, slope**2 / 12 / 2])  # of the two means; in half of the trials
    shares = [answer.fanova[key].value for key in ("optimizer", "momentum")]
    assert shares == pytest.approx(parts / parts.sum(), abs=0.06)
    assert sum(shares) == pytest.approx(1.0)  # they are independent
    assert [key for key in answer.fanova if not answer.fanova[key].is_noise] == real
    assert all(0 <= m.value <= 1 and m.floor <= 1 for each in (answer.fanova, answer.ped) for m in each.values())
    assert "counts by the part of the trials that have it" in answer.said()
    assert "cannot be said" not in answer.said()


def answer_of(explained: float, values: dict[str, float], pair: float, count: int = 30) -> Importance:
    """An answer with these shares, whose floors are 0.2."""
    measures = {key: Measure(value, 0.2) for key, value in values.items()}
    pairs = {("a", "b"): Measure(pair, 0.2)}
    made = search(trials(count, 0.0))
    return Importance(made, dict.fromkeys(values, count), measures, measures, pairs, {}, explained, None)


def test_no_first_sentence_is_taken_back_by_a_warning_under_it() -> None:
    said = answer_of(-0.1, {"a": 0.6, "b": 0.1, "c": 0.1}, 0.5).said()
    assert said.startswith(
        "What mattered to val/loss in s cannot be said: from its 30 trials held-out trials are not predicted"
    )
    assert "mattered most" not in said
    assert "interact (" not in said
    assert "within the noise" in said
    few = answer_of(0.5, {"a": 0.6, "b": 0.1, "c": 0.1, "d": 0.1}, 0.1).said()
    assert few.startswith("a mattered most to val/loss: 60% of what the hyperparameters do. Within the noise: b, c, d.")
    assert "30 trials are few for 4 hyperparameters: what is within the noise may matter all the same." in few


def test_no_interaction_found_is_no_advice_to_search_each_by_itself() -> None:
    said = answer_of(0.5, {"a": 0.6, "b": 0.3, "c": 0.1}, 0.1).said()
    assert "by itself" not in said
    assert "No interaction stands out from chance; 30 trials may be too few to show one" in said
    assert "a and b interact (50% beyond" in answer_of(0.5, {"a": 0.6, "b": 0.3}, 0.5).said()


@pytest.mark.parametrize("tests", [1, 12, 28])
def test_the_floor_of_several_measures_is_exceeded_by_any_of_them_at_its_rate(tests: int) -> None:
    rng = np.random.default_rng(tests)
    alarms = 0
    for _ in range(100):  # variances of small samples are shares of chance, skewed to the right
        floors = [floor_of_chance(each.tolist(), tests) for each in rng.standard_normal((tests, 40, 6)).var(2)]
        alarms += any(each > floor for each, floor in zip(rng.standard_normal((tests, 6)).var(1), floors, strict=True))
    assert alarms <= 0.1 * 100


def test_no_share_is_more_than_all() -> None:
    for made in (trials(30, 0.0), trials(30, 1.0)):
        encoded = np.array([[t.params[key] for key in "abc"] for t in made])
        for keys in ("a", "ab", "abc"):
            scores = np.array([t.value for t in made], float)
            found = decomposed({key: axis(UNIT) for key in keys}, encoded[:, : len(keys)], scores, 0)
            parts = sum(found.single.values()) + sum(found.pairs.values())
            assert parts == found.total if len(keys) < 3 else parts <= found.total


def test_the_part_of_the_seeds_is_that_of_the_analysis_of_variance() -> None:
    spaces = {"x": UNIT, "seed": CategoricalDistribution([0, 1])}
    made = [
        create_trial(params={"x": x, "seed": seed}, distributions=spaces, value=10 * x + seed)
        for x in (0.0, 0.5)
        for seed in (0, 1)
    ]
    assert seed_share(made) == pytest.approx(0.5 / np.var([0.0, 1.0, 5.0, 6.0], ddof=1))
    assert seed_share(made[::2]) is None


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (trials(4, 0.0), "`study` must have 10 or more finished trials, got 4 (3 failed)."),
        (
            [create_trial(params=t.params, distributions=t.distributions, value=0.5) for t in trials(20, 0.0)],
            "all 20 reached val/loss 0.5. Nothing that was varied moves it",
        ),
        (
            [
                create_trial(
                    params={"seed": i}, distributions={"seed": CategoricalDistribution(list(range(12)))}, value=i
                )
                for i in range(12)
            ],
            "`study` must have varied a knob, got the seed alone.",
        ),
    ],
    ids=["few", "equal", "seeds"],
)
def test_a_search_that_says_nothing_is_refused(made: list[FrozenTrial], sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        importance(search(made, "3 failed"))
    assert sentence in str(refusal.value)


# ---- what is tried


def knob(typed: str) -> Knob:
    (override,) = OverridesParser.create().parse_overrides([typed])
    return read_space([override], {}, 0).knobs[0]


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("lr=1e-4,1e-2", [1e-4, 1e-2]),
        ("lr=tag(log,interval(1e-4,1))", [1e-4, 1e-3, 1e-2, 0.1, 1.0]),
        ("dropout=interval(0,0.4)", [0.0, 0.1, 0.2, 0.3, 0.4]),
        ("size.width=int(interval(8,16))", [8, 10, 12, 14, 16]),
        ("size.depth=int(interval(1,3))", [1, 2, 3]),
        ("epochs=range(1,4)", [1, 2, 3]),
        ("batch_size=range(10,110,10)", [10, 30, 50, 80, 100]),
    ],
)
def test_choices_are_tried_as_typed_and_intervals_at_even_places_of_their_scale(typed: str, values: list[Any]) -> None:
    assert tried(knob(typed), 5) == pytest.approx(values)


def test_the_recipes_own_value_is_no_change_and_one_knob_is_changed_at_a_time() -> None:
    space = Space([knob("lr=1e-3,1e-2"), knob("batch_size=16,64,128"), knob("seed=0,1")], [])
    sampler = Probes()
    sampler.space, sampler.own = space, {"lr": 1e-3, "batch_size": 64}
    assert sampler.combinations(lambda values: set()) == [
        change | {"seed": seed}
        for change in ({}, {"lr": 1e-2}, {"batch_size": 16}, {"batch_size": 128})
        for seed in (0, 1)
    ]


def test_a_value_that_is_typed_is_the_recipes_own_and_is_kept_beside_the_values_that_are_tried() -> None:
    with found_by_hydra("sensitivity"):
        _, words = as_search(["lr=3e-3", "batch_size=32", "epochs=1"])
        _, given = as_search(["lr=3e-3", "lr=1e-3,1e-2"])
    assert {"lr=3e-3", "lr=0.0003,0.0009,0.003,0.009,0.03", "batch_size=32", "batch_size=8,16,32,64,128"} <= {*words}
    assert given[:2] == ["lr=3e-3", "lr=1e-3,1e-2"]
    parsed = OverridesParser.create().parse_overrides(given[:2])
    space = read_space(parsed, {}, 0, with_own=True)
    assert ([k.typed for k in space.knobs], [o.input_line for o in space.fixed]) == (["1e-3,1e-2"], ["lr=3e-3"])
    for groups, with_own in (({}, False), ({"lr": []}, True)):  # a group is chosen once
        with pytest.raises(ConfigError) as refusal:
            read_space(parsed, groups, 0, with_own=with_own)
        assert str(refusal.value) == "`lr` must be given once, got it 2 times. Put all its values into one."


def test_what_is_better_is_typed_in_place_of_the_recipes_own() -> None:
    values = places("lr", {1e-3: 0.1, 1e-2: 0.9}, 0.01, 3, own=1e-3)
    recipe = "python train.py lr=1e-3 'name=a b'"
    assert (
        sensitivity({"lr": values}, "val/loss", 3, maximize=True, recipe=recipe)
        .said()
        .endswith("python train.py 'name=a b' lr=0.01")
    )


def test_with_no_knob_given_those_are_declared_that_the_recipe_uses() -> None:
    with found_by_hydra("sensitivity"):
        takes_search, words = as_search(["optimizer=momentum", "batch_size=full", "seed=7", "seeds=2"])
    keys = [word.partition("=")[0] for word in words]
    assert takes_search
    assert "optimizer.momentum=0.5,0.9,0.98" in words
    assert "lr=0.003,0.009,0.03,0.09,0.3" in words  # around the recipe's own
    assert not {"optimizer.betas", "stochastic_depth"} & set(keys)
    assert keys.count("batch_size") == 1  # `full` has no tenfold
    assert "seed=7,8" in words


# ---- the command


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("-m", "lr=1e-3,1e-2"), 2, "`-m` must be left out: sensitivity searches by itself."),
        (
            ("lr=1e-3,1e-2", "seeds=1", "points=1"),
            1,
            "`seeds` must be at least 2, got 1. Try seeds=3.\n`points` must be at least 2, got 1. Try points=5.",
        ),
        (
            ("lr=1e-3,1e-3", "batch_size=choice(32)", "epochs=range(1,2)", "optimizer=adamw,momentum", MOMENTUM),
            1,
            "`lr` must have two or more values, got 1e-3,1e-3. Write lr=<a>,<b>, or lr=0.001 to keep it there.\n"
            "`batch_size` must have two or more values, got choice(32). "
            "Write batch_size=<a>,<b>, or batch_size=32 to keep it there.\n"
            "`epochs` must have two or more values, got range(1,2). "
            "Write epochs=<a>,<b>, or epochs=1 to keep it there.\n"
            "`optimizer.momentum` must be in use by the recipe, got 0.5,0.9, which nothing reads. ",
        ),
        pytest.param(
            (MOMENTUM,), 2, "`optimizer.momentum` must be a key of optimizer, got momentum.", marks=pytest.mark.slow
        ),
        pytest.param(
            ("lr=tag(log,interval(0,0.1))",), 1, "`lr` must be greater than 0, got 0.0.", marks=pytest.mark.slow
        ),
        (("lr=1e-3,1e-2", "seed=0,1"), 2, "`seed` must have one value, got 0,1. Write seeds=<how many>."),
        (("lr=1e-3,1e-2", "sweep=tpe"), 2, "`sweep=tpe` must be left out: one knob at a time is tried"),
        (("lr=1e-3,1e-2", "hydra/sweeper=basic"), 2, "`hydra/sweeper=basic` must be left out"),
        (("study=nowhere",), 1, "`study` must be a search's folder, got nowhere, which does not exist."),
        (("study=nowhere", "lr=1e-3,1e-2"), 2, "`lr=1e-3,1e-2` must be left out: what study= names"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_nothing_can_be_said_of_is_refused(
    tmp_path: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    assert sentence in refused(typed(tmp_path, *words, script=SCRIPT), code)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", ["run.json", "config.yaml", "checkpoints"])
def test_the_folder_of_a_run_is_refused_to_a_search_and_left_as_it_is(tmp_path: Path, left: str) -> None:
    (tmp_path / left).mkdir()
    with pytest.raises(ConfigError) as refusal:
        make_folder(tmp_path)
    assert str(refusal.value) == (
        f"`hydra.sweep.dir` must be the folder of a search, got {tmp_path}, which holds a run ({left}). "
        "Choose another, or name=…"
    )
    assert [path.name for path in tmp_path.iterdir()] == [left]


@pytest.mark.slow
def test_one_knob_is_changed_at_a_time_and_the_recipe_runs_once_for_all(forks: Forks, tmp_path: Path) -> None:
    words = (*TINY, "lr=1e-3,1e-2", "batch_size=16,64", "seeds=2", "name=tried")
    done = forks.run(tmp_path, *words, script=SCRIPT, before=AT_ONCE)
    assert done.code == 0, done.text
    folder = tmp_path / "outputs" / "sensitivity" / "tried"
    with (folder / "results.csv").open(newline="") as file:
        there = sorted((row["lr"], row["batch_size"], row["seed"]) for row in csv.DictReader(file))
    assert there == [
        ("", "", "0"),
        ("", "", "1"),
        ("", "16", "0"),
        ("", "16", "1"),
        ("0.01", "", "0"),
        ("0.01", "", "1"),
    ]
    assert "test/" not in done.text
    assert all(json.loads(path.read_text()).get("test") is None for path in folder.glob("*/result.json"))
    answer = json.loads((folder / "answer.json").read_text())
    assert {each["knob"]: each["values"] for each in answer["effects"]} == {"lr": [0.001, 0.01], "batch_size": [16, 64]}
    assert {path.name for path in folder.iterdir()} >= {"answer.csv", "answer.png", "tensorboard", "study.journal"}
    before = (folder / "answer.csv").read_text()
    other = folder / "tensorboard" / "events.out.tfevents.1.of.another.0"
    other.touch()
    again = forks.run(tmp_path, *words, script=SCRIPT, before=AT_ONCE)
    assert "Complete: nothing left to do." in again.text
    assert (folder / "answer.csv").read_text() == before
    events = sorted(path.name for path in other.parent.iterdir())
    assert len(events) == 2  # that of the first answer is gone, and what is not an answer's has stayed
    assert events[0] == other.name
    assert events[1].endswith(".answer")


@pytest.fixture(scope="module")
def forks() -> Any:
    from forks import server

    with server() as running:
        yield running


@pytest.mark.slow
def test_from_python_it_searches_and_answers_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = tunelab.sensitivity(*TINY, "lr=tag(log,interval(1e-4,1e-2))", "points=3", "seeds=2")
    assert isinstance(answer, Sensitivity)
    (each,) = answer.effects
    assert [place.value for place in each.places] == [1e-4, 1e-3, 1e-2]  # the recipe's own is one of them
    assert {len(place.scores) for place in each.places} == {2}
    (folder,) = (tmp_path / "outputs" / "sensitivity").iterdir()
    assert sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) == list(range(6))
