"""A recipe's values, interpolations followed, for each of many trials. No torch."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tunelab.config import resolved


class Followed:
    """A recipe's values, interpolations followed: the same as OmegaConf gives, in a tenth of its time.

    Args:
        cfg: The recipe.
        raw: The same as plain dicts, interpolations as they stand.
    """

    SIMPLE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")

    def __init__(self, cfg: DictConfig, raw: dict[str, Any]) -> None:
        self._cfg, self._raw = cfg, raw

    def values(self) -> dict[str, Any]:
        """All of them.

        Raises:
            ConfigError: If an interpolation leads nowhere.
        """
        try:
            values: dict[str, Any] = self._follow(self._raw, ())
        except (LookupError, TypeError, ValueError, RecursionError, OmegaConfBaseException):
            return resolved(self._cfg)  # which says in words what is wrong
        return values

    def _follow(self, node: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(node, dict):
            return {key: self._follow(child, (*path, key)) for key, child in node.items()}
        if isinstance(node, list):
            return [self._follow(child, (*path, place)) for place, child in enumerate(node)]
        if not (isinstance(node, str) and "${" in node):
            return node
        if simple := self.SIMPLE.fullmatch(node):
            target = tuple(simple[1].split("."))
            there: Any = self._raw
            for place, step in enumerate(target):
                if isinstance(there, str):
                    there = self._follow(there, target[:place])
                there = there[int(step)] if isinstance(there, list) else there[step]
            if there == "???":
                raise LookupError(simple[1])
            return self._follow(there, target)
        value: Any = self._cfg
        for step in path:
            value = value[step]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
