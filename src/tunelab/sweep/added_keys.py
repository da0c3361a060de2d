"""Which parts take a key that is added to them: it has no effect beside the others."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from tunelab.config import plain
from tunelab.errors import did_you_mean
from tunelab.whitelist import untrusted_targets


def why_not_taken(recipe: DictConfig, key: str) -> str:
    """The sentence for an added key that its part does not take; empty if it does, or only the building would tell.

    It imports the part, with torch if that needs it.

    Args:
        recipe: In which the part stands, without the key; interpolations unresolved.
        key: Such as optimizer.momentum.
    """
    for place, part in reversed(list(_parts(plain(recipe, resolve=False), key))):
        target, name = part["_target_"], key.removeprefix(f"{place}.").split(".")[0]
        if name.startswith("_") or "${" in target or any(untrusted_targets({"part": {"_target_": target}})):
            return ""
        try:
            arguments = inspect.signature(get_object(target)).parameters.values()
        except Exception:  # whatever the import of own code does, which is said where it is built
            return ""
        if any(a.name == name or a.kind is a.VAR_KEYWORD for a in arguments):
            return ""
        names = [a.name for a in arguments if a.kind is not a.VAR_POSITIONAL]
        near = did_you_mean(name, names) or f" It has {', '.join(names)}."
        return f"`{place}.{name}` must be an argument of {target.rpartition('.')[2]}, got {name}.{near}"
    return ""


def _parts(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts above a key, each with where it stands, the outermost first."""
    steps = key.split(".")
    for place, step in enumerate(steps):
        if not isinstance(node, dict):
            return
        if isinstance(node.get("_target_"), str):
            yield ".".join(steps[:place]), node
        node = node.get(step)
