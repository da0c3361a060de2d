"""Which knob matters, beside the noise of the seeds: lr=1e-4,1e-3 (key=value is the recipe's); or study=<folder>"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import Field

from tunelab import catalogue, instrument, multirun
from tunelab.composing import compose, found_by_hydra, loader, meant
from tunelab.config import check as check_recipe
from tunelab.config import plain, recipe_of, resolved
from tunelab.errors import ConfigError
from tunelab.overrides import CommandLineError, quoted
from tunelab.ranges import range_mistakes
from tunelab.reading import Reading

SAMPLER = "tunelab.sweep.probes.Probes"

OF_A_SEARCH = ("sweep.n_jobs", "sweep.timeout", "sweep.trial_timeout", "sweep.storage")
"""The keys of a search that may be given; the others say what is tried, which the knobs, seeds and points do here."""

NAME = "sensitivity"


class Numbers(instrument.Numbers):
    """The keys of conf/sensitivity.yaml beside those of the recipe."""

    seeds: Annotated[int, Field(ge=2, le=1000, examples=[3])]
    points: Annotated[int, Field(ge=2, le=1000, examples=[5])]
    study: str | None = Field(examples=["outputs/sweeps/<name>"])


def check(cfg: DictConfig, user_keys: Iterable[str]) -> None:
    instrument.check(cfg, user_keys, Numbers)
    if cfg.study is not None:
        from tunelab.sweep.finished import finished

        finished(Path(cfg.study))


def measure(cfg: DictConfig) -> instrument.Answer:
    """What mattered in a finished search."""
    from tunelab.analysis.importance import importance
    from tunelab.sweep.finished import finished

    return importance(finished(Path(cfg.study)))


def as_search(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """What is typed behind `train.py -m` for the search that measures it; to be asked while Hydra is there.

    Args:
        arguments: What was typed behind the tool's name.

    Returns:
        Whether it takes a search, and its overrides; if a finished one is asked about, those of the tool.

    Raises:
        CommandLineError: With a sentence for each thing that does not belong here.
        ConfigError: With a sentence for each value that is not allowed.
    """
    try:
        typed = catalogue.parse(list(arguments))
    except ConfigError as error:
        raise CommandLineError(*error.mistakes) from None
    typed = meant(NAME, typed)
    misplaced = list(_misplaced(typed))
    if study := next((o.value() for o in typed if o.key_or_group == "study"), None):
        misplaced += [
            f"`{o.input_line}` must be left out: what study= names has been searched already."
            for o in typed
            if o.is_sweep_override() or o.key_or_group in ("seeds", "points")
        ]
        if misplaced:
            raise CommandLineError(*misplaced)
        is_named = any(override.key_or_group == "name" for override in typed)
        return False, [*arguments, *([] if is_named else [f"name={quoted(Path(str(study)).resolve().name)}"])]
    if misplaced:
        raise CommandLineError(*misplaced)
    fixed = [o for o in typed if not o.is_sweep_override()]
    known = catalogue.groups(loader())
    if any(sentence for o in fixed for sentence in catalogue.unknown_options(o, known)):
        raise CommandLineError(*catalogue.mistakes(loader(), NAME, fixed))
    cfg = compose(NAME, [str(o.input_line) for o in fixed], fixed)
    numbers = {key: plain(cfg, resolve=False)[key] for key in Numbers.model_fields}
    if mistakes := list(range_mistakes(numbers, of=Numbers)):
        raise ConfigError(*mistakes)
    recipe = recipe_of(cfg)
    if mistakes := list(range_mistakes({"seed": recipe.seed}, of=Seed)):
        raise ConfigError(*mistakes)
    knobs = [str(o.input_line) for o in typed if o.is_sweep_override()]
    own = {*Numbers.model_fields, "seed"}
    return True, [
        *(str(o.input_line) for o in fixed if o.key_or_group not in own),
        *(knobs or declared(cfg)),
        f"seed={','.join(str(recipe.seed + number) for number in range(cfg.seeds))}",
        f"sweep.sampler={{_target_:{SAMPLER},points:{cfg.points}}}",
    ]


class Seed(instrument.Numbers):
    """The recipe's, on which the seeds count."""

    seed: Annotated[int, Field(ge=0, lt=2**31, examples=[0])]


def _misplaced(typed: Sequence[Override]) -> Iterator[str]:
    for override in typed:
        key, line = override.key_or_group, override.input_line
        if multirun.of_search(override) and key not in OF_A_SEARCH:
            yield f"`{line}` must be left out: one knob at a time is tried, each value with every seed."
        elif key.split("/")[0] == "hydra" and "/" in key:
            yield f"`{line}` must be left out: the runs are tunelab's own search."
        elif override.is_sweep_override() and key == "seed":
            yield f"`seed` must have one value, got {override.get_value_string()}. Write seeds=<how many>."
        elif override.is_sweep_override() and key == "fold":
            yield f"`fold` must have one value, got {override.get_value_string()}: the noise is that of the seeds."
        elif override.is_sweep_override() and (key in Numbers.model_fields or multirun.of_search(override)):
            yield f"`{key}` must have one value, got {override.get_value_string()}. Write {key}=<one of them>."


def declared(cfg: DictConfig) -> list[str]:
    """The knobs that conf/sensitivity.yaml declares, as far as the recipe uses them and allows their values.

    Args:
        cfg: Composed of it.

    Raises:
        ConfigError: If that leaves none.
    """
    recipe = recipe_of(cfg)
    with open_dict(recipe):
        for key in Numbers.model_fields:
            recipe.pop(key)
        recipe.name = NAME  # which asks Hydra what is chosen
    reading, found = Reading(plain(recipe, resolve=False)), []
    for key, said in plain(cfg.sweep.ranges, resolve=True).items():
        own = OmegaConf.select(recipe, key, throw_on_resolution_failure=False)
        if own is None or not reading.reads(key):
            continue
        values = [value for value in _values(said, own) if _is_allowed(recipe, key, value)]
        if len(values) > 1:
            found.append(f"{key}={','.join(map(str, values))}")
    if not found:
        raise ConfigError("`sensitivity` must have a knob to vary, got none. Write lr=1e-4,1e-3,1e-2.")
    return found


def _values(said: dict[str, list[Any]], own: Any) -> list[Any]:
    if "values" in said:
        return said["values"]
    if isinstance(own, bool) or not isinstance(own, (int, float)):
        return []  # batch_size=full
    scaled = [own * factor for factor in said["times"]]
    whole = isinstance(own, int)
    return list(dict.fromkeys(max(1, math.floor(v + 0.5)) if whole else float(f"{v:.6g}") for v in scaled))


def _is_allowed(recipe: DictConfig, key: str, value: Any) -> bool:
    """Whether the recipe may have a value, as far as its rules say."""
    changed = recipe.copy()
    OmegaConf.update(changed, key, OmegaConf.create(value) if str(value).startswith("[") else value)
    try:
        check_recipe(plain(changed, resolve=False), resolved(changed), [key])
    except ConfigError:
        return False
    return True


def ask(*overrides: str, config_path: str | Path | None = None) -> instrument.Answer | None:
    """What the command finds by a search, for Python; None if it is asked of a finished one, which needs no runs.

    Args:
        *overrides: As they would be typed.
        config_path: A config folder of the user's own.

    Raises:
        ConfigError: If they are refused.
        RunFailed: If no run has finished.
    """
    with found_by_hydra(NAME, config_path):
        takes_search, searched = as_search(overrides)
    if not takes_search:
        return None
    from tunelab.sweep.plan import make_folder, plan
    from tunelab.sweep.search import Search
    from tunelab.sweep.signals import Told

    with found_by_hydra("train", config_path):
        typed = catalogue.parse(searched)
        fixed = [str(o.input_line) for o in typed if not o.is_sweep_override()]
        cfg = compose("train", fixed, typed)
        HydraConfig.instance().set_config(cfg)
        multirun.check(cfg, typed, loader())
        HydraConfig.instance().cfg = None
        master = loader().load_configuration("train", searched, RunMode.MULTIRUN)
        planned = plan(list(master.hydra.overrides.task), master, loader())
        make_folder(planned.folder)
        with _signals_as_before(), Told() as told:
            search = Search(planned, f"tunelab.sensitivity({', '.join(map(repr, overrides))})", told)
            search.run()
    return search.answer


@contextmanager
def _signals_as_before() -> Iterator[None]:
    """Lets a process that goes on hear signals as it did."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
