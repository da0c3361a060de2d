"""What is said of a finished search: which knobs mattered and which belong together, beside what chance makes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from tunelab.analysis.forest import Array, Measure
from tunelab.errors import counted, show, training
from tunelab.instrument import Answer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHUFFLES = 40
"""From which the floor of each measure is estimated."""

TRIALS_PER_KNOB = 10

SHOWN_PAIRS = 5


BEST_OF, LEAST_BEST = 10, 5
"""One trial of ten is among the best, but at least so many: the region that a finer search is advised in."""


def narrowed(key: str, best: Sequence[FrozenTrial]) -> str:
    """A knob as it is typed for a search in the region of these trials; empty if they do not say.

    Args:
        key: Of the knob, as it is typed.
        best: The trials.
    """
    name = key.lstrip("+")
    having = [trial for trial in best if name in trial.params]
    if not having:
        return ""
    values, of = [trial.params[name] for trial in having], having[0].distributions[name]
    if isinstance(of, (FloatDistribution, IntDistribution)):
        low, high = min(values), max(values)
        if low == high:
            return ""
        text = f"int(interval({low},{high}))" if isinstance(of, IntDistribution) else f"interval({low:.2g},{high:.2g})"
        return shlex.quote(f"{key}={f'tag(log,{text})' if of.log else text}")
    words = list(dict.fromkeys(show(value) for value in sorted(values, key=of.choices.index)))  # type: ignore[attr-defined]
    return f"{key}={','.join(words)}" if all(re.fullmatch(r"[\w.+-]+", word) for word in words) else ""


@dataclass(frozen=True)
class Finished:
    """A search that has ended.

    Args:
        name: Of its folder.
        objective: The metric.
        maximize: Whether a higher one is better.
        trials: Those that finished.
        others: How many there are besides, in words; empty if none.
        ranges: How each knob's values are typed.
        fixed: The overrides that all trials have.
    """

    name: str
    objective: str
    maximize: bool
    trials: Sequence[FrozenTrial]
    others: str
    ranges: Mapping[str, str]
    fixed: Sequence[str]


@dataclass(frozen=True, repr=False)
class Importance(Answer):
    """What mattered in a finished search.

    Args:
        search: Which.
        trials: Of each knob, in how many trials it is.
        fanova: Of each knob, its share of the forest's variance.
        ped: Of each knob, its share of what tells the best trials from all.
        pairs: Of each two knobs, their share beyond what each does alone.
        surfaces: Of each two, their places and the forest's mean there.
        explained: The forest's R² on trials that its trees have not seen; the largest, of several forests.
        seed_share: The part of the trials' variance that is the seeds'; None if no seed was repeated.
    """

    search: Finished
    trials: Mapping[str, int]
    fanova: Mapping[str, Measure]
    ped: Mapping[str, Measure]
    pairs: Mapping[tuple[str, str], Measure]
    surfaces: Mapping[tuple[str, str], tuple[list[Any], list[Any], Array]]
    explained: float
    seed_share: float | None

    @property
    def real(self) -> list[str]:
        """The knobs that fANOVA or PED-ANOVA finds above chance, the most important first.

        None where the forest does not predict trials that it has not seen: its shares are of nothing then.
        """
        if not self.predicts:
            return []
        return [key for key in self.fanova if not (self.fanova[key].is_noise and self.ped[key].is_noise)]

    @property
    def predicts(self) -> bool:
        """Whether the forest predicts trials that it has not seen better than their mean does."""
        return self.explained > 0

    @property
    def real_pairs(self) -> list[tuple[str, str]]:
        """The pairs above chance, the strongest first."""
        return [pair for pair in self.pairs if self.predicts and not self.pairs[pair].is_noise]

    def said(self) -> str:
        lines = [self._first(), *self._together(), "", *self._table(), ""]
        if self.pairs:
            lines += [*self._pair_table(), ""]
        return "\n".join([*lines, *self._rule(), "", *self._warnings(), self._override()])

    def _first(self) -> str:
        name, objective, count = self.search.name, self.search.objective, counted(len(self.search.trials), "trial")
        if not self.predicts:
            return (
                f"What mattered to {objective} in {name} cannot be said: from its {count} held-out trials are not "
                "predicted, so that the importances below are of noise."
            )
        if not self.real:
            return f"No hyperparameter of {name} moved {objective} beyond what chance makes of {count}."
        first = self.real[0]
        said = f"{first} mattered most to {objective}: {self.fanova[first].value:.0%} of what the hyperparameters do."
        rest = [key for key in self.fanova if key not in self.real]
        return said + (f" Within the noise: {', '.join(rest)}." if rest else "")

    def _together(self) -> Iterator[str]:
        if self.real_pairs:
            one, other = self.real_pairs[0]
            share = self.pairs[one, other].value
            yield f"{one} and {other} interact ({share:.0%} beyond what each does alone): search them together."
        elif self.pairs and self.real:
            yield (
                f"No interaction stands out from chance; {counted(len(self.search.trials), 'trial')} may be too few to "
                "show one, so go on searching together what matters."
            )

    def _table(self) -> list[str]:
        rows = [["hyperparameter", "fANOVA", "floor", "PED-ANOVA", "floor", "trials", ""]]
        for key, found in self.fanova.items():
            ped = self.ped[key]
            said = "" if key in self.real else "within the noise"
            numbers = (found.value, found.floor, ped.value, ped.floor)
            rows.append([key, *(f"{number:.3f}" for number in numbers), str(self.trials[key]), said])
        return _aligned(rows)

    def _pair_table(self) -> list[str]:
        rows = [["pair", "interaction", "floor", ""]]
        for (one, other), found in list(self.pairs.items())[:SHOWN_PAIRS]:
            said = "within the noise" if found.is_noise else ""
            rows.append([f"{one} × {other}", f"{found.value:.3f}", f"{found.floor:.3f}", said])
        return _aligned(rows)

    def _rule(self) -> Iterator[str]:
        yield "fANOVA     share of the variance over all values; PED-ANOVA: of what the best trials have in common"
        if min(self.trials.values()) < len(self.search.trials):
            yield "           a hyperparameter that only some trials have counts by the part of the trials that have it"
        yield "floor      chance exceeds any of these floors in 5 % of searches, and any of the pairs' in 5 %; from"
        yield f"           {SHUFFLES} shuffles of the values over the trials; of a pair, of the scores with the part of"
        yield "           each hyperparameter kept and the rest shuffled"
        yield f"forest     explains {max(0.0, self.explained):.0%} of the variance of trials that it has not seen"
        if self.seed_share is not None:
            yield f"seeds      {self.seed_share:.0%} of the variance is between the seeds, which nothing here explains"

    def _warnings(self) -> list[str]:
        count, knobs = len(self.search.trials), len(self.fanova)
        said = []
        if self.search.others:
            said.append(
                f"Of {self.search.name} {counted(count, 'trial')} finished; not looked at: {self.search.others}."
            )
        if count < TRIALS_PER_KNOB * knobs:
            said.append(
                f"{count} trials are few for {counted(knobs, 'hyperparameter')}: what is within the noise may "
                f"matter all the same. Plan about {TRIALS_PER_KNOB} for each, {TRIALS_PER_KNOB * knobs} in all."
            )
        return [*said, ""] if said else []

    def _override(self) -> str:
        keys = self.real or list(self.fanova)
        if not self.real:
            ranges, what = [self._range(key) for key in keys], "More trials may tell"
        else:
            best = self._best()
            added = {key: self._range(key).lstrip("'").startswith("+") for key in keys}
            ranges = [narrowed(f"{'+' * added[key]}{key}", best) or self._range(key) for key in keys]
            alone = " in what matters" if len(keys) < len(self.fanova) else ""
            what = f"Search finer{alone}, where the {len(best)} best trials are"
        return f"{what}:\n  {training()} -m {' '.join([*self.search.fixed, *ranges])}"

    def _range(self, key: str) -> str:
        return self.search.ranges.get(key, f"{key}=<values>")

    def _best(self) -> list[FrozenTrial]:
        sign = -1 if self.search.maximize else 1
        ranked = sorted(self.search.trials, key=lambda trial: sign * (trial.value or 0.0))
        return ranked[: max(LEAST_BEST, len(ranked) // BEST_OF)]

    def values(self) -> dict[str, Any]:
        knobs = {
            key: {
                **{"fanova": found.value, "fanova_floor": found.floor, "ped_anova": self.ped[key].value},
                **{"ped_anova_floor": self.ped[key].floor, "trials": self.trials[key]},
                "is_noise": key not in self.real,
            }
            for key, found in self.fanova.items()
        }
        pairs = {
            f"{one} × {other}": {"interaction": m.value, "floor": m.floor, "is_noise": m.is_noise}
            for (one, other), m in self.pairs.items()
        }
        return {
            **{"search": self.search.name, "objective": self.search.objective, "trials": len(self.search.trials)},
            **{"knobs": knobs, "pairs": pairs, "forest_r2": self.explained, "seed_share": self.seed_share},
        }

    def rows(self) -> list[dict[str, Any]]:
        one = [
            {
                **{"knob": key, "with": "", "fanova": m.value, "fanova_floor": m.floor},
                **{"ped_anova": self.ped[key].value, "ped_anova_floor": self.ped[key].floor},
                "trials": self.trials[key],
            }
            for key, m in self.fanova.items()
        ]
        two = [{"knob": i, "with": j, "fanova": m.value, "fanova_floor": m.floor} for (i, j), m in self.pairs.items()]
        return [*one, *two]

    def figure(self) -> Figure:
        from tunelab.analysis.importance_figure import draw

        return draw(self.search.objective, self.real, self.fanova, self.ped, self.pairs, self.surfaces)

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        for key in self.fanova:
            yield f"fanova/{key}", 0, self.fanova[key].value
            yield f"ped_anova/{key}", 0, self.ped[key].value


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
