"""The tools beside training, a file each; the keys of one stand in conf/<tool>.yaml.

A tool has `check(cfg, user_keys)`, which refuses in words before anything heavy is imported, and `run(cfg)`, which does
it. It is called as `tunelab <tool> …`, as `python train.py <tool> …` of any project, and by scripts/<tool>.py.
"""

import importlib
import pkgutil
from types import ModuleType

from tunelab.project import WHAT


def names() -> list[str]:
    """Every tool: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of a tool, with `check` and `run`."""
    return importlib.import_module(f"{__name__}.{name}")


def described() -> dict[str, str]:
    """What each tool is for and is given, in a line; `new`, which needs no config, among them."""
    return {**{name: (load(name).__doc__ or "").splitlines()[0] for name in names()}, "new": WHAT}
