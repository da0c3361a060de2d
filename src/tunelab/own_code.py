"""The user's own packages: which are trusted, what is in them, and where an error of theirs came from. No torch."""

from __future__ import annotations

import ast
import importlib.util
import os
import pkgutil
import traceback
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from tunelab.errors import did_you_mean

VARIABLE = "TUNELAB_TRUST"
"""Where trusted packages are kept, with commas between them: the processes that a run starts inherit it."""


def trust(*packages: str) -> None:
    """Allows configs to build what is in these packages of the user's own.

    `tunelab.main(trust=["my_project"])` says it for a command line, this for a Python session.

    Args:
        *packages: Their names, such as my_project.
    """
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*packages, *trusted()]))


def trusted() -> list[str]:
    """The packages of the user's own that configs may build from."""
    return [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]


def why_missing(target: str) -> str:
    """Why there is no such class or function, in words; empty if there is one, or only an import would tell.

    Reads the files, so that a slip of the pen is answered before anything is imported.

    Args:
        target: A dotted path such as my_project.model.Net.
    """
    package, *names = target.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None:
        return f"Python finds no {package} from here. Start in the folder that holds it, or install it."
    module = package
    while names and (inner := PathFinder.find_spec(f"{module}.{names[0]}", spec.submodule_search_locations or [])):
        spec, module = inner, f"{module}.{names.pop(0)}"
    if not names:
        return f"{module} is a module. Name a class in it: {module}.<class>."
    try:
        there = _names(spec)
    except SyntaxError as error:
        return f"{spec.origin} is not Python in line {error.lineno}: {error.msg}."
    if there is None or names[0] in there:
        return ""
    has = f" It has {', '.join(there)}." if there else ""
    return f"{module} has no {names[0]}.{did_you_mean(names[0], there) or has}"


def _names(spec: ModuleSpec) -> list[str] | None:
    """What stands at the top of a module's file, and a package's modules; None where the file does not tell."""
    inside = [found.name for found in pkgutil.iter_modules(spec.submodule_search_locations or [])]
    if spec.origin is None:  # a folder without an __init__.py
        return inside
    if not spec.origin.endswith(".py"):
        return None
    tree = ast.parse(Path(spec.origin).read_bytes())
    defined = list(_defined(tree.body))
    return None if {"*", "__getattr__"} & set(defined) else [*inside, *defined]


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            yield from (name.id for name in ast.walk(node) if isinstance(name, ast.Name))
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield "*"  # whether it is defined shows when it is run


def own_traceback(error: BaseException | None) -> str:
    """The lines of the user's own packages that an error came through, as a traceback shows them; perhaps none.

    Args:
        error: With what it was raised from.
    """
    found = ""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        own = [f for f, module in zip(frames, modules, strict=True) if module.split(".")[0] in trusted()]
        if own:
            said = "".join([*traceback.format_list(own), *traceback.format_exception_only(error)])
            found = said.split("\nfull_key: ")[0].rstrip()  # which Hydra adds to the user's message
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found
