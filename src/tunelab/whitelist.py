"""Which targets a config may build: narrow packages, so that a config from anywhere cannot run what it likes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from tunelab.errors import did_you_mean
from tunelab.own_code import trusted, why_missing

WHITELIST = (
    *(
        f"tunelab.{part}.*"
        for part in (
            *("activations", "augmentations", "callbacks", "clipping", "data", "inits", "loggers", "losses"),
            *("metrics_csv", "models", "optimizers", "profilers", "regularizers", "schedules", "services", "tasks"),
        )
    ),
    "torch.optim.*",
    "torch.nn.*",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.*",
    "lightning.pytorch.loggers.*",
    "lightning.pytorch.profilers.*",
    "torchmetrics.*",
    "pytorch_optimizer.*",
)
"""The targets that a config may build. Narrow on purpose: `torch.*` would let it run torch.load or torch.hub.load."""


def whitelist() -> list[str]:
    """The targets that may be built: ours, and what is in the packages that the user trusts."""
    return [*WHITELIST, *(f"{name}.*" for name in trusted())]


def untrusted_targets(values: dict[str, Any]) -> Iterator[str]:
    """A sentence for each `_target_` of a config that may not be built, or that a package of the user's own has not.

    Args:
        values: The config as plain dicts and lists.
    """
    allowed, own = whitelist(), trusted()
    found: dict[str, str] = {}  # the key of each target; the task repeats the parts that it uses
    for key, target in sorted(_targets(values), key=lambda found: found[0].count(".")):
        found.setdefault(target, key)
    refused: dict[str, list[str]] = {}  # those of each package, which has one remedy
    for target, key in found.items():
        package = target.split(".")[0]
        if not any(target.startswith(p[:-1]) if p.endswith(".*") else target == p for p in allowed):
            refused.setdefault(package, []).append(target)
        elif package in own and (why := why_missing(target)):
            yield f"`{key}._target_` must be there, got {target}: {why}"
    for package, targets in refused.items():
        more = f" and {', '.join(targets[1:])}" if targets[1:] else ""
        yield (
            f"`{found[targets[0]]}._target_` must be in a trusted package, got {targets[0]}{more}.{_remedy(package)}"
        )


def _remedy(package: str) -> str:
    if package in {*sys.stdlib_module_names, *(ours.split(".")[0] for ours in WHITELIST)}:
        return " Configs build tunelab's parts, torch.optim.*, torch.nn.*, torchmetrics.* and Lightning's callbacks."
    return did_you_mean(package, trusted()) or (
        f' If {package} is your own, say tunelab.main(trust=["{package}"]) in its train.py and start from there; '
        f'in Python, tunelab.trust("{package}"); elsewhere set TUNELAB_TRUST={package}.'
    )


def _targets(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, child in node.items():
            path = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                yield key, str(child)
            else:
                yield from _targets(child, path)
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _targets(child, f"{key}.{index}")
