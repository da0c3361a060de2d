"""What `--help` prints: the catalogue as a page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode

from tunelab import catalogue, conf_folder
from tunelab.config import MEMBER_GROUPS, OF_A_SEARCH, plain
from tunelab.errors import show, training
from tunelab.schema import Recipe


def _how_to_search(raw: dict[str, Any], command: str) -> Iterator[str]:
    """The part of the page on -m: two examples, and the dials of `sweep` with their values and comments."""
    yield "Searches: -m, with several values of a key or group, or an interval"
    yield f"  {command} -m lr=1e-4,1e-3 optimizer=sgd,adamw"
    yield f"  {command} -m 'lr=tag(log,interval(1e-4,1e-1))' 'size.width=int(interval(16,256))' sweep.n_trials=50"
    file = (conf_folder() / "train.yaml").read_text(encoding="utf-8")
    said = dict(
        re.findall(r"^  (\w+): .*?  ?# (.*)$", file.partition("\nsweep:\n")[2].partition("\n\n")[0], re.MULTILINE)
    )
    dials = {key: show(value) for key, value in (raw.get("sweep") or {}).items() if not isinstance(value, dict)}
    dials.pop("sampler", None)
    width, wide = (max(map(len, words), default=0) for words in (dials, dials.values()))
    for key, value in dials.items():
        yield f"  sweep.{key:<{width}}  {value:<{wide}}  {said.get(key, '')}".rstrip()


def of_training(
    loader: ConfigLoader, config_name: str, arguments: list[str], command: str, tools: Mapping[str, str]
) -> str:
    """The catalogue as a page: how to call, the groups with their options, the dials with their values.

    Args:
        loader: Hydra's config loader.
        config_name: The primary config.
        arguments: The overrides of the command line; what they choose is marked.
        command: What begins the command line.
        tools: What each tool is for.

    Raises:
        HydraException: If they do not compose.
    """
    cfg = loader.load_configuration(config_name, arguments, RunMode.RUN)
    raw = plain(cfg, resolve=False)
    defaults = loader.compute_defaults_list(config_name, arguments, RunMode.RUN).defaults
    now = {default.config_path for default in defaults}
    known = {group: options for group, options in catalogue.groups(loader).items() if not group.startswith("hydra")}
    # a group of the user's own that the recipe has no line for is added by a plus
    in_recipe = {*cfg.hydra.runtime.choices, *MEMBER_GROUPS}
    shown = {group if group in in_recipe else f"+{group}": options for group, options in known.items()}
    lines = [f"{command} [group=option …] [key=value …]      for example: optimizer=adamw lr=3e-4", ""]
    width = max(map(len, shown))
    lines.append("Groups and their options (* is chosen now; several in brackets: callbacks=[checkpoint,lr])")
    for group, options in shown.items():
        marked = "  ".join(f"{option}*" if f"{group.lstrip('+')}/{option}" in now else option for option in options)
        lines.append(f"  {group:<{width}}  {marked}")
    dials = {key: value for key, value in raw.items() if not isinstance(value, (dict, list)) and key not in known}
    width = max((len(key) for key in dials), default=0)
    lines += ["", "Dials (value now)", *(f"  {key:<{width}}  {show(value)}" for key, value in dials.items())]
    width = max(map(len, tools))
    lines += [
        "",
        "Keys of a part: size.width=96, optimizer.betas=[0.9,0.98]; `--cfg job` prints the whole recipe.",
        "Hydra's own flags: --hydra-help.",
        "",
        *_how_to_search(raw, command),
        "",
        "Tools (a tool's own --help explains its keys)",
        *(f"  {command} {tool:<{width}}  {what}" for tool, what in tools.items()),
    ]
    return "\n".join(lines)


def of_tool(loader: ConfigLoader, tool: str, arguments: list[str], command: str, what: str) -> str:
    """A tool as a page: what it is for, examples, its own keys with what they mean.

    Args:
        loader: Hydra's config loader.
        tool: Its name, which is that of its config.
        arguments: The overrides of the command line.
        command: What begins the command line.
        what: It is for.

    Raises:
        HydraException: If they do not compose.
    """
    raw = plain(loader.load_configuration(tool, arguments, RunMode.RUN), resolve=False)
    text = (conf_folder() / f"{tool}.yaml").read_text(encoding="utf-8")
    examples = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# python ")]
    meant = dict(re.findall(r"^(\w+): .*?# (.*)$", text, re.MULTILINE))
    of_a_recipe = {"hydra", *OF_A_SEARCH, *Recipe.model_fields} if "optimizer" in raw else {"hydra"}
    keys = {key: show(value) for key, value in raw.items() if key not in of_a_recipe}
    width, wide = (max(map(len, words), default=0) for words in (keys, keys.values()))
    lines = [what.rpartition(": ")[0] + ".", ""]
    lines += [f"  {command}{example.partition('.py')[2]}" for example in examples]
    if keys:
        lines += ["", "Keys of this tool (value now)"]
        lines += [f"  {key:<{width}}  {value:<{wide}}  {meant.get(key, '')}".rstrip() for key, value in keys.items()]
    if "optimizer" in raw:
        lines += ["", f"All of the recipe can be typed too: optimizer=sgd, size.width=96, … ({training()} --help)"]
    return "\n".join(lines)
