"""What was typed, as Hydra takes it: paths quoted, `repeat=` and `resume=` replaced by what they stand for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from hydra.core.override_parser.types import Override

from tunelab import catalogue
from tunelab.errors import ConfigError, as_typed
from tunelab.folder import RunFolder
from tunelab.job import RESUME_MAY_CHANGE

PATH_KEYS = ("repeat", "resume", "run", "input", "output", "study", "hydra.run.dir")


class CommandLineError(ConfigError):
    """A mistake in the command line itself: an unknown option or key, or a syntax error. Exit code 2."""


def quote_path(argument: str) -> str:
    """Paths need no quotes of Hydra's own: `run=outputs/my run (2)/…` simply works, and so does a file of data."""
    key, equals, value = argument.partition("=")
    is_path = key in PATH_KEYS or (key.endswith("path") and Path(value).expanduser().exists())
    if not equals or not is_path or value == "null":
        return argument
    has_quotes = len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" and not Path(value).exists()
    return argument if has_quotes else f"{key}={quoted(Path(value).expanduser() if value.startswith('~') else value)}"


def refuse_dashes(arguments: list[str], unknown: list[str]) -> None:
    """Refuses `--lr 0.1` with how it is written.

    Args:
        arguments: What was typed.
        unknown: The options among it that are none of Hydra's.

    Raises:
        CommandLineError: With a sentence for each of them.
    """
    mistakes = []
    for option in unknown:
        key, equals, value = option.lstrip("-").partition("=")
        key = key.replace("-", "_")
        following = arguments[arguments.index(option) + 1 :][:1]
        if not equals and following and "=" not in following[0] and not following[0].startswith("--"):
            value = following[0]
        remedy = f"write {key}={shlex.quote(value) if value else '<value>'}"
        mistakes.append(f"`{option}` must be written without dashes: {remedy}. For the options there are type --help.")
    if mistakes:
        raise CommandLineError(*mistakes)


def refuse_blanks(arguments: list[str]) -> None:
    """Refuses `lr = 0.1`, which a shell makes several arguments of.

    Raises:
        CommandLineError: With the same in one word.
    """
    words, mistakes = list(arguments), []
    for position, word in enumerate(words):
        before, after = words[position - 1] if position else "", next(iter(words[position + 1 :]), "")
        apart = [word]
        if word.startswith("=") and before and "=" not in before:
            apart.insert(0, before)
        if word.endswith("=") and word.count("=") == 1 and after and "=" not in after:
            apart.append(after)
        if "=" in word and word.endswith(",") and after and "=" not in after:
            last = next((n for n in range(position + 1, len(words)) if not words[n].endswith(",")), len(words) - 1)
            together = [word, *words[position + 1 : last + 1]]
            if not any("=" in other for other in together[1:]):
                written = shlex.quote("".join(together))
                mistakes.append(f"`{' '.join(together)}` must be one word: write {written}, no blank after a comma.")
                continue
        if len(apart) > 1:
            mistakes.append(
                f"`{' '.join(apart)}` must be one word: write {shlex.quote(''.join(apart))} without blanks."
            )
    if mistakes:
        raise CommandLineError(*mistakes)


def quoted(value: str | Path) -> str:
    """A text in Hydra's quotes, where a backslash counts only before a quote."""
    text = re.sub(r'(\\*)"', r'\1\1\\"', str(value))
    return '"' + re.sub(r"(\\+)$", r"\1\1", text) + '"'


def recorded_overrides(
    overrides: list[Override], multirun: bool, meant: Callable[[list[Override]], list[Override]]
) -> list[str]:
    """What a `repeat=` or `resume=` stands for: the overrides of the run that it names.

    Args:
        overrides: The parsed command line.
        multirun: Whether it is a search.
        meant: Writes overrides to the keys that they set.
    """
    named = {o.key_or_group: o.value() for o in overrides if o.key_or_group in ("repeat", "resume")}
    given = {key: str(value) for key, value in named.items() if value is not None}
    for key, value in given.items():
        if not value or multirun:
            raise CommandLineError(
                f"`{key}` must name a run's folder, got {'it with -m' if multirun else 'nothing'}. Type {key}=<folder>."
            )
    others = [o for o in overrides if o.key_or_group not in given and not o.key_or_group.startswith("hydra.")]
    if "repeat" in given and "resume" not in given:
        run = RunFolder.find(given["repeat"], "repeat")
        refused = [str(o.input_line) for o in others if o.key_or_group != "name"]
        if any("overrides" in resume for resume in run.record.get("resumes", [])):
            raise ConfigError(
                f"`repeat` must name a run of one recipe, but {given['repeat']} was changed when it was resumed. "
                f"To begin anew with what it ended with, type: {run.command()}"
            )
        if refused:
            raise ConfigError(
                f"`repeat` must stand alone to be a repetition, got {' '.join(refused)} beside it. "
                f"For a changed run type: {run.command(*refused)}"
            )
        return [] if any(o.key_or_group == "name" for o in others) else [f"name={quoted(run.config.name)}"]
    if "resume" in given and "repeat" not in given:
        run = RunFolder.find(given["resume"], "resume")
        _refuse_trial(run, [str(o.input_line) for o in others])
        for override in others:
            if override.key_or_group.split(".")[0] not in RESUME_MAY_CHANGE:
                change = run.command(*(str(o.input_line) for o in others))
                raise ConfigError(
                    f"`resume` must keep the recipe but for {', '.join(RESUME_MAY_CHANGE)}, got {override.input_line}. "
                    f"For a new run type: {change}"
                )
        if others:
            recorded = meant(catalogue.parse(list(run.record["overrides"])))
            return [str(o.input_line) for o in recorded if _still_holds(o, recorded, others)]
        return [f"name={quoted(run.config.name)}"]
    return []


def _refuse_trial(run: RunFolder, changes: list[str]) -> None:
    """Refuses the folder of a trial, whose result is its study's too.

    Raises:
        ConfigError: With what to type instead.
    """
    path = run.path.resolve()
    if path.name.isdigit() and any((path.parent / name).exists() for name in ("study.journal", "study.json")):
        alone = run.command(f"threads={run.config.threads or 1}", *changes)
        raise ConfigError(
            f"`resume` must not change a study, got {as_typed(path)}, which is trial {path.name} of a search. "
            f"For a run of its own type: {alone}\nTo go on with the search type: {run.record['command']}"
        )


def _still_holds(override: Override, recorded: list[Override], typed: list[Override]) -> bool:
    """Whether an override of a run is still one of it when these are typed on a resume."""
    key = override.key_or_group
    same = [o for o in typed if o.key_or_group == key]
    if same:  # an added key must be there for its value to be changed
        return (override.is_add() or override.is_force_add()) and not any(o.is_add() or o.is_force_add() for o in same)
    group, _, rest = key.partition(".")
    anew = [o for o in typed if o.key_or_group == group and catalogue.takes_several(o)]
    member = rest.split(".")[0]
    added = any(o.key_or_group == f"{group}.{member}._target_" for o in recorded)  # not by its name in the list
    return not rest or not anew or added or member in catalogue.chosen(anew[-1])
