"""How often a verdict about noise is wrong, and how often it finds what is there: simulated studies. No training.

    python benchmarks/verdicts.py [--seed 2000] [--studies 2000] [--importance 0]

Scores are drawn, and the product's own functions judge them. The rules were chosen on other seeds; the table in
RESULTS.md is of seed 2000. `sd` is the standard deviation of a single result; a gain of 3 sd of a difference is of
3 √2 sd. `--importance 20` also judges twenty searches of pure noise by `sensitivity study=`, a minute each.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, create_trial

from tunelab.analysis.effects import Effect, Place, effect
from tunelab.analysis.importance import importance
from tunelab.analysis.importance_answer import Finished
from tunelab.analysis.significance import difference, lead_needed, quantile, share_deviation
from tunelab.sweep.edges import edges
from tunelab.sweep.repeats import winner
from tunelab.sweep.space import Space, read_space

Rng = np.random.Generator
Array = NDArray[np.float64]
TRIALS = (2, 3, 5, 10, 20)


def share(verdict: Callable[[], bool], studies: int) -> str:
    """How many of so many studies have a verdict, in percent."""
    return f"{sum(verdict() for _ in range(studies)) / studies:.1%}"


def leads(scores: Array, deviation: float = 1.0, times: float | None = None) -> bool:
    """Whether single results have a winner: by the product's rule, or by a fixed number of deviations."""
    best, *others = sorted(map(float, scores), reverse=True)
    behind = [best - other for other in others]
    return behind[0] > (lead_needed(behind, deviation) if times is None else times * deviation)


def single_results(rng: Rng, studies: int) -> Iterator[list[str]]:
    """False winners and power of the lead of single results, beside fixed widths."""
    yield [
        "trials",
        "equal: × 1",
        "× 2.83",
        "ours",
        "gain 3 sd: × 2.83",
        "ours",
        "3 sd of a difference: × 2.83",
        "ours",
    ]

    def found(trials: int, gain: float, times: float | None) -> bool:
        scores = rng.standard_normal(trials)
        scores[0] += gain
        return bool((not gain or scores.argmax() == 0) and leads(scores, times=times))

    for trials in TRIALS:
        asked = [(0.0, 1.0), (0.0, 2.83), (0.0, None)]
        asked += [(gain, times) for gain in (3.0, 3 * math.sqrt(2)) for times in (2.83, None)]
        yield [
            str(trials),
            *(share(lambda t=trials, g=g, x=x: found(t, g, x), studies) for g, x in asked),  # type: ignore[misc]
        ]


def shares(rng: Rng, studies: int) -> Iterator[list[str]]:
    """Winners among equal recipes of which all or nearly all examples are right, by the old width and by ours."""
    yield ["trials", "width from sqrt(p (1 - p) / n)", "ours"]

    def found(trials: int, *, is_ours: bool) -> bool:
        scores = rng.binomial(57, 0.975, trials) / 57
        p = min(max(scores.max(), 1 / 59), 1 - 1 / 59)
        old = math.sqrt(p * (1 - p) / 57)
        return leads(scores, share_deviation(float(scores.max()), 57)) if is_ours else leads(scores, old, 1.0)

    for trials in (2, 5, 10):
        yield [str(trials), *(share(lambda t=trials, o=o: found(t, is_ours=o), studies) for o in (False, True))]  # type: ignore[misc]


def folds(rng: Rng, studies: int) -> Iterator[list[str]]:
    """Two configurations over repeats that scatter by ten times the noise of a single result."""
    yield ["repeats", "gain 3 sd: unpaired", "paired", "equal: paired by 2 errors", "paired"]

    def found(count: int, gain: float, kind: str) -> bool:
        alike = 10 * rng.standard_normal(count)
        x, y = alike + rng.standard_normal((2, count))
        places = range(count) if kind != "unpaired" else range(count, 2 * count)
        each = difference(dict(enumerate((x + gain).tolist())), dict(zip(places, y.tolist(), strict=True)))
        assert each is not None
        return abs(each.mean) > 2 * each.error if kind == "normal" else not each.is_noise

    for count in (2, 3, 5, 10):
        asked = ((3.0, "unpaired"), (3.0, "paired"), (0.0, "normal"), (0.0, "paired"))
        yield [str(count), *(share(lambda n=count, g=g, k=k: found(n, g, k), studies) for g, k in asked)]  # type: ignore[misc]


def space(*typed: str) -> Space:
    return read_space(OverridesParser.create().parse_overrides(list(typed)), {}, 0)


def edge_of(rng: Rng, searched: Space, count: int, slope: float, *, is_ours: bool) -> bool:
    """Whether a random search says that its best lies at an edge, by the old rule or by ours."""
    trials = []
    for number in range(count):
        values = {knob.key: knob.draw(float(rng.random())) for knob in searched.knobs}
        value = float(rng.standard_normal()) + slope * 10 * (values["lr"] - 0.1)
        each = create_trial(
            value=value, params=values, distributions={knob.key: knob.distribution for knob in searched.knobs}
        )
        each.number = number
        trials.append(each)
    best = winner(trials, searched, "maximize")
    assert best is not None
    if is_ours:
        return any(True for _ in edges(best, searched, trials, "maximize"))
    return any(
        best.params[knob.key] in (min(knob.values()), max(knob.values()))
        if knob.is_finite
        else not 0.05 < (best.params[knob.key] - 0.1) / 0.1 < 0.95
        for knob in searched.knobs
    )


def at_the_edge(rng: Rng, studies: int) -> Iterator[list[str]]:
    """How often the best is said to be at an edge: by chance, and where the result climbs by 4 or 12 sd to it."""
    yield ["hyperparameters", "trials", "chance: best is there", "ours", "climbs 4 sd: ours", "climbs 12 sd: ours"]
    six = ("lr", "weight_decay", "dropout", "a", "b", "c")
    spaces = {
        "one range": space("lr=interval(0.1,0.2)"),
        "six ranges": space(*(f"{key}=interval(0.1,0.2)" for key in six)),
        "one of three choices": space("lr=0.1,0.15,0.2"),
        "three of three choices": space(*(f"{key}=0.1,0.15,0.2" for key in six[:3])),
    }
    for name, searched in spaces.items():
        for count in (10, 40):
            asked = ((0.0, False), (0.0, True), (4.0, True), (12.0, True))
            yield [
                name,
                str(count),
                *(
                    share(lambda s=searched, n=count, g=g, o=o: edge_of(rng, s, n, g, is_ours=o), studies)  # type: ignore[misc]
                    for g, o in asked
                ),
            ]


def one_at_a_time(rng: Rng, studies: int) -> Iterator[list[str]]:
    """Three values of a hyperparameter over three seeds, the last 3 sd better; seeds scatter by so many sd."""
    yield ["sd of what a seed does to all", "gain: pooled", "by seed", "equal: pooled", "by seed"]

    def found(spread: float, gain: float, *, by_seed: bool) -> bool:
        table = spread * rng.standard_normal((1, 3)) + rng.standard_normal((3, 3)) + [[0.0], [gain / 2], [gain]]
        seeds = (0, 1, 2) if by_seed else ()
        each = effect(
            "x", [Place(i, f"x={i}", tuple(row), seeds=seeds) for i, row in enumerate(table.tolist())], 1, maximize=True
        )
        assert isinstance(each, Effect)
        return not each.is_noise

    for spread in (0.0, 1.0, 2.0, 4.0):
        asked = ((3.0, False), (3.0, True), (0.0, False), (0.0, True))
        yield [f"{spread:g}", *(share(lambda s=spread, g=g, b=b: found(s, g, by_seed=b), studies) for g, b in asked)]  # type: ignore[misc]


def of_noise(rng: Rng, searches: int) -> Iterator[list[str]]:
    """Searches of pure noise, six hyperparameters and 60 trials each: how many are said to have one that mattered."""
    yield ["searches", "one mattered", "two interact"]
    unit, keys, mattered, interact = FloatDistribution(0.0, 1.0), "abcdef", 0, 0
    for _ in range(searches):
        made: list[FrozenTrial] = [
            create_trial(
                params={key: float(rng.random()) for key in keys},
                distributions=dict.fromkeys(keys, unit),
                value=float(rng.standard_normal()),
            )
            for _ in range(60)
        ]
        answer = importance(Finished("noise", "val/loss", False, made, "", {}, []))
        mattered, interact = mattered + bool(answer.real), interact + bool(answer.real_pairs)
    yield [str(searches), str(mattered), str(interact)]


def show(title: str, rows: Iterator[list[str]]) -> None:
    """Prints a table as it stands in RESULTS.md."""
    head, *body = rows
    print(f"\n{title}\n\n| {' | '.join(head)} |\n| {' | '.join(['---', *['---:'] * (len(head) - 1)])} |")
    for row in body:
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2000)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--importance", type=int, default=0, help="searches of pure noise, a minute each")
    asked = parser.parse_args()
    few = max(1, asked.studies // 5)
    tables: list[tuple[str, Any, int]] = [
        ("Each trial once: a winner", single_results, asked.studies),
        ("Equal recipes that are right in 97.5 % of 57 examples: a winner", shares, asked.studies),
        ("Two configurations, the same folds: a winner", folds, asked.studies),
        ("The best at the edge", at_the_edge, few),
        ("One at a time, three values and three seeds: an effect", one_at_a_time, asked.studies),
    ]
    for number, (title, table, studies) in enumerate(tables):
        show(f"{title} ({studies} studies each)", table(np.random.default_rng((asked.seed, number)), studies))
    if asked.importance:
        show("sensitivity study= of pure noise", of_noise(np.random.default_rng((asked.seed, 99)), asked.importance))
    print(f"\nStudent's t: {quantile(1):.1f} of two seeds, {statistics.NormalDist().inv_cdf(0.975):.2f} of many.")


if __name__ == "__main__":
    main()
