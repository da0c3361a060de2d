"""What `--help` prints: the catalogue as a page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode

from tunelab import catalogue, conf_folder
from tunelab.config import MEMBER_GROUPS, OF_A_SEARCH, plain
from tunelab.errors import show
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


def help_text(
    loader: ConfigLoader, config_name: str, arguments: list[str], command: str, tools: Mapping[str, str]
) -> str:
    """The catalogue as a page: how to call, the groups with their options, the dials with their values.

    Args:
        loader: Hydra's config loader.
        config_name: The primary config.
        arguments: The overrides of the command line; what they choose is marked.
        command: What begins the command line.
        tools: What each tool is for; none where the page is one's own.

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
    named = {group: group if group in in_recipe else f"+{group}" for group in known}
    shown = {named[group]: options for group, options in known.items()} if "optimizer" in raw else {}
    how = "[group=option …] [key=value …]      for example: optimizer=adamw lr=3e-4" if shown else "key=value …"
    lines = [f"{command} {how}", ""]
    if shown:
        width = max(map(len, shown))
        lines.append("Groups and their options (* is chosen now; several in brackets: callbacks=[checkpoint,lr])")
        for group, options in shown.items():
            marked = "  ".join(f"{option}*" if f"{group.lstrip('+')}/{option}" in now else option for option in options)
            lines.append(f"  {group:<{width}}  {marked}")
        lines.append("")
    own = {
        key: value for key, value in raw.items() if shown and not tools and key not in (*Recipe.model_fields, "hydra")
    }
    own = {key: value for key, value in own.items() if key not in OF_A_SEARCH}
    apart = own.keys() | known.keys()
    dials = {key: value for key, value in raw.items() if not isinstance(value, (dict, list)) and key not in apart}
    width = max((len(key) for key in (*own, *dials)), default=0)
    for title, keys in (("Keys of this tool (value now)", own), ("Dials (value now)", dials)):
        if keys:
            lines.append(title)
            lines.extend(f"  {key:<{width}}  {show(value)}" for key, value in keys.items())
    if not shown:
        lines[0] = f"{command} " + " ".join(f"{key}=…" for key in dials)
        return "\n".join(lines)
    lines += [
        "",
        "Keys of a part: size.width=96, optimizer.betas=[0.9,0.98]; `--cfg job` prints the whole recipe.",
        "Hydra's own flags: --hydra-help.",
    ]
    if tools:
        width = max(map(len, tools))
        lines += ["", *_how_to_search(raw, command), "", "Tools (a tool's own --help lists its keys)"]
        lines += [f"  {command} {tool:<{width}}  {what}" for tool, what in tools.items()]
    return "\n".join(lines)
