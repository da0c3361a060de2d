"""Which init lets signal and gradients through a model, and which trains best in the first epochs."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from omegaconf import DictConfig

from tunelab.errors import counted
from tunelab.instrument import Answer, progress, train_command
from tunelab.tuning import inits_figure
from tunelab.tuning.init_fits import Combination, measure
from tunelab.tuning.signal import LOST, loses, lost_from, per_layer, state

log = logging.getLogger("tunelab")

VERBS = {"fades": "fade", "grows": "grow", "vanishes": "vanish", "explodes": "explode"}
"""Of what becomes of several."""

WHAT = "Variances of what the first → last hidden layer puts out, before its activation, and of the gradient there."

MEANING = (
    "Vanished or exploded is 10,000 times off in variance: one lr cannot suit layers whose signal differs so much."
)

Setting = tuple[str, int]
"""An activation and a depth."""


def noise(differences: Sequence[float]) -> float:
    """How far from zero the mean of paired differences must be to count: its 95 % interval; Inf of a single one."""
    count = len(differences)
    if count < 2 or not all(map(math.isfinite, differences)):
        return math.inf
    from scipy.stats import t

    return float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)


@dataclass(frozen=True, repr=False)
class Comparison(Answer):
    """Combinations of inits, activations and depths side by side.

    Args:
        combinations: In the order in which they were asked for.
        own: The recipe's own init, activation and depth.
        overrides: What was typed.
        keys: The tool's own keys.
    """

    combinations: Sequence[Combination]
    own: tuple[str, str, int]
    overrides: Sequence[str]
    keys: Sequence[str]

    @property
    def seeds(self) -> int:
        """How many each was measured with."""
        return len(self.combinations[0].losses)

    @property
    def settings(self) -> dict[Setting, list[Combination]]:
        """The inits of each activation and depth, the lowest loss first; behind them those whose units are alike."""
        found: dict[Setting, list[Combination]] = {}
        for each in self.combinations:
            found.setdefault((each.activation, each.depth), []).append(each)
        return {setting: sorted(inits, key=_rank) for setting, inits in found.items()}

    def tied(self, inits: Sequence[Combination]) -> list[Combination]:
        """Those whose loss is not above the lowest by more than the seeds' noise; of a single seed the lowest alone."""
        best, *others = inits
        if not math.isfinite(best.mean):
            return list(inits)
        same = [best]
        for other in others:
            if other.alike and not best.alike:
                continue
            differences = [b - a for a, b in zip(best.last, other.last, strict=True)]
            if self.seeds > 1 and math.isfinite(other.mean) and statistics.fmean(differences) <= noise(differences):
                same.append(other)
        return same

    def chosen(self, found: Sequence[Combination]) -> Combination:
        """Of those with the lowest loss, what is nearest to the recipe's own, unless the signal gets through others.

        Args:
            found: Of one setting or of several, in the order of `settings`.
        """
        same = self.tied(found)
        least = min(each.severity for each in same)
        sound = [each for each in same if each.severity <= max(1, least)]
        init, *setting = self.own
        return min(sound, key=lambda each: ([each.activation, each.depth] != setting, each.init != init))

    def best(self) -> Combination | None:
        """What to type: the best init of each setting, compared as inits are; None if everything diverges.

        With one seed, which tells nothing from chance, the recipe's own setting stays.
        """
        of_each = [self.chosen(inits) for inits in self.settings.values()]
        found = sorted((each for each in of_each if math.isfinite(each.mean)), key=_rank)
        if self.seeds == 1 and (own := [x for x in found if (x.activation, x.depth) == self.own[1:] and not x.alike]):
            return own[0]
        return self.chosen(found) if found else None

    def said(self) -> str:
        several = len(self.settings) > 1
        lines = []
        for (activation, depth), inits in self.settings.items():
            where = f"{activation}, depth {depth}: " if several else ""
            lines.append(f"{where}{self._verdict(inits)}")
        lines += ["", *self._table(), WHAT]
        wrong = [(each, trouble(each)) for inits in self.settings.values() for each in inits]
        told = [
            f"{each.init}{f', {each.activation}, depth {each.depth}' * several}: {said}."
            for each, said in wrong
            if said
        ]
        lines += ["", *told] if told else []
        lines += [MEANING] if any(word in said for _, said in wrong for word in ("vanish", "explode")) else []
        if (best := self.best()) is None:
            return "\n".join(lines)
        if several:
            lines += ["", self._across(best)]
        found = {"init": best.init, "activation": best.activation, "size.depth": str(best.depth)}
        before = dict(zip(found, map(str, self.own), strict=True))
        changes = {key: value for key, value in found.items() if value != before[key]}
        return "\n".join([*lines, "", train_command(self.overrides, changes, (*self.keys, "epochs"))])

    def _across(self, best: Combination) -> str:
        """Which setting the command has, and why, in a sentence."""
        lowest = min((self.chosen(inits) for inits in self.settings.values()), key=_rank)
        setting = f"{best.activation}, depth {best.depth}"
        if self.seeds == 1:
            return f"The command has {setting}: with one seed nobody knows what is chance."
        if best is lowest:
            return f"The command has {setting}, whose loss is the lowest."
        own = ", the recipe's own" if (best.activation, best.depth) == self.own[1:] else ""
        return f"The command has {setting}{own}: none has a loss lower by more than the seeds' noise."

    def _verdict(self, inits: Sequence[Combination]) -> str:
        """Which init trains best, in a sentence."""
        best, same, epochs = self.chosen(inits), self.tied(inits), counted(len(inits[0].losses[0]), "epoch")
        own = next((each for each in inits if each.init == self.own[0]), None)
        if not math.isfinite(inits[0].mean):
            return f"every init diverges within {epochs}: try a smaller lr."
        loss = (
            f"train loss {best.mean:.3g}{f' (sd {best.spread:.2g} of seeds)' if self.seeds > 1 else ''} after {epochs}"
        )
        if len(inits) == 1:
            return f"{best.init} has {loss}."
        if self.seeds == 1:
            return f"{best.init} trains best: {loss}, but with one seed nobody knows what is chance. Try seeds=3."
        others = [each.init for each in same if each is not best]
        if best is own:
            equal = (
                f"; {listed(others)} differ{'s' * (len(others) == 1)} by less than the seeds' noise" if others else ""
            )
            return f"no init trains better than {best.init}, the recipe's own: {loss}{equal}."
        if best is not inits[0]:
            lower = f"{inits[0].init}, whose {inits[0].mean:.3g} is lower by less than the seeds' noise"
            return f"{best.init} lets more of the signal through than {lower}: {loss}."
        than = f", where {own.init} {f'has {own.mean:.3g}' if math.isfinite(own.mean) else 'diverges'}" if own else ""
        equal = f"; within the seeds' noise: {listed(others)}" if others else ""
        return f"{best.init} trains best: {loss}{than}{equal}."

    def _table(self) -> Iterator[str]:
        head = ["init", "activation", "depth", "activations", "a layer", "gradients", "a layer", "train loss", "signal"]
        lines = [head]
        for inits in self.settings.values():
            for each in inits:
                forward, back = list(each.activations.values()), list(each.gradients.values())
                loss = f"{each.mean:.3g}" if math.isfinite(each.mean) else "diverges"
                line = [each.init, each.activation, str(each.depth)]
                line += [f"{forward[0]:.2g} → {forward[-1]:.2g}", _times(per_layer(forward))]
                line += [f"{back[0]:.2g} ← {back[-1]:.2g}", _times(per_layer(back[::-1]))]
                loss += f" (sd {each.spread:.2g})" if self.seeds > 1 and math.isfinite(each.mean) else ""
                lines.append([*line, loss, _word(each)])
        settled = [len({line[column] for line in lines[1:]}) == 1 for column in range(3)]  # said before, or one alone
        shown = [c for c in range(len(head)) if c not in (1, 2) or not settled[c]]
        wide = [max(len(line[column]) for line in lines) for column in range(len(head))]
        yield from ("  ".join(f"{line[c]:{wide[c]}}" for c in shown).rstrip() for line in lines)

    def values(self) -> dict[str, Any]:
        return {
            each.name: {
                "activation_variance": each.activations,
                "gradient_variance": each.gradients,
                "activations": each.states[0],
                "gradients": each.states[1],
                "units_alike": each.alike,
                "losses": [list(own) for own in each.losses],
            }
            for each in self.combinations
        }

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                **{"init": each.init, "activation": each.activation, "depth": each.depth},
                **{
                    "seed": each.first_seed + number,
                    "layer": path,
                    "activation_variance": layer.activation,
                    "gradient_variance": layer.gradient,
                },
                **{"units": layer.units, "distinct_units": layer.distinct, "train_loss": each.last[number]},
            }
            for each in self.combinations
            for number, own in enumerate(each.layers)
            for path, layer in own.items()
        ]

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        for each in self.combinations:
            for what, of_layers in (("activation", each.activations), ("gradient", each.gradients)):
                for number, value in enumerate(of_layers.values(), 1):
                    yield f"{what}_variance/{each.name}", number, value
            for epoch, losses in enumerate(zip(*each.losses, strict=False), 1):
                yield f"train_loss/{each.name}", epoch, statistics.fmean(losses)

    def histograms(self) -> Iterator[tuple[str, int, Any]]:
        for each in self.combinations:
            for number, layer in enumerate(each.layers[0].values(), 1):
                yield f"weights/{each.name}", number, layer.weights.numpy()

    def figure(self) -> Figure:
        return inits_figure.draw(self.combinations)


def _rank(found: Combination) -> tuple[bool, float]:
    return bool(found.alike), found.mean


def trouble(found: Combination) -> str:
    """What is wrong with the signal of a combination, with the layers where it is; empty if nothing is."""
    if alike := found.alike:
        units = f"all {next(iter(alike.values()))} units" if len(set(alike.values())) == 1 else "all units"
        return f"{units} of {span(list(alike))} stay alike: each layer learns no more than one unit could"
    parts = []
    for what, of_layers in (("activations", found.activations), ("gradients", dict([*found.gradients.items()][::-1]))):
        values = list(of_layers.values())
        factor, lost = per_layer(values), list(of_layers)[lost_from(values) :]
        rate = f", {_times(factor)} a layer" if factor else ""
        word = state(values)
        if word in ("vanishes", "explodes"):
            parts.append(f"{what} {VERBS[word]} in {span(lost)}{rate}")
        elif factor and word != "kept" and loses(values):
            layers = math.ceil(abs(math.log(LOST) / math.log(factor)))
            parts.append(f"{what} would {'vanish' if factor < 1 else 'explode'} within {layers} layers{rate}")
    return "; ".join(parts)


def span(paths: Sequence[str]) -> str:
    """Layers in words: a few by name, many by the first and the last."""
    return listed(paths) if len(paths) <= 3 else f"the {len(paths)} layers {paths[0]} … {paths[-1]}"


def listed(words: Sequence[str]) -> str:
    """Words with `and` before the last."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _word(found: Combination) -> str:
    if found.alike:
        return "units alike"
    forward, back = found.states
    if forward == back:
        return forward
    told = [f"{what} {VERBS[word]}" for what, word in (("activations", forward), ("gradients", back)) if word in VERBS]
    return ", ".join(told)


def _times(factor: float | None) -> str:
    return "" if factor is None else f"x{factor:.2g}"


def compare(
    recipes: Sequence[tuple[str, str, DictConfig]],
    seeds: int,
    own: tuple[str, str, int],
    overrides: Sequence[str],
    keys: Sequence[str],
) -> Comparison:
    """Measures each recipe with each seed.

    Args:
        recipes: Each with the name of its init and of its activation.
        seeds: How many.
        own: The recipe's own init, activation and depth.
        overrides: What was typed.
        keys: The tool's own keys.

    Raises:
        ConfigError: If the data or the model does not allow it.
        SystemExit: With 130 or 143 if the process was told to end.
    """
    try:
        with progress(len(recipes) * seeds) as advance:
            found = [measure(recipe, init, activation, seeds, advance) for init, activation, recipe in recipes]
    except (KeyboardInterrupt, SystemExit):
        log.info("Interrupted: what was measured so far is not kept.")
        raise
    return Comparison(found, own, overrides, keys)
