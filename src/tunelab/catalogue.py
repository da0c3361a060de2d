"""The catalogue of groups and options, and why a command line does not compose."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import GroupDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from yaml import MarkedYAMLError, YAMLError

from tunelab.config import MEMBER_GROUPS, plain
from tunelab.errors import ConfigError, closest, did_you_mean
from tunelab.hints import ALSO_CALLED, CHOSEN_BY, OPTIONS_ALSO_CALLED, remedy


def groups(loader: ConfigLoader, parent: str = "") -> dict[str, list[str]]:
    """Every config group with its options, nested groups as `parent/child`.

    Args:
        loader: Hydra's config loader, which knows the search path.
        parent: Where to begin; empty for all.
    """
    found: dict[str, list[str]] = {}
    for name in loader.list_groups(parent):
        group = f"{parent}/{name}" if parent else name
        if options := loader.get_group_options(group, ObjectType.CONFIG):
            found[group] = sorted(options)
        found |= groups(loader, group)
    return found


def parse(arguments: list[str]) -> list[Override]:
    """The overrides of a command line.

    Raises:
        ConfigError: With a sentence for each argument that is not an override.
    """
    parser = OverridesParser.create()
    parsed, mistakes = [], []
    for argument in arguments:
        try:
            parsed.append(parser.parse_override(argument))
        except HydraException:
            mistakes.append(f"`{argument}` must be an override of the form key=value. {remedy(argument)}")
    if mistakes:
        raise ConfigError(*mistakes)
    return parsed


def file_mistake(error: Exception, loader: Any, typed: list[Override]) -> str:
    """The sentence for a config file that does not compose, which names the file.

    Args:
        error: What Hydra or the YAML parser said.
        loader: Hydra's config loader.
        typed: The command line.
    """
    known, text = groups(loader), str(error).strip()
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        place = f"`{error.problem_mark.name}` must be YAML, got in line {error.problem_mark.line + 1}"
        return f"{place}: {error.problem}. Look for a bracket, quote or tab in that line or the one before it."
    if found := re.search(r"In '?([\w/.-]+?)'?: Unsupported keyword '(.*)' in defaults list", text):
        near = did_you_mean(found[2], ["override", "optional"]) or " Write override, or leave it out."
        return f"`{found[1]}.yaml` must have override or optional before a group in its defaults, got {found[2]}.{near}"
    if found := re.search(r"In '([\w/.-]+)': Could not find '([\w/]+)/([^/']+)'", text):
        options = known.get(found[2], [])
        chosen_files = [f"{o.key_or_group}/{name}" for o in typed if is_group(o, known) for name in chosen(o)]
        # Hydra names the file whose line is overridden, not the one that overrides it
        overriding = (f for f in chosen_files if _overrides(loader, f, found[2], found[3]))
        file = next(overriding, found[1])
        near = did_you_mean(found[3], options)
        rule = f"name an option of {found[2]} in its defaults ({', '.join(options)})"
        return f"`{file}.yaml` must {rule}, got {found[3]}.{near or ' Choose one of them.'}"
    if found := re.search(r"In '([\w/.-]+)': Invalid Defaults List override '/?([\w/]+): ", text):
        group = found[2]
        near = f" Did you mean /{group}?" if group in known else did_you_mean(group, known)
        remedy = near or " A group that the recipe has no line for is added without override."
        return f"`{found[1]}.yaml` must override a group that the recipe has a line for, got {group}.{remedy}"
    if found := re.search(r"Conflicting choices: '(.*)' from '([\w/.-]+)' and '.*' from '.*'", text):
        line = re.search(r"use '(override) ([\w/]+): (.*)'", text)
        instead = f"override /{line[2]}: {line[3]}" if line else "override /<group>: <option>"
        return f"`{found[2]}.yaml` must override what the recipe has chosen already, got {found[1]}. Write {instead}."
    return text


def _overrides(loader: Any, file: str, group: str, option: str) -> bool:
    """Whether the defaults list of a config file has the line `override /group: option`."""
    found = loader.repository.load_config(file)
    lines = found.defaults_list or [] if found else []
    return any(
        isinstance(line, GroupDefault) and str(line.group).lstrip("/") == group and line.value == option
        for line in lines
    )


def is_group(override: Override, known: dict[str, list[str]]) -> bool:
    """Whether an override chooses an option, rather than setting a value."""
    return override.key_or_group in known


def takes_several(override: Override) -> bool:
    """Whether an override is of a group of which several options are chosen at once."""
    return override.key_or_group in MEMBER_GROUPS


def chosen(override: Override) -> list[str]:
    """The options that a group override names: one, several of a list group, or the choices of a sweep."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        values: list[Any] = []
        for choice in value.list:
            values.extend(choice if isinstance(choice, list) else [choice])
    else:
        values = value if isinstance(value, list) else [value]
    return [str(v) for v in values if v is not None]


def refuse_number(override: Override, known: dict[str, list[str]]) -> None:
    """Refuses several options of a group that takes one, and none, but for brackets, of one that takes several.

    Raises:
        ConfigError: Naming the groups that take several, or saying how none of them is written.
    """
    value, group = override.value(), override.key_or_group
    nothing = override.is_delete() or value is None or (value == "none" and "none" not in known[group])
    if takes_several(override) and nothing:
        raise ConfigError(f"`{override.input_line}` must be a list of options. For none of them type {group}=[].")
    if isinstance(value, list) and not takes_several(override):
        raise ConfigError(
            f"`{group}` must be one option, got {len(value)}. "
            f"Only {', '.join(MEMBER_GROUPS)} take several. To run each, write "
            f"-m {group}={','.join(map(str, value))}."
        )


def unknown_options(override: Override, known: dict[str, list[str]]) -> Iterator[str]:
    """A sentence for each option of a group override that the group has not, in a sweep too."""
    group, value = override.key_or_group, override.value()
    options = known.get(group, [])
    if options and isinstance(value, (IntervalSweep, RangeSweep, Glob)):
        if isinstance(value, Glob) and value.filter(options):
            return
        one = "have options that the pattern fits" if isinstance(value, Glob) else "be options, not numbers"
        yield (
            f"`{group}` must {one}, got {override.get_value_string()}. "
            f"Write {group}=<one>,<other> of {', '.join(options)}."
        )
        return
    for option in chosen(override) if options else []:
        if option not in options:
            also = OPTIONS_ALSO_CALLED.get(group, {}).get(option.lower(), ())
            near = f" Did you mean {' or '.join(also)}?" if also else did_you_mean(option, options)
            yield f"`{group}` must be one of {', '.join(options)}, got {option}.{near}"


def options_of_keys(overrides: list[Override], known: dict[str, list[str]]) -> Iterator[str]:
    """A sentence for each option that was written to a key rather than to its group."""
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if (group := CHOSEN_BY.get(key)) and key not in known and isinstance(value, (str, QuotedString)):
            option = getattr(value, "text", value)
            also = OPTIONS_ALSO_CALLED.get(group, {}).get(option.lower(), ()) or closest(option, known.get(group, []))
            written = f"Write {' or '.join(f'{group}={each}' for each in also or ['<option>'])}."
            yield f"`{key}` must be chosen by the group {group}, got {option}. {written}"


def mistakes(loader: ConfigLoader, config_name: str, overrides: list[Override]) -> Iterator[str]:
    """Every unknown option and key of a command line, each with what was probably meant.

    Args:
        loader: Hydra's config loader.
        config_name: The primary config.
        overrides: The parsed command line.
    """
    known = groups(loader)
    good: list[str] = []
    for override in (o for o in overrides if is_group(o, known)):
        unknown = list(unknown_options(override, known))
        yield from unknown
        if not unknown and not override.is_sweep_override() and override.input_line:
            good.append(override.input_line)
    try:
        cfg = loader.load_configuration(config_name, good, RunMode.RUN)
    except (HydraException, YAMLError, ValueError):
        return
    values = [o for o in overrides if not is_group(o, known)]
    if written := list(options_of_keys(values, known)):
        yield from written
        values = [o for o in values if o.key_or_group not in CHOSEN_BY]
    yield from unknown_keys(cfg, values, known, loader)
    yield from _other_containers(cfg, values)


def _other_containers(cfg: DictConfig, overrides: list[Override]) -> Iterator[str]:
    """A sentence for each value that is a list where keys stand, or keys where a list stands."""
    for override in overrides:
        key, value = override.key_or_group, override.value()
        there = OmegaConf.select(cfg, key, throw_on_missing=False, throw_on_resolution_failure=False)
        typed = str(override.input_line).partition("=")[2]
        if isinstance(there, ListConfig) and isinstance(value, dict):
            yield f"`{key}` must be a list, got {typed}. Write it in brackets: '{key}=[{typed}]'."
        elif isinstance(there, DictConfig) and isinstance(value, list):
            keys = [f"{key}.{name!s}" for name in there if not str(name).startswith("_")]
            remedy = f"Set them one by one: {', '.join(keys)}." if keys else f"Add them one by one: +{key}.<key>=…"
            yield f"`{key}` must be a group of keys, got {typed}. {remedy}"


def unknown_keys(cfg: DictConfig, overrides: list[Override], known: dict[str, list[str]], loader: Any) -> Iterator[str]:
    """A sentence for each value override whose key a composed config has not.

    Args:
        cfg: The composed config, with the `hydra` node.
        overrides: Value overrides; those that add a key are left alone.
        known: The groups, for what was probably meant.
        loader: Hydra's config loader, for the keys of what is not chosen.
    """
    raw = plain(cfg, resolve=False)
    for override in overrides:
        if not override.is_add() and not override.is_force_add():
            yield from _unknown_key(override.key_or_group, raw, known, loader)


def _unknown_key(key: str, raw: Any, known: dict[str, list[str]], loader: Any) -> Iterator[str]:
    """The sentence for a key that the composed config has not, or nothing."""
    node, parent = raw, ""
    for step in key.split("."):
        if isinstance(node, str) and node.startswith("${"):
            yield f"`{key}` must be set where it stands, not in a copy. Write {node[2:-1]}{key[len(parent) :]} instead."
            return
        if not isinstance(node, dict) or step not in node:
            prefix = f"{parent}." if parent else ""
            here = [str(name) for name in node if not str(name).startswith("_")] if isinstance(node, dict) else []
            elsewhere = [] if parent else _homes(step, raw)
            outer = [] if parent else [group for group in known if "/" not in group]
            also = [] if parent else [name for name in [ALSO_CALLED.get(step.lower())] if name in here]
            close = also or closest(step, [*here, *outer])
            if add := _to_add(parent, step, here, known, loader):
                remedy = f" Add {add}."
            elif meant := elsewhere or [f"{prefix}{name}" for name in close]:
                remedy = f" Did you mean {' or '.join(meant)}?"
            else:
                remedy = f" It has {', '.join(here)}." if parent and here else " See --help for what there is."
            yield f"`{key}` must be a key of {parent or 'the recipe'}, got {step}.{remedy}"
            return
        node, parent = node[step], f"{parent}.{step}" if parent else step


def _to_add(parent: str, step: str, here: list[str], known: dict[str, list[str]], loader: Any) -> str:
    """What to type to have a key: a list with its member, or an option where none is chosen; empty if nothing has it.

    Args:
        parent: The group.
        step: The key below it, or the member.
        here: What is chosen.
        known: The groups.
        loader: Hydra's config loader.
    """
    options = known.get(parent, [])
    if parent in MEMBER_GROUPS:
        return shlex.quote(f"{parent}=[{','.join([*here, step])}]") if step in options else ""
    files = {option: loader.repository.load_config(f"{parent}/{option}") for option in options if not here}
    return " or ".join(f"{parent}={option}" for option, file in files.items() if file and step in file.config)


def _homes(step: str, raw: dict[str, Any]) -> list[str]:
    """Where a key stands: `betas` alone probably means `optimizer.betas`."""
    parts = {part: node for part, node in raw.items() if part != "hydra" and isinstance(node, dict)}
    return [f"{part}.{step}" for part, node in parts.items() if step in node]
