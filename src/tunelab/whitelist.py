"""Which targets a config may build: narrow packages, so that a config from anywhere cannot run what it likes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

WHITELIST = (
    *(
        f"tunelab.{part}.*"
        for part in (
            *("activations", "augmentations", "callbacks", "data", "inits", "loggers", "losses", "models"),
            *("optimizers", "regularizers", "schedules", "tasks"),
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
    """The targets that may be built: ours, and the packages named in the environment variable TUNELAB_TRUST."""
    trusted = [name.strip() for name in os.environ.get("TUNELAB_TRUST", "").split(",")]
    return [*WHITELIST, *(f"{name}.*" for name in trusted if name)]


def untrusted_targets(values: dict[str, Any]) -> Iterator[str]:
    """A sentence for each `_target_` of a config that may not be built.

    Args:
        values: The config as plain dicts and lists.
    """
    allowed = whitelist()
    seen = set()
    for key, target in sorted(_targets(values), key=lambda found: found[0].count(".")):
        if not any(target.startswith(p[:-1]) if p.endswith(".*") else target == p for p in allowed):
            if target in seen:
                continue  # the task repeats the parts that it uses
            seen.add(target)
            package = target.split(".")[0]
            yield f"`{key}._target_` must be in a trusted package, got {target}. " + (
                "Configs build tunelab's parts, torch.optim.*, torch.nn.*, torchmetrics.* and Lightning's callbacks."
                if package in {*sys.stdlib_module_names, *(trusted.split(".")[0] for trusted in WHITELIST)}
                else f'If {package} is your own, say tunelab.main(trust=["{package}"]) in its train.py '
                f"or set TUNELAB_TRUST={package}."
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
