"""What differs between what a study was made for and what is asked of it now, and how its knobs get more choices."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json

from tunelab.aliases import PLACES
from tunelab.errors import show
from tunelab.sweep.space import Space

DEFINITION = "tunelab"
"""The study's attribute that says what it was made for."""

FREE = re.compile(r"(name|threads|logger|profiler|test|repeat|resume|callbacks\.\w+\.every_seconds)(\.|$)")
"""The keys of a recipe that change no trial's score, and may change while a study goes on."""


def compared(definition: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a study is made for, and the recipe that its trials begin from, which a file of it changes in silence.

    Args:
        definition: What is searched, and how.
        recipe: Interpolations as they stand.
    """
    fixed = [text for text in definition["fixed"] if not FREE.match(text.partition("=")[0].lstrip("+~"))]
    leaves = {key: text for key, text in _leaves(recipe) if not FREE.match(key)}
    return {**definition, "fixed": fixed, "recipe": leaves}


def _leaves(node: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", show(value)  # as text, in which NaN is equal to itself


def edits(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A phrase for each value of the recipe that differs: `weight_decay 0.01 → 0.5`.

    Args:
        before: What the study was made for.
        now: What is asked.
    """
    was, is_now = before.get("recipe", {}), now.get("recipe", {})  # of another app there is none
    keys = [key for key in dict.fromkeys([*was, *is_now]) if was.get(key) != is_now.get(key)]
    return [f"{key} {was.get(key, 'not there')} → {is_now.get(key, 'not there')}" for key in keys]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A phrase for each thing that differs in what was typed: `lr 0.001,0.01 → 0.1`.

    Args:
        before: What the study was made for.
        now: What is asked.
    """
    fixed = [dict(text.partition("=")[::2] for text in each["fixed"]) for each in (before, now)]
    parts = [
        *(
            (key, before["knobs"].get(key), now["knobs"].get(key), "not searched")
            for key in _keys(before, now, "knobs")
        ),
        *((key, fixed[0].get(key), fixed[1].get(key), "not given") for key in dict.fromkeys([*fixed[0], *fixed[1]])),
        *((key, before[key], now[key], "none") for key in now if key not in ("knobs", "fixed", "recipe")),
    ]
    return [f"{key} {_shown(was, no)} → {_shown(is_now, no)}" for key, was, is_now, no in parts if was != is_now]


def by_other_names(definition: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same search as it was defined when a key that passes on another was one of its own, such as optimizer.lr.

    Args:
        definition: What is typed, without the recipe.

    Yields:
        The names that it has instead, and the definition.
    """
    typed = [*definition["knobs"], *(text.partition("=")[0] for text in definition["fixed"])]
    there = [key for key in PLACES if key in typed]
    for count in range(1, len(there) + 1):
        for keys in combinations(there, count):
            other = {key: PLACES[key] for key in keys}
            knobs = {other.get(key, key): values for key, values in definition["knobs"].items()}
            fixed = [text.partition("=") for text in definition["fixed"]]
            renamed = sorted("".join((other.get(key, key), *rest)) for key, *rest in fixed)
            yield ", ".join(other.values()), {**definition, "knobs": knobs, "fixed": renamed}


def _keys(before: Mapping[str, Any], now: Mapping[str, Any], part: str) -> list[str]:
    return list(dict.fromkeys([*before[part], *now[part]]))


def _shown(value: Any, none: str) -> str:
    if value is None:
        return none
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(value, dict) and "_target_" in value:
        rest = ", ".join(f"{key}={v}" for key, v in value.items() if key != "_target_")
        return f"{str(value['_target_']).rsplit('.', 1)[-1]}({rest})"
    if isinstance(value, dict) and "attributes" in value:
        a = value["attributes"]
        steps = "" if a["step"] in (None, 1) else f" in steps of {a['step']}"
        return f"{a['low']:g}…{a['high']:g}{' log' if a['log'] else ''}{steps}"
    return str(value)


def has_more_choices(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether nothing differs but that knobs of choices have more of them, or in another order."""
    if {**before, "knobs": None} != {**now, "knobs": None} or before["knobs"].keys() != now["knobs"].keys():
        return False
    pairs = [(was, now["knobs"][key]) for key, was in before["knobs"].items() if was != now["knobs"][key]]
    return all(isinstance(was, list) and isinstance(more, list) and set(was) <= set(more) for was, more in pairs)


def add_choices(journal: Path, before: Mapping[str, Any], now: Mapping[str, Any], space: Space) -> None:
    """Writes a study anew with more choices: the same trials, numbers, values and results.

    Optuna takes no other choices into a study than those it began with. The new file takes the old one's place at
    once, so that a kill leaves one or the other.

    Args:
        journal: The study's file, which no other process has open.
        before: What it was made for.
        now: The same with more choices.
        space: That has them.
    """
    knobs = {knob.key: knob for knob in space.knobs if knob.texts}
    places = {
        key: [now["knobs"][knob.element].index(text) for text in before["knobs"][knob.element]]
        for key, knob in knobs.items()
    }

    def changed(log: dict[str, Any]) -> dict[str, Any]:
        if DEFINITION in log.get("user_attr", {}):
            log["user_attr"][DEFINITION] = dict(now)
        if (key := log.get("param_name")) in knobs:
            log["param_value_internal"] = float(places[key][int(log["param_value_internal"])])
            log["distribution"] = distribution_to_json(knobs[key].distribution)
        for key in knobs.keys() & log.get("distributions", {}).keys():
            log["params"][key] = float(places[key][int(log["params"][key])])
            log["distributions"][key] = distribution_to_json(knobs[key].distribution)
        return log

    aside = journal.with_suffix(".new")
    with aside.open("w", encoding="utf-8") as file:
        for line in journal.read_text(encoding="utf-8").splitlines():
            file.write(json.dumps(changed(json.loads(line)), separators=(",", ":")) + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(journal)
