"""What chance alone makes of results that are compared: widths, leads, differences of repeats. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

ERROR_RATE = 0.05
"""How often chance alone is called a difference, where results were repeated."""

FALSE_LEAD = 0.09
"""How often one of two equal results, each a single one, is called better than the other.

No rule does better with one run each: at 0.05 a difference of three standard errors is missed in 15 % of cases.
"""

CONTENTION = 4.0
"""Results up to so many standard deviations behind the best may be as good as it."""

ROUNDING = 1e-9
"""By which part of it a difference may come out larger or smaller than it is."""


def share_deviation(share: float, examples: int) -> float:
    """Return the standard deviation of a share of examples, never less than one example.

    s = max( sqrt(p (1 - p) / n), 1 / n ),  p = (x + 2) / (n + 4),  x = share · n

    With all right, or all but one, sqrt(share (1 - share) / n) would fall below what one example makes.

    Args:
        share: In [0, 1].
        examples: n, >= 1.

    Reference:
        Agresti, Coull 1998, Approximate is better than "exact" for interval estimation of binomial proportions.
    """
    p = (share * examples + 2) / (examples + 4)
    return max(math.sqrt(p * (1 - p) / examples), 1 / examples)


@lru_cache
def lead_of_chance(results: int) -> float:
    """Return the lead of the best of equal results over the next that chance seldom exceeds, in standard deviations.

    P(lead > c) = m ∫ φ(x) Φ(x - c)^(m - 1) dx = 0.09 · 2 / m,  m = results

    A lead is a difference of two results, so that of two it is c = 1.70 √2 = 2.40; of ten 1.85. The rate falls as 2 / m
    for a search of many trials to name no more false winners than one of two.

    Args:
        results: m, >= 2.

    Reference:
        David, Nagaraja 2003, Order statistics, section 2.3 (the joint distribution of two order statistics).
    """
    from scipy.integrate import quad
    from scipy.optimize import brentq
    from scipy.stats import norm

    def exceeded(lead: float) -> float:
        chance, _ = quad(lambda x: norm.pdf(x) * norm.cdf(x - lead) ** (results - 1), -8, 10)
        return float(results * chance) - FALSE_LEAD * 2 / results

    return float(brentq(exceeded, 0.0, 10.0, xtol=1e-6))


def lead_needed(behind: Sequence[float], deviation: float) -> float:
    """Return the lead over the next result that the best of several single results needs.

    needed = c(m) · s,  m = the best and those up to 4 s behind it

    Those far behind do not contend: of ten trials, two that are equally good and eight that are hopeless, the two are
    compared as two.

    Args:
        behind: How far each of the others is behind the best, >= 0.
        deviation: s, the standard deviation of a single result.
    """
    contenders = 1 + sum(each <= CONTENTION * deviation for each in behind)
    return lead_of_chance(max(2, contenders)) * deviation * (1 + ROUNDING)


@dataclass(frozen=True)
class Difference:
    """The mean difference between two sets of repeated results, beside its error.

    Args:
        mean: First - second.
        error: Its standard error.
        freedom: Degrees of freedom of the error.
        pairs: Of how many pairs it is made, each of the same seed and fold; 0 if there are none.
    """

    mean: float
    error: float
    freedom: float
    pairs: int

    @property
    def margin(self) -> float:
        """Half the width of its 95 % interval."""
        return quantile(self.freedom) * self.error

    @property
    def is_noise(self) -> bool:
        """Whether its 95 % interval holds 0."""
        return abs(self.mean) <= self.margin + ROUNDING * abs(self.mean)

    @property
    def pairs_needed(self) -> int | None:
        """How many pairs would show a difference of this size in four of five cases; None if no number would.

        n = ( (1.96 + 0.84) s / d )² + 2,  s = standard deviation of the differences, d = their mean; 2 for Student's t
        """
        if not self.mean or not self.pairs:
            return None
        return max(self.pairs + 1, math.ceil((2.8 * self.error / self.mean) ** 2 * self.pairs + 2))


def difference(first: Mapping[Hashable, float], second: Mapping[Hashable, float]) -> Difference | None:
    """Compare repeated results: pair by pair where they have two repeats in common, else as two samples.

    paired:    d = mean of x_i - y_i, error = sd(x_i - y_i) / √n, n - 1 degrees of freedom
    unpaired:  error² = s_x² / n_x + s_y² / n_y, degrees of freedom by Welch

    What a fold or a seed does to both is no part of a paired difference. With few repeats the quantile is Student's.

    Args:
        first: Results by their repeat (seed and fold).
        second: Of the other.

    Returns:
        The difference; None if the repeats do not tell, as one of them has fewer than two.

    Reference:
        Student 1908, The probable error of a mean; Welch 1947, The generalization of Student's problem.
    """
    common = [repeat for repeat in first if repeat in second]
    if len(common) > 1:
        apart = [first[repeat] - second[repeat] for repeat in common]
        return Difference(statistics.fmean(apart), standard_error(apart), len(common) - 1, len(common))
    if min(len(first), len(second)) < 2:
        return None
    x, y = list(first.values()), list(second.values())
    parts = [statistics.variance(each) / len(each) for each in (x, y)]
    weights = [part**2 / (len(each) - 1) for part, each in zip(parts, (x, y), strict=True)]
    freedom = sum(parts) ** 2 / sum(weights) if sum(weights) else min(len(x), len(y)) - 1
    return Difference(statistics.fmean(x) - statistics.fmean(y), math.sqrt(sum(parts)), freedom, 0)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean: sd / √n."""
    return statistics.stdev(values) / math.sqrt(len(values))


@lru_cache
def quantile(freedom: float, rate: float = ERROR_RATE) -> float:
    """Return the value that Student's t exceeds in absolute value at a rate; of two seeds (1 degree) it is 12.7.

    Args:
        freedom: Degrees of freedom, > 0; inf for the normal distribution.
        rate: In (0, 1).
    """
    from scipy.stats import t

    return float(t.ppf(1 - rate / 2, freedom))


def rises(
    edge: Mapping[Hashable, float],
    neighbour: Mapping[Hashable, float],
    rate: float,
    deviation: float | None = None,
) -> bool:
    """Return whether results at one place lie above those beside it by more than chance makes, at a rate.

    Paired where all else is equal in two pairs or more, else as two samples of equal variance (Student's t); of one
    result each, by the deviation of a single one.

    Args:
        edge: Results at the place, by all else that was varied; higher is better.
        neighbour: Those beside it.
        rate: How often chance alone may be called a rise (one-sided).
        deviation: Of a single result; None if that is not known.
    """
    common = [rest for rest in edge if rest in neighbour]
    if len(common) > 1:
        apart = [edge[rest] - neighbour[rest] for rest in common]
        mean, error, freedom = statistics.fmean(apart), standard_error(apart), len(common) - 1.0
    elif len(edge) + len(neighbour) > 2:
        sides = [list(edge.values()), list(neighbour.values())]
        if not all(sides):
            return False
        freedom = sum(map(len, sides)) - 2.0
        squares = sum((len(side) - 1) * statistics.variance(side) for side in sides if len(side) > 1)
        error = math.sqrt(squares / freedom * sum(1 / len(side) for side in sides))
        mean = statistics.fmean(sides[0]) - statistics.fmean(sides[1])
    elif edge and neighbour and deviation is not None:
        (high,), (low,) = edge.values(), neighbour.values()
        mean, error, freedom = high - low, math.sqrt(2) * deviation, math.inf
    else:
        return False
    return mean > quantile(freedom, 2 * rate) * error and mean > ROUNDING * abs(max(edge.values()))


def climbs(places: Sequence[float], results: Sequence[float], rate: float, deviation: float | None = None) -> bool:
    """Return whether results rise with their place by more than chance makes, at a rate.

    The slope of a straight line over its standard error beside Student's t with n - 2 degrees of freedom; of two
    results, their difference by the deviation of a single one.

    Args:
        places: x of each result.
        results: y of each; higher is better.
        rate: How often chance alone may be called a rise (one-sided).
        deviation: Of a single result; None if that is not known.
    """
    count = len(places)
    if len(set(places)) < 2:
        return False
    if count == 2:
        low, high = (y for _, y in sorted(zip(places, results, strict=True)))
        return deviation is not None and high - low > quantile(math.inf, 2 * rate) * math.sqrt(2) * deviation
    x, y = statistics.fmean(places), statistics.fmean(results)
    spread = sum((place - x) ** 2 for place in places)
    slope = sum((place - x) * (result - y) for place, result in zip(places, results, strict=True)) / spread
    left = sum((result - y - slope * (place - x)) ** 2 for place, result in zip(places, results, strict=True))
    error = math.sqrt(left / (count - 2) / spread)
    return slope > quantile(count - 2, 2 * rate) * error and slope * (max(places) - min(places)) > ROUNDING * abs(y)


def floor_of_chance(shuffled: Sequence[float], tests: int) -> float:
    """Return the value that chance exceeds at 0.05 shared among several tests, from a measure of shuffled data.

    The quantile at 1 - 0.05 / tests of a gamma distribution with the mean and deviation of the shuffles, never less
    than the largest of them: to count out a quantile so far out would take 20 shuffles for each test, and more. Its
    distance from the mean is stretched by t / z, Student's quantile over the normal one, as the deviation is estimated.

    Args:
        shuffled: The measure, >= 0, of each shuffle; two or more.
        tests: How many measures are judged, each of which may stand out by chance.

    Reference:
        Bonferroni; Winkler et al. 2016, Faster permutation inference, section 2.4 (the gamma approximation).
    """
    from scipy.stats import gamma, norm, t

    mean, deviation = statistics.fmean(shuffled), statistics.stdev(shuffled)
    if not mean or not deviation:
        return max(shuffled)
    place = 1 - ERROR_RATE / tests
    fitted = gamma.ppf(place, (mean / deviation) ** 2, scale=deviation**2 / mean)
    stretched = mean + (fitted - mean) * t.ppf(place, len(shuffled) - 1) / norm.ppf(place)
    return max(float(stretched), *shuffled)


def residual(scores: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Return the standard deviation that is left of a table of results without its rows' and columns' own parts.

    s² = Σ (x_ij - x̄_i. - x̄_.j + x̄..)² / ((k - 1)(n - 1)),  k rows, n columns

    Args:
        scores: A row of each value, a column of each seed; all of one length, two or more each.

    Returns:
        s, and its degrees of freedom, (k - 1)(n - 1).

    Reference:
        Fisher 1935, The design of experiments, chapter 4 (randomized blocks).
    """
    grand = statistics.fmean(statistics.fmean(row) for row in scores)
    rows = [statistics.fmean(row) for row in scores]
    columns = [statistics.fmean(column) for column in zip(*scores, strict=True)]
    squares = sum(
        (x - row - column + grand) ** 2
        for line, row in zip(scores, rows, strict=True)
        for x, column in zip(line, columns, strict=True)
    )
    freedom = (len(rows) - 1) * (len(columns) - 1)
    return math.sqrt(squares / freedom), freedom
