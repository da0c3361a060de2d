"""What mattered in a finished search: importances and interactions, each beside what chance would make of them."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, create_trial

from tunelab.analysis.forest import Array, Axis, Measure, Variance, additive, axis, decomposed
from tunelab.analysis.importance_answer import SHUFFLES, Finished, Importance
from tunelab.analysis.significance import floor_of_chance
from tunelab.errors import ConfigError
from tunelab.instrument import progress

REPEATS = ("seed", "fold")
"""What is varied to see how much a result scatters: no knob."""

LEAST_TRIALS = 10

LEAST_SHARE = 0.01
"""Below which a share is called noise in any case: a forest is no finer instrument."""

MEASURES = 2
"""fANOVA and PED-ANOVA: either may call a hyperparameter real, so that chance has two tries at each."""

TOP = 5
"""Trials that PED-ANOVA shall call good at the least; else a tenth of them are."""


def importance(search: Finished, shuffles: int = SHUFFLES) -> Importance:
    """What mattered in a search.

    A knob that only some trials have is judged among those that have it, and what it does counts by their share p of
    all trials: whole = V of the forest of the knobs that all have + Σ p_k (V_k + V_kj) over the others.

    Args:
        search: That has ended.
        shuffles: How often each knob's values are shuffled, to see what chance makes of it.

    Raises:
        ConfigError: If too few trials finished, or all reached the same, or nothing was varied.
    """
    knobs = _knobs(search)
    everywhere = [key for key in knobs if all(key in trial.params for trial in search.trials)]
    groups: list[tuple[list[FrozenTrial], list[str], list[str]]] = []  # trials, their knobs, those judged among them
    if everywhere:
        groups.append((list(search.trials), everywhere, everywhere))
    for key in (key for key in knobs if key not in everywhere):
        there = [trial for trial in search.trials if key in trial.params]
        among = [k for k in knobs if all(k in t.params for t in there) and len({t.params[k] for t in there}) > 1]
        if key in among and len(there) >= LEAST_TRIALS:
            groups.append((there, among, [key]))
    fanova: dict[str, Measure] = {}
    pairs: dict[tuple[str, str], Measure] = {}
    surfaces: dict[tuple[str, str], tuple[list[Any], list[Any], Array]] = {}
    explained, whole = [], 0.0
    with progress(shuffles * (1 + sum(len(judged) + (len(among) > 1) for _, among, judged in groups))) as advance:
        for trials, among, judged in groups:
            part = len(trials) / len(search.trials)
            single, double, found, axes = _anova(trials, among, judged, part, shuffles, len(knobs), advance)
            fanova |= single
            pairs |= double
            surfaces |= {p: (axes[p[0]].decode(), axes[p[1]].decode(), found.surfaces[p]) for p in double}
            explained.append(found.explained)
            if judged == everywhere:
                whole = found.total
        ped = _ped(search, list(fanova), shuffles, advance)
    whole += sum(found.value for key, found in fanova.items() if key not in everywhere)
    whole += sum(found.value for pair, found in pairs.items() if not {*pair} <= {*everywhere})
    fanova = {key: _share(found, whole) for key, found in fanova.items()}
    pairs = {pair: _share(found, whole) for pair, found in pairs.items()}
    return Importance(
        search,
        {key: sum(key in trial.params for trial in search.trials) for key in fanova},
        dict(sorted(fanova.items(), key=lambda item: -item[1].value)),
        ped,
        dict(sorted(pairs.items(), key=lambda item: (item[1].is_noise, -item[1].value))),
        surfaces,
        max(explained),
        seed_share(search.trials),
    )


def _knobs(search: Finished) -> list[str]:
    """The knobs that had two values or more."""
    trials, count = search.trials, len(search.trials)
    besides = f" ({search.others})" if search.others else ""
    if count < LEAST_TRIALS:
        raise ConfigError(
            f"`study` must have {LEAST_TRIALS} or more finished trials, got {count}{besides}. "
            "The search's own command with more sweep.n_trials goes on."
        )
    if len({trial.value for trial in trials}) == 1:
        raise ConfigError(
            f"`study` must have trials that differ, but all {count} reached {search.objective} {trials[0].value:.6g}. "
            "Nothing that was varied moves it: search in wider ranges, or train longer."
        )
    keys = dict.fromkeys(key for trial in trials for key in trial.params if key not in REPEATS)
    varied = [key for key in keys if len({t.params[key] for t in trials if key in t.params}) > 1]
    usable = [key for key in varied if sum(key in trial.params for trial in trials) >= LEAST_TRIALS]
    if not usable:
        only = "none" if keys else "the seed alone"
        if varied:
            only = f"{', '.join(varied)}, each in fewer than {LEAST_TRIALS} trials"
        raise ConfigError(f"`study` must have varied a knob, got {only}.")
    return usable


def seed_share(trials: Sequence[FrozenTrial]) -> float | None:
    """The part of the variance that is between trials of the same values; None if there are no such.

    Args:
        trials: Finished ones.
    """
    found: dict[Any, list[float]] = {}
    for trial in trials:
        found.setdefault(_configuration(trial), []).append(float(trial.value or 0.0))
    freedom = sum(len(scores) - 1 for scores in found.values())
    if not freedom:
        return None
    within = sum((len(s) - 1) * statistics.variance(s) for s in found.values() if len(s) > 1) / freedom
    return min(1.0, within / statistics.variance([float(trial.value or 0.0) for trial in trials]))


def _configuration(trial: FrozenTrial) -> Any:
    return tuple(sorted((key, repr(value)) for key, value in trial.params.items() if key not in REPEATS))


def _shuffled(trials: Sequence[FrozenTrial], key: str, rng: np.random.Generator) -> list[Any]:
    """A knob's values over other trials; those of repeated seeds stay together."""
    where: dict[Any, int] = {}
    group = [where.setdefault(_configuration(trial), len(where)) for trial in trials]
    values = [next(t.params[key] for t, g in zip(trials, group, strict=True) if g == n) for n in range(len(where))]
    order = rng.permutation(len(values))
    return [values[order[g]] for g in group]


Advance = Callable[[str], None]


def _anova(
    trials: Sequence[FrozenTrial],
    among: list[str],
    judged: list[str],
    part: float,
    shuffles: int,
    knobs: int,
    advance: Advance,
) -> tuple[dict[str, Measure], dict[tuple[str, str], Measure], Variance, dict[str, Axis]]:
    """The variances of some knobs and of their pairs with the others, with the floors, times a part of all trials."""
    axes = {key: axis(next(t.distributions[key] for t in trials)) for key in among}
    encoded = np.stack([axes[key].encode([trial.params[key] for trial in trials]) for key in among], 1)
    scores = np.array([trial.value for trial in trials], dtype=float)
    found = decomposed(axes, encoded, scores, 0)
    pairs = [pair for pair in combinations(among, 2) if set(pair) & set(judged)]
    by_chance: dict[str, list[float]] = {key: [] for key in judged}
    pairs_by_chance: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
    for place, key in ((among.index(key), key) for key in judged):
        rng = np.random.default_rng((1, place))
        for number in range(shuffles):
            other = encoded.copy()
            other[:, place] = axes[key].encode(_shuffled(trials, key, rng))
            chance = decomposed(axes, other, scores, number + 1)
            by_chance[key].append(part * chance.single[key])
            advance(f"{key} shuffled")
    apart = additive(axes, found, encoded)
    rng = np.random.default_rng(3)
    for number in range(shuffles if pairs else 0):
        chance = decomposed(axes, encoded, apart + rng.permutation(scores - apart), number + 1)
        for pair in pairs:
            pairs_by_chance[pair].append(part * chance.pairs[pair])
        advance("without interactions")
    single = {
        key: Measure(part * found.single[key], floor_of_chance(by_chance[key], MEASURES * knobs)) for key in judged
    }
    tests = max(1, knobs * (knobs - 1) // 2)
    double = {pair: Measure(part * found.pairs[pair], floor_of_chance(pairs_by_chance[pair], tests)) for pair in pairs}
    return single, double, found, axes


def _share(variance: Measure, whole: float) -> Measure:
    """A variance as a share of the whole; that of nothing is 0."""
    whole = whole or 1.0
    return Measure(variance.value / whole, min(1.0, max(LEAST_SHARE, variance.floor / whole)))


def _ped(search: Finished, keys: list[str], shuffles: int, advance: Advance) -> dict[str, Measure]:
    """PED-ANOVA of some knobs, as shares of their sum, with the floors."""
    found = _divergences(search, [dict(trial.params) for trial in search.trials], keys)
    total = sum(found.values()) or 1.0
    by_chance: dict[str, list[float]] = {key: [] for key in keys}
    for number in range(shuffles):
        rng = np.random.default_rng((2, number))
        params = [dict(trial.params) for trial in search.trials]
        for key in keys:  # each is judged by itself, so that all are shuffled at once
            there = [place for place, trial in enumerate(search.trials) if key in trial.params]
            for place, value in zip(there, _shuffled([search.trials[p] for p in there], key, rng), strict=True):
                params[place][key] = value
        for key, value in _divergences(search, params, keys).items():
            by_chance[key].append(value / (total - found[key] + value or 1.0))  # had it done this, all else as it is
        advance("shuffled for PED-ANOVA")
    floors = {key: floor_of_chance(by_chance[key], MEASURES * len(keys)) for key in keys}
    return {key: Measure(found[key] / total, min(1.0, max(LEAST_SHARE, floors[key]))) for key in keys}


def _divergences(search: Finished, params: Sequence[Mapping[str, Any]], keys: list[str]) -> dict[str, float]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if search.maximize else "minimize")
    study.add_trials(
        [
            create_trial(
                params={key: each[key] for key in keys if key in each},
                distributions={key: trial.distributions[key] for key in keys if key in each},
                value=trial.value,
            )
            for each, trial in zip(params, search.trials, strict=True)
        ]
    )
    top = min(0.5, max(0.1, TOP / len(params)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PedAnovaImportanceEvaluator(target_quantile=top).evaluate(study, params=keys)
