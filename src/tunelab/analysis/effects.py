"""The effect of a knob beside the noise of the seeds, and in which direction it goes. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tunelab.analysis.significance import ERROR_RATE, residual

ROUNDING = 1e-6
"""By which part of it a difference of one example may come out larger than one example."""


class Repeated:
    """Runs that differ in their seed or fold alone."""

    scores: Sequence[float]

    @property
    def mean(self) -> float:
        """Over the repeats."""
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float:
        """Sample standard deviation over the repeats; 0 of a single one."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


@dataclass(frozen=True)
class Place(Repeated):
    """One value of a knob, all else as in the recipe.

    Args:
        value: The value.
        override: What is typed to have it.
        scores: What the metric reached with each seed that finished.
        failed: How many seeds did not.
        is_own: Whether it is the recipe's own value.
        seeds: Of each score; empty if they are not known.
    """

    value: Any
    override: str
    scores: tuple[float, ...]
    failed: int = 0
    is_own: bool = False
    seeds: tuple[Any, ...] = ()

    @property
    def shown(self) -> str:
        """The value in few characters."""
        return shown(self.value)

    @property
    def part_failed(self) -> str:
        """How many of its runs failed, in words; empty if none did, or all."""
        return f"{self.failed} of {self.failed + len(self.scores)} runs failed" if self.failed and self.scores else ""


@dataclass(frozen=True)
class Effect:
    """What a knob does to the metric.

    Args:
        key: Of the knob.
        places: Its values with a result, in their order; the recipe's own among them.
        lost: Those with none, as every seed failed.
        best: Of the places.
        worst: Of the places.
        noise: Standard deviation over the seeds, within each value; of the same seeds at every value what is left when
            the part that a seed has at all of them is taken out.
        floor: The largest difference that is to be expected between the best and the worst of as many means by chance;
            inf if the seeds do not tell.
        freedom: Degrees of freedom of the noise.
        is_blocked: Whether every value had the same seeds, so that they were compared seed by seed.
    """

    key: str
    places: tuple[Place, ...]
    lost: tuple[Place, ...]
    best: Place
    worst: Place
    noise: float
    floor: float
    freedom: int
    is_blocked: bool = False

    @property
    def size(self) -> float:
        """Best mean - worst mean, without a sign."""
        return abs(self.best.mean - self.worst.mean)

    @property
    def error(self) -> float:
        """Standard error of the difference between the best and the worst mean."""
        return self.noise * math.sqrt(1 / len(self.best.scores) + 1 / len(self.worst.scores))

    @property
    def p(self) -> float | None:
        """How often chance alone would make as large an effect, as far as the seeds tell; None if none differed."""
        from scipy.stats import studentized_range

        if not self.noise:
            return None
        size = self.size / self.noise * math.sqrt(_seeds(self.places))
        return float(min(1.0, max(0.0, studentized_range.sf(size, len(self.places), self.freedom))))

    @property
    def is_noise(self) -> bool:
        """Whether the seeds alone explain it."""
        return self.size <= self.floor * (1 + ROUNDING)

    @property
    def own(self) -> Place | None:
        """The recipe's own value, if it has a result."""
        return next((place for place in self.places if place.is_own), None)

    @property
    def better(self) -> Place | None:
        """The best of the values that failed with no more seeds than the recipe's own; None if that is as good."""
        if (own := self.own) is None:
            return None
        reliable = [place for place in self.places if place.failed <= own.failed]
        found = min(reliable, key=lambda place: abs(place.mean - self.best.mean))
        return found if abs(found.mean - own.mean) > self.floor * (1 + ROUNDING) else None

    @property
    def range(self) -> str:
        """The values that were compared: an effect is one over them, and no other."""
        values = [place.shown for place in self.places]
        return f"{values[0]} … {values[-1]}" if is_ordered(self.places) and len(values) > 2 else ", ".join(values)

    def said(self) -> str:
        """The direction, in words."""
        lost = "".join(f"; {p.part_failed} at {p.shown}" for p in self.places if p.part_failed)
        lost += f"; every run failed at {', '.join(place.shown for place in self.lost)}" if self.lost else ""
        if self.size and math.isinf(self.floor):
            return f"within the noise: the seeds did not differ, so none is known{lost}"
        if self.is_noise:
            return f"within the noise{lost}"
        if not is_ordered(self.places):
            return f"best {self.best.shown}, worst {self.worst.shown}{lost}"
        return direction(self.places, self.best, self.floor) + lost


def shown(value: Any) -> str:
    """A value in few characters: 0.001, 3.2e-05, 128, relu."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_ordered(places: Sequence[Place]) -> bool:
    """Whether the values are numbers, of which one may be higher."""
    return all(isinstance(place.value, (int, float)) and not isinstance(place.value, bool) for place in places)


def direction(places: Sequence[Place], best: Place, floor: float) -> str:
    """Where the better values of an ordered knob lie.

    Values beside the best one that differ from it by no more than the floor are as good as it.

    Args:
        places: In the order of their values.
        best: One of them.
        floor: Below which a difference says nothing.
    """

    def is_as_good(place: Place) -> bool:
        return abs(place.mean - best.mean) <= floor

    low = high = places.index(best)
    while low > 0 and is_as_good(places[low - 1]):
        low -= 1
    while high < len(places) - 1 and is_as_good(places[high + 1]):
        high += 1
    last, sign = len(places) - 1, 1 if best.mean > min(place.mean for place in places) else -1
    climb = [sign * (b.mean - a.mean) for a, b in pairwise(places)]
    if any(step < -floor for step in climb[:low]) or any(step > floor for step in climb[high:]):
        return f"best at {best.shown}, with no one direction"
    if low == high == last:
        return "higher is better"
    if low == high == 0:
        return "lower is better"
    if high == last:
        return f"higher is better up to {places[low].shown}, then no clear difference"
    if low == 0:
        return f"lower is better down to {places[high].shown}, then no clear difference"
    where = f"at {best.shown}" if low == high else f"between {places[low].shown} and {places[high].shown}"
    return f"best {where}, worse on both sides"


@lru_cache
def chance_range(values: int, freedom: int, rate: float) -> float:
    """The range of `values` means, in standard errors of a mean, that chance alone exceeds at a rate.

    Reference:
        Tukey 1949, Comparing individual means in the analysis of variance (the studentized range).
    """
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(1 - rate, values, freedom))


def effect(key: str, places: Sequence[Place], knobs: int, *, maximize: bool, least: float = 0.0) -> Effect | str:
    """The effect of a knob, beside what chance would make of as many values.

    floor = max(q · s / √n, least),  n = harmonic mean of the nᵢ,
    q = the quantile of the studentized range of k means at 1 - 0.05 / knobs
    same seeds:    s² = Σ (x_ij - x̄_i. - x̄_.j + x̄..)² / ((k - 1)(n - 1)), of k values and n seeds
    other seeds:   s² = Σ (nᵢ - 1) sᵢ² / Σ (nᵢ - 1)

    A seed is a block: what it does to all values alike (an easy split, a lucky start) is no part of their differences.
    The range of k means grows with k where nothing but chance is at work, which q allows for. The deviation is that of
    this knob's own values: a knob whose values scatter a lot is not judged by the others. Where the seeds do not differ
    at all, and no least difference is known, any is called noise.

    Args:
        key: Of the knob.
        places: Its values.
        knobs: How many knobs are judged, each of which may be taken for one that matters by chance.
        maximize: Whether a higher score is better.
        least: By how much a score can differ at the least, such as by one example; 0 if that is not known.

    Returns:
        The effect, or why none can be stated, in a sentence.
    """
    with_result = [place for place in places if place.scores]
    if is_ordered(places):
        with_result.sort(key=lambda place: float(place.value))
    lost = tuple(place for place in places if not place.scores)
    if len(with_result) < 2:
        names = ", ".join(place.shown for place in lost)
        return f"{key}: no effect can be stated, as every run failed at {names}."
    if all(len(place.scores) < 2 for place in with_result):
        return f"{key}: no noise can be stated, as no value of it has two seeds that finished."
    order = sorted(with_result, key=lambda place: place.mean, reverse=maximize)
    best, worst = order[0], order[-1]
    blocks = _blocks(with_result)
    noise, freedom = residual(blocks) if blocks else _pooled(with_result)
    error = noise / math.sqrt(_seeds(with_result))
    floor = max(least, error * chance_range(len(with_result), freedom, ERROR_RATE / knobs)) or math.inf
    return Effect(key, tuple(with_result), lost, best, worst, noise, floor, freedom, is_blocked=bool(blocks))


def _blocks(places: Sequence[Place]) -> list[list[float]]:
    """The scores of each value in the order of the seeds; empty if they did not all have the same, two or more."""
    seeds = list(dict.fromkeys(places[0].seeds))
    if len(seeds) < 2 or any(len(place.seeds) != len(seeds) or set(place.seeds) != set(seeds) for place in places):
        return []
    by_seed = [dict(zip(place.seeds, place.scores, strict=True)) for place in places]
    return [[scores[seed] for seed in seeds] for scores in by_seed]


def _pooled(places: Sequence[Place]) -> tuple[float, int]:
    """The standard deviation within each value, and its degrees of freedom."""
    freedom = sum(len(place.scores) - 1 for place in places)
    return math.sqrt(sum((len(place.scores) - 1) * place.deviation**2 for place in places) / freedom), freedom


def _seeds(places: Sequence[Place]) -> float:
    """How many seeds a value had: the harmonic mean."""
    return statistics.harmonic_mean([len(place.scores) for place in places])
