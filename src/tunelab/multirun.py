"""What can be said of a `-m` before its first trial: what is misplaced, unknown or out of range. No torch or Optuna."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from tunelab import catalogue
from tunelab.config import OF_A_SEARCH, recipe_of, resolved
from tunelab.errors import ConfigError
from tunelab.overrides import CommandLineError
from tunelab.ranges import range_mistakes
from tunelab.schema import Search

OURS = "hydra_plugins.tunelab_sweeper.TunelabSweeper"


def refuse_sweeps(overrides: list[Override], tool: str | None, lists: Collection[str]) -> None:
    """Refuses several values of a key in a single run.

    Args:
        overrides: The parsed command line.
        tool: That it is for, which is asked of one recipe; None for training.
        lists: The keys of the tool that take several values or options.

    Raises:
        CommandLineError: With a sentence for each, which says what brackets do where a group takes several.
    """
    mistakes = []
    for override in (o for o in overrides if o.is_sweep_override()):
        if tool is not None:
            several = f"{override.key_or_group}s"
            values = ",".join(catalogue.chosen(override)) if override.is_discrete_sweep() else ""
            remedy = f" Try '{several}=[{values}]'." if several in lists and values else " Ask of each by itself."
            mistakes.append(f"`{override.input_line}` must have one value: {tool} is asked of one recipe.{remedy}")
            continue
        remedy = "add -m for a run of each" if override.is_discrete_sweep() else "add -m to search in it"
        if catalogue.takes_several(override):
            together = f"{override.key_or_group}=[{','.join(dict.fromkeys(catalogue.chosen(override)))}]"
            remedy = f"type '{together}', in quotes, for all of them in one run, or {remedy}"
        mistakes.append(f"`{override.input_line}` must have one value, or be searched: {remedy}.")
    if mistakes:
        raise CommandLineError(*mistakes)


def refuse_misplaced(overrides: list[Override], multirun: bool) -> None:
    """Refuses what says how a -m searches where there is none, and a search over it.

    Raises:
        CommandLineError: With a sentence for each.
    """
    if mistakes := [
        f"`{o.input_line}` must have one value, as it says how to search. Search with each in a command of its own."
        if multirun
        else f"`{o.input_line}` must come with -m, as it says how to search, and something to vary: -m lr=1e-3,1e-2."
        for o in overrides
        if of_search(o) and (o.is_sweep_override() or not multirun)
    ]:
        raise CommandLineError(*mistakes)


def of_search(override: Override) -> bool:
    """Whether an override says how to search."""
    return override.key_or_group.split(".")[0] in OF_A_SEARCH


def check(cfg: DictConfig, overrides: list[Override], loader: Any) -> None:
    """Refuses what no trial could be run with.

    Args:
        cfg: Composed of the overrides that are not swept, with the `hydra` node.
        overrides: The command line.
        loader: Hydra's config loader.

    Raises:
        CommandLineError: With a sentence for each unknown key, and each that says nothing to the chosen sweeper.
        ConfigError: With a sentence for each value, or bound of a range, that is not allowed.
    """
    known = catalogue.groups(loader)
    swept = [o for o in overrides if o.is_sweep_override()]
    varied = {o.key_or_group for o in swept if catalogue.is_group(o, known)}
    if nothing := [o for o in swept if o.key_or_group in varied and o.is_discrete_sweep() and None in _choices(o)]:
        raise ConfigError(*(_no_option(o, known) for o in nothing))
    # a key of a part that is itself swept is there in some trials only
    values = [o for o in swept if not catalogue.is_group(o, known) and o.key_or_group.split(".")[0] not in varied]
    unknown = [*catalogue.options_of_keys(overrides, known), *catalogue.unknown_keys(cfg, values, known, loader)]
    if unknown := [*unknown, *_said_to_another(cfg, overrides)]:
        raise CommandLineError(*unknown)
    recipe = recipe_of(cfg)
    mistakes = dict.fromkeys(range_mistakes(resolved(recipe)))
    of_a_search = {key: OmegaConf.to_container(cfg[key], resolve=True) for key in OF_A_SEARCH if key in cfg}
    mistakes |= dict.fromkeys(range_mistakes({key: {} for key in OF_A_SEARCH} | of_a_search, Search))
    for override in values:
        if isinstance(override.value(), Glob):
            key = override.key_or_group
            mistakes[f"`{key}` must be values, got the pattern {override.get_value_string()}. Write {key}=<a>,<b>."] = (
                None
            )
        else:
            mistakes |= dict.fromkeys(_out_of_range(recipe, override))
    if not swept and (how := cfg.hydra.runtime.choices.get("sweep")) not in (None, "auto", "grid"):
        mistakes[f"`sweep={how}` must have something to vary, got nothing. Add such as lr=1e-3,1e-2."] = None
    if mistakes:
        raise ConfigError(*mistakes)


def _said_to_another(cfg: DictConfig, overrides: list[Override]) -> Iterator[str]:
    """A sentence for each key of our search where another sweeper is chosen, which does not read it."""
    if cfg.hydra.sweeper.get("_target_") != OURS:
        chosen = f"hydra/sweeper={cfg.hydra.runtime.choices['hydra/sweeper']}"
        for override in (o for o in overrides if of_search(o)):
            yield f"`{override.input_line}` must go without {chosen}, which does not read it. Leave one of them out."


def _choices(override: Override) -> list[Any]:
    """The values of a sweep of choices."""
    values = override.value()
    return values.list if isinstance(values, ChoiceSweep) else list(override.sweep_iterator())


def _no_option(override: Override, known: Mapping[str, Collection[str]]) -> str:
    group = override.key_or_group
    without = f"Write {group}=none for a trial without it, or leave" if "none" in known[group] else "Leave"
    return f"`{group}` must be an option of {group} in each trial, got null. {without} null out."


def _out_of_range(recipe: DictConfig, override: Override) -> Iterator[str]:
    """A sentence for each choice, or bound of a range, that its key may not have."""
    key, values = override.key_or_group, override.value()
    if isinstance(values, IntervalSweep):
        bounds = [bound for bound in (values.start, values.end) if bound is not None]
        found = [said for bound in bounds for said in _mistakes(recipe, key, bound)]
        if any(" must be a whole number" in said for said in found):  # what an interval holds are not
            found = [said for bound in bounds for said in _mistakes(recipe, key, round(bound))]
            typed = override.get_value_string()
            yield from found or [f"`{key}` must be a whole number, got {typed}. Write '{key}=int({typed})'."]
            return
        yield from (_with_interval(said, override, bounds, len(found)) for said in found)
        return
    choices = _choices(override)
    if not isinstance(values, ChoiceSweep):
        choices = [choices[0], choices[-1]] if choices else []  # a range is out of range at one of its ends
    for choice in choices:
        yield from _mistakes(recipe, key, getattr(choice, "text", choice))  # of a quoted string


def _with_interval(said: str, override: Override, bounds: list[float], wrong: int) -> str:
    """The sentence for a bound, with an interval as its remedy where it has a value."""
    found = re.fullmatch(r"(.*, got (\S+)\.) Try \S+=(\S+)\.", said)
    try:
        low, high = (found[3] if found and float(found[2]) == bound else f"{bound:g}" for bound in bounds)
        if found is None or wrong > 1 or float(low) >= float(high):
            return said.partition(" Try ")[0]
    except ValueError:
        return said
    typed = re.sub(r"interval\(.*?\)", f"interval({low},{high})", override.get_value_string())
    return f"{found[1]} Try '{override.key_or_group}={typed}'."


def _mistakes(recipe: DictConfig, key: str, value: Any) -> Iterator[str]:
    """What is wrong with a recipe that has this value."""
    trial = recipe.copy()
    OmegaConf.update(trial, key, value, force_add=True)
    yield from range_mistakes(resolved(trial))
