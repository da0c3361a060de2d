"""Which keys of a recipe its run reads: those of what it builds, and what their interpolations lead to. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from tunelab.own_code import ignored

Path = tuple[str, ...]

BUILT = ("task", "data", "trainer", "callbacks", "logger", "profiler")
"""The parts that a run builds itself. All others are built where an interpolation brings them into one of these."""

OF_THE_RUN = (
    "name",
    "seed",
    "threads",
    "objective",
    "objective_direction",
    "test",
    "repeat",
    "resume",
    "find_lr",
)
"""The keys that the run itself reads."""

MAY_BE_NONE = ("batch_size", "fold", "warmup_steps", "warmup_fraction")
"""The top-level keys between which there are rules that only those who read them must keep."""

INTERPOLATION = re.compile(r"\$\{([^${}]*)")


class Reading:
    """What of a recipe is read.

    A key is read if a part that is built has it, or an interpolation in such a part leads to it, or one in what that
    leads to. Nobody reads what only the files of unused parts mention, nor an argument at which a class of the user's
    own does not look.

    Args:
        recipe: As plain dicts, interpolations as they stand.
    """

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self._recipe = recipe
        self._read: set[Path] = set()
        self._ignored: set[Path] = set()
        waiting: list[Path] = [(key,) for key in (*BUILT, *OF_THE_RUN)]
        while waiting:
            path = waiting.pop()
            if path not in self._read:
                self._read.add(path)
                waiting += self._led_to(path)
        kept = [path for path in self._read if not self._is_ignored(path)]
        self._beginnings = {path[:length] for path in kept for length in range(len(path) + 1)}

    def reads(self, key: str) -> bool:
        """Whether something reads a key, or a part of what stands there.

        A member of a list group that has no part of its own, such as `regularization.dropout`, stands for the top-level
        key of its name.

        Args:
            key: Such as lr or optimizer.betas.
        """
        path = tuple(key.split("."))
        if path in self._beginnings:
            return True
        if any(path[:length] in self._read for length in range(1, len(path))):
            return not self._is_ignored(path)
        return len(path) == 2 and _at(self._recipe, path) == {} and self.reads(path[1])

    def takes(self, group: str) -> bool:
        """Whether something builds the option of a group, rather than reading a number of it.

        Args:
            group: Such as optimizer.
        """
        node = self._recipe.get(group)
        if isinstance(node, Mapping) and "_target_" in node:
            return self.reads(f"{group}._target_")
        return self.reads(group) or any(self.reads(f"{group}.{member}") for member in _names(node))

    def is_unread(self, key: str) -> bool:
        """Whether a recipe has a key, or a group, and nothing reads it.

        Args:
            key: As it is typed.
        """
        if key.split(".")[0] not in self._recipe:
            return False
        return not (self.reads(key) if "." in key else self.takes(key))

    def passed_over_by(self, key: str) -> str:
        """The class that is given a key and does not look at it; empty if there is none.

        Args:
            key: Such as loss.
        """
        wanted = tuple(key.split("."))
        for path in sorted(self._ignored):
            given = _below(_at(self._recipe, path), path)
            if path == wanted[: len(path)] or any(each == wanted[: len(each)] for each in given):
                return str(_at(self._recipe, path[:-1])["_target_"])
        return ""

    def unread(self) -> list[str]:
        """The keys that nothing reads; of a part of which nothing is read, the part alone."""
        return list(self._unread(self._recipe, ""))

    def _unread(self, node: Mapping[str, Any], parent: str) -> Iterator[str]:
        for name in _names(node):
            key, child = f"{parent}{name}", node[name]
            members = isinstance(child, Mapping) and {} in child.values()
            if not members and not self.reads(key):
                yield key
            elif isinstance(child, Mapping) and tuple(key.split(".")) not in self._read:
                yield from self._unread(child, f"{key}.")

    def _led_to(self, path: Path) -> Iterator[Path]:
        """What is read together with a path: the keys that interpolations in it, or on the way to it, refer to."""
        node: Any = self._recipe
        for place, step in enumerate(path):
            if isinstance(node, str):  # a copy of another part, in which the rest stands
                yield path[:place]
                yield from ((*target, *path[place:]) for target in _references(node, path[:place]))
                return
            node = _at(node, (step,))
        yield from _below(node, path, self._passed_over)

    def _passed_over(self, part: Mapping[str, Any], path: Path) -> set[str]:
        """The arguments of a part at which its class does not look."""
        target = part.get("_target_")
        arguments = [name for name in _names(part) if not name.startswith("_")]
        names = ignored(target, arguments) if isinstance(target, str) else set()
        self._ignored |= {(*path, name) for name in names}
        return names

    def _is_ignored(self, path: Path) -> bool:
        return any(path[:length] in self._ignored for length in range(1, len(path) + 1))


def without(values: Mapping[str, Any], unread: Collection[str]) -> dict[str, Any]:
    """A recipe as the rules between its keys shall see it: what nothing reads contradicts nothing.

    Args:
        values: Interpolations followed.
        unread: Keys that nothing reads, as `Reading.unread` gives them.
    """
    empty: dict[str, Any] = {
        key: {} if isinstance(values.get(key), Mapping) else None for key in unread if key in values
    }
    return {**values, **{key: nothing for key, nothing in empty.items() if nothing == {} or key in MAY_BE_NONE}}


def mentioned(recipe: Mapping[str, Any]) -> set[str]:
    """The top-level keys that an interpolation refers to, wherever it stands."""
    return {path[0] for path in _below(recipe, ()) if path}


def _below(
    node: Any, path: Path, passed_over: Callable[[Mapping[str, Any], Path], Collection[str]] = lambda *_: ()
) -> Iterator[Path]:
    """What the interpolations in a node refer to.

    Args:
        node: Of a recipe.
        path: Where it stands.
        passed_over: The keys of a part that are left out.
    """
    if isinstance(node, Mapping):
        left_out = passed_over(node, path)
        for name in (name for name in _names(node) if name not in left_out):
            yield from _below(node[name], (*path, name), passed_over)
    elif isinstance(node, (list, tuple)):
        for place, child in enumerate(node):
            yield from _below(child, (*path, str(place)), passed_over)
    elif isinstance(node, str):
        yield from _references(node, path)


def _references(text: str, path: Path) -> Iterator[Path]:
    """The keys that the interpolations in a text refer to; each argument of a resolver may be one.

    Args:
        text: Such as `${lr}`, `${oc.select:lr,0.1}` or `${.width}`.
        path: Where it stands, which relative ones count from.
    """
    for inner in INTERPOLATION.findall(text):
        resolver, colon, arguments = inner.partition(":")
        for word in arguments.split(",") if colon else [resolver]:
            key = word.strip().replace("[", ".").replace("]", "")
            up = len(key) - len(key.lstrip("."))
            steps = tuple(step for step in key[up:].split(".") if step)
            if steps or up:
                yield (*path[: len(path) - up], *steps) if up else steps


def _at(node: Any, path: Path) -> Any:
    """What stands at a path; None if nothing does."""
    for step in path:
        if isinstance(node, Mapping):
            node = node.get(step)
        elif isinstance(node, (list, tuple)) and step.isdecimal() and int(step) < len(node):
            node = node[int(step)]
        else:
            return None
    return node


def _names(node: Any) -> list[str]:
    return [str(name) for name in node] if isinstance(node, Mapping) else []
