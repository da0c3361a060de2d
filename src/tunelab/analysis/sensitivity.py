"""Which knob matters: the effect of each beside the noise of the seeds, from runs that changed one knob at a time."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunelab.analysis.effects import Effect, Place, effect
from tunelab.errors import counted
from tunelab.instrument import Answer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Sensitivity(Answer):
    """Which knob of a recipe matters.

    Args:
        objective: The metric.
        effects: Of each knob of which one can be stated: those outside the noise first, the largest effect first.
        unknown: A sentence for each of the others.
        seeds: How many each value had.
        failures: A line for each cause of failure, with how often.
        recipe: The command that trains the recipe.
        least: By how much the metric can differ at the least; 0 if that is not known.
    """

    objective: str
    effects: Sequence[Effect]
    unknown: Sequence[str]
    seeds: int
    failures: Sequence[str]
    recipe: str
    least: float = 0.0

    def said(self) -> str:
        lines = [self._first(), ""]
        if self.effects:
            lines += [*self._table(), "", *self._rule(), ""]
        if self.unknown:
            lines += [*self.unknown, ""]
        if self.failures:
            lines += [*self.failures, ""]
        return "\n".join([*lines, self._override()])

    def _first(self) -> str:
        real = [each for each in self.effects if not each.is_noise]
        if not self.effects:
            return f"No effect of a hyperparameter on {self.objective} can be stated."
        if not real:
            return f"No hyperparameter moves {self.objective} by more than the noise of {self.seeds} seeds."
        first = real[0]
        said = f"{first.key} matters most: {self.objective} {_reached(first.best)}, {_reached(first.worst)}."
        count = f"{len(real)} of {counted(len(self.effects), 'hyperparameter')} {'is' if len(real) == 1 else 'are'}"
        return f"{said}\n{count} outside the noise of {self.seeds} seeds."

    def _table(self) -> list[str]:
        rows = [["hyperparameter", "effect", "noise floor", "sd", "best", "worst", "values", "what it says"]]
        rows += [
            [
                *(each.key, f"{each.size:.3g}", _floor(each.floor), f"{each.noise:.2g}"),
                *((each.best.shown, each.worst.shown) if each.size else ("", "")),
                *(each.range, each.said()),
            ]
            for each in self.effects
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]

    def _rule(self) -> list[str]:
        shared = f", shared among {len(self.effects)} hyperparameters" if len(self.effects) > 1 else ""
        blocked = sum(each.is_blocked for each in self.effects)
        where = (
            "" if blocked == len(self.effects) else f", where all had the same seeds ({blocked} of {len(self.effects)})"
        )
        alike = f", less what a seed does to all values alike{where}" if blocked else ""
        return [
            f"effect       best mean - worst mean of {self.objective} over these values, the recipe's own among them",
            f"noise floor  the seeds alone make a larger difference in 5 % of cases{shared} (studentized range)",
            *([f"             and one example makes {self.least:.2g}, which is the least"] if self.least else []),
            f"sd           standard deviation over the seeds{alike}",
        ]

    def _override(self) -> str:
        better = {each.key: each.better for each in self.effects if each.better}
        if not better:
            without = [each.key for each in self.effects if each.own is None]
            if without:
                return f"No run of the recipe itself has finished, so nothing is said to be better: {self.recipe}"
            finer = f"; seeds={2 * self.seeds} would see finer" if any(each.is_noise for each in self.effects) else ""
            return f"Keep the recipe: nothing is better than it beyond the noise{finer}.\n  {self.recipe}"
        typed = shlex.join(place.override for place in better.values())
        alone = "" if len(better) == 1 else " Each was measured alone; together they may do otherwise."
        kept = [word for word in shlex.split(self.recipe) if word.partition("=")[0].lstrip("+") not in better]
        return f"Better than the recipe beyond the noise.{alone} Type:\n  {shlex.join(kept)} {typed}"

    def values(self) -> dict[str, Any]:
        effects = [
            {
                **{"knob": e.key, "effect": e.size, "noise_floor": e.floor, "is_noise": e.is_noise, "p": e.p},
                **{"seed_deviation": e.noise, "standard_error": e.error, "best": e.best.value, "worst": e.worst.value},
                **{"values": [place.value for place in e.places], "says": e.said()},
                "override": e.better.override if e.better else None,
            }
            for e in self.effects
        ]
        return {"objective": self.objective, "seeds": self.seeds, "effects": effects, "unknown": list(self.unknown)}

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                **{"knob": each.key, "value": place.shown, "is_own": place.is_own},
                "mean": place.mean if place.scores else None,
                "deviation": place.deviation if len(place.scores) > 1 else None,
                **{"seeds": len(place.scores), "failed": place.failed, "scores": " ".join(map(repr, place.scores))},
            }
            for each in self.effects
            for place in (*each.places, *each.lost)
        ]

    def figure(self) -> Figure:
        from tunelab.analysis.sensitivity_figure import draw

        return draw(self.objective, self.effects)

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        for each in self.effects:
            yield f"effect/{each.key}", 0, each.size
            if math.isfinite(each.floor):
                yield f"noise_floor/{each.key}", 0, each.floor
            yield from ((f"mean/{each.key}", step, place.mean) for step, place in enumerate(each.places))


def _reached(place: Place) -> str:
    failed = f" ({place.part_failed})" if place.part_failed else ""
    return f"{place.mean:.4g} with {place.override}{failed}"


def _floor(floor: float) -> str:
    return f"{floor:.3g}" if math.isfinite(floor) else "unknown"


def sensitivity(
    knobs: Mapping[str, Sequence[Place]],
    objective: str,
    seeds: int,
    *,
    maximize: bool,
    failures: Sequence[str] = (),
    recipe: str = "python train.py",
    least: float = 0.0,
) -> Sensitivity:
    """Ranks knobs by what they do to a metric.

    Args:
        knobs: The values of each, with their scores.
        objective: The metric.
        seeds: How many each value had.
        maximize: Whether a higher score is better.
        failures: A line for each cause of failure.
        recipe: The command that trains the recipe.
        least: By how much a score can differ at the least, such as by one example; 0 if that is not known.
    """
    found = [effect(key, places, len(knobs), maximize=maximize, least=least) for key, places in knobs.items()]
    effects = sorted((each for each in found if isinstance(each, Effect)), key=lambda e: (e.is_noise, -e.size))
    unknown = [each for each in found if isinstance(each, str)]
    return Sensitivity(objective, effects, unknown, seeds, failures, recipe, least)
