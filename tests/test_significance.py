"""What chance makes of compared results: against closed forms, scipy's own tests, and simulated studies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binom, linregress, norm, t, ttest_ind, ttest_rel

from tunelab.analysis.significance import (
    CONTENTION,
    FALSE_LEAD,
    climbs,
    difference,
    lead_needed,
    lead_of_chance,
    quantile,
    residual,
    rises,
    share_deviation,
    standard_error,
)

STUDIES = 2000


def has_winner(scores: Sequence[float], deviation: float) -> bool:
    best, *others = sorted(scores, reverse=True)
    behind = [best - other for other in others]
    return behind[0] > lead_needed(behind, deviation)


# ---- one share


@pytest.mark.parametrize("examples", [1, 2, 5, 15, 57, 180, 10_000])
def test_a_share_is_never_less_noisy_than_one_example_however_many_are_right(examples: int) -> None:
    for right in {0, 1, examples // 2, examples - 1, examples}:
        assert share_deviation(right / examples, examples) * examples >= 1 - 1e-12


def test_of_many_examples_a_shares_deviation_is_the_binomial_one() -> None:
    assert share_deviation(0.7, 10_000) == pytest.approx(binom(10_000, 0.7).std() / 10_000, rel=1e-3)


def test_twenty_equal_recipes_on_57_examples_seldom_have_a_winner() -> None:
    rng = np.random.default_rng(0)
    real = np.array([57, 57, 56, 56, 56, 55, 55, 57, 56, 54, 56, 55, 56, 57, 55, 56, 56, 55, 57, 56]) / 57
    for trials in (2, 5, 10):
        drawn = [rng.choice(real, trials, replace=False) for _ in range(200)]
        assert sum(has_winner(each, share_deviation(max(each), 57)) for each in drawn) == 0


# ---- the lead of single results


def test_the_lead_of_two_results_is_a_quantile_of_the_normal_difference() -> None:
    assert lead_of_chance(2) == pytest.approx(math.sqrt(2) * norm.ppf(1 - FALSE_LEAD / 2), rel=1e-5)


@pytest.mark.parametrize("trials", [2, 3, 5, 10, 40])
def test_among_equals_the_lead_is_exceeded_at_its_rate(trials: int) -> None:
    drawn = np.sort(np.random.default_rng(trials).standard_normal((40_000, trials)), 1)
    rate = FALSE_LEAD * 2 / trials
    exceeded = float(np.mean(drawn[:, -1] - drawn[:, -2] > lead_of_chance(trials)))
    assert exceeded == pytest.approx(rate, abs=4 * math.sqrt(rate / 40_000))


@pytest.mark.parametrize(
    ("trials", "false", "power"), [(2, 0.10, 0.89), (3, 0.07, 0.85), (5, 0.045, 0.81), (10, 0.03, 0.75)]
)
def test_equals_seldom_have_a_winner_and_a_gain_of_three_deviations_of_a_difference_is_found(
    trials: int, false: float, power: float
) -> None:
    drawn = np.random.default_rng(100 + trials).standard_normal((STUDIES, trials))
    assert np.mean([has_winner(each, 1.0) for each in drawn]) <= false
    drawn[:, 0] += 3 * math.sqrt(2)
    assert np.mean([each.argmax() == 0 and has_winner(each, 1.0) for each in drawn]) >= power


@pytest.mark.parametrize("behind", [1.0, 2.0, 3.0, 5.0, 20.0])
def test_two_equal_results_before_eight_worse_ones_are_judged_nearly_as_two(behind: float) -> None:
    drawn = np.random.default_rng(7).standard_normal((STUDIES, 10))
    drawn[:, 2:] -= behind
    assert np.mean([has_winner(each, 1.0) for each in drawn]) <= 0.17


def test_results_far_behind_do_not_contend() -> None:
    assert lead_needed([0.5, *[CONTENTION + 1] * 8], 1.0) == pytest.approx(lead_of_chance(2))
    assert lead_needed([0.5, *[1.0] * 8], 1.0) == pytest.approx(lead_of_chance(10))
    assert lead_needed([99.0], 2.0) == pytest.approx(2 * lead_of_chance(2))


# ---- differences of repeats


def test_a_paired_difference_is_scipys_paired_test() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 6))
    found = difference(dict(enumerate(x)), dict(enumerate(y)))
    assert found is not None
    test = ttest_rel(x, y)
    assert (found.pairs, found.freedom) == (6, 5)
    assert found.mean / found.error == pytest.approx(test.statistic)
    low, high = test.confidence_interval(0.95)
    assert (found.mean - found.margin, found.mean + found.margin) == pytest.approx((low, high))


def test_results_of_other_seeds_are_compared_by_welchs_test() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal(4), 3 * rng.standard_normal(6)
    found = difference({("a", i): v for i, v in enumerate(x)}, {("b", i): v for i, v in enumerate(y)})
    assert found is not None
    test = ttest_ind(x, y, equal_var=False)
    assert (found.pairs, found.freedom) == (0, pytest.approx(test.df))
    assert found.mean / found.error == pytest.approx(test.statistic)


def test_two_seeds_want_students_t_and_one_tells_nothing() -> None:
    assert quantile(1) == pytest.approx(12.706, abs=1e-3)
    assert quantile(math.inf) == pytest.approx(norm.ppf(0.975))
    two = difference({0: 1.0, 1: 1.2}, {0: 0.0, 1: 0.3})  # 1.0 and 0.9: twice their error is 0.1
    assert two is not None
    assert two.is_noise == (two.mean <= t.ppf(0.975, 1) * two.error)
    assert not two.is_noise
    assert difference({0: 1.0, 1: 1.5}, {0: 0.0, 1: 0.9}).is_noise  # type: ignore[union-attr]
    assert difference({0: 1.0}, {0: 0.5}) is None
    assert difference({0: 1.0, 1: 1.0}, {2: 0.5}) is None


def test_what_the_folds_do_to_both_is_no_part_of_their_difference() -> None:
    rng, found = np.random.default_rng(3), {"paired": 0, "unpaired": 0, "equal": 0}
    for _ in range(200):
        folds = 10 * rng.standard_normal(5)
        x, y = folds + rng.standard_normal((2, 5))
        better = dict(enumerate(x + 3))
        for name, other, first in (
            ("paired", dict(enumerate(y)), better),
            ("unpaired", {i + 5: v for i, v in enumerate(y)}, better),
            ("equal", dict(enumerate(y)), dict(enumerate(x))),
        ):
            each = difference(first, other)
            assert each is not None
            found[name] += not each.is_noise
    assert found["paired"] >= 0.9 * 200
    assert found["unpaired"] <= 0.15 * 200
    assert found["equal"] <= 0.09 * 200


def test_as_many_pairs_are_advised_as_would_show_the_difference() -> None:
    rng = np.random.default_rng(4)
    first = difference({i: 1.0 + v for i, v in enumerate((0.9, -1.1, 0.2, 0.0))}, dict.fromkeys(range(4), 0.0))
    assert first is not None
    needed = first.pairs_needed
    assert needed is not None
    deviation = first.error * 2
    shown = 0
    for _ in range(400):
        apart = first.mean + deviation * rng.standard_normal(needed)
        each = difference(dict(enumerate(apart)), dict.fromkeys(range(needed), 0.0))
        shown += each is not None and not each.is_noise
    assert 0.65 <= shown / 400 <= 0.9


# ---- edges and blocks


def test_a_rise_is_scipys_one_sided_test() -> None:
    rng = np.random.default_rng(5)
    for size in (0.0, 0.5, 1.0, 2.0):
        x, y = rng.standard_normal((2, 5)) + np.array([[size], [0.0]])
        apart = {f"x{i}": v for i, v in enumerate(x)}, {f"y{i}": v for i, v in enumerate(y)}
        assert rises(*apart, 0.05) == (ttest_ind(x, y, alternative="greater").pvalue < 0.05)
        paired = dict(enumerate(x)), dict(enumerate(y))
        assert rises(*paired, 0.05) == (ttest_rel(x, y, alternative="greater").pvalue < 0.05)
    assert rises({0: 1.0}, {0: 0.0}, 0.05, 0.3)
    assert not rises({0: 1.0}, {0: 0.0}, 0.05, 0.6)
    assert not rises({0: 1.0}, {0: 0.0}, 0.05)
    assert not rises({0: 1.0, 1: 1.1}, {}, 0.05)


def test_a_climb_is_scipys_one_sided_slope() -> None:
    rng = np.random.default_rng(8)
    x = rng.random(6)
    for slope in (-1.0, 0.0, 1.0, 3.0, 8.0):
        y = slope * x + rng.standard_normal(6)
        p = linregress(x, y, alternative="greater").pvalue
        assert climbs(x.tolist(), y.tolist(), 0.05) == (p < 0.05)
    assert climbs([0.1, 0.9], [0.0, 1.0], 0.05, 0.3)
    assert not climbs([0.9, 0.1], [0.0, 1.0], 0.05, 0.3)
    assert not climbs([0.1, 0.9], [0.0, 1.0], 0.05)
    assert not climbs([0.5, 0.5, 0.5], [0.0, 1.0, 2.0], 0.05)
    assert not climbs([0.1, 0.5, 0.9], [0.7, 0.7, 0.7], 0.05)


def test_what_is_left_of_a_table_is_free_of_its_rows_and_columns() -> None:
    rng = np.random.default_rng(6)
    noise = rng.standard_normal((4, 3))
    plain, freedom = residual(noise.tolist())
    shifted, _ = residual((noise + 7 * rng.standard_normal((4, 1)) + 9 * rng.standard_normal((1, 3))).tolist())
    assert freedom == 6
    assert shifted == pytest.approx(plain)
    two, _ = residual(noise[:2].tolist())  # of two rows it is the paired test
    apart = noise[0] - noise[1]
    assert two * math.sqrt(2 / 3) == pytest.approx(standard_error(apart.tolist()))
