"""The user's own packages: which are trusted, what is in them, and where an error of theirs came from. No torch."""

from __future__ import annotations

import ast
import importlib.util
import os
import pkgutil
import traceback
from collections.abc import Iterable, Iterator
from functools import lru_cache
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


def ignored(target: str, given: Iterable[str]) -> set[str]:
    """The arguments that a class or function of the user's own takes and never looks at.

    It reads the file, as `why_missing` does: an argument that the body never names, and what `**kwargs` swallows where
    the body does not name them, or only single keys of them. Where the file does not tell, none.

    Args:
        target: A dotted path such as my_project.task.Task.
        given: The names of its arguments.
    """
    if target.split(".")[0] not in trusted():
        return set()
    try:
        found = _initializer(target)
    except (ImportError, OSError, SyntaxError, ValueError):
        return set()
    if found is None:
        return set()
    arguments, names = found.args, [node for statement in found.body for node in ast.walk(statement)]
    used = {node.id for node in names if isinstance(node, ast.Name)}
    called = {node.attr for node in names if isinstance(node, ast.Attribute)} | used
    if called & SEES_ALL:
        return set()
    named = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    unused = {name for name in given if name in named and name not in used}
    if arguments.kwarg is None:
        return unused
    rest, looked_at = {name for name in given if name not in named}, _single_keys(names, arguments.kwarg.arg)
    return unused if looked_at is None else unused | (rest - looked_at)


SEES_ALL = {"locals", "vars", "eval", "exec", "currentframe", "_getframe", "save_hyperparameters"}
"""What a body may call to see all arguments without naming them."""


TAKE_ONE = ("get", "pop", "setdefault")
"""The methods of a dictionary that look at one key of it."""


def _single_keys(nodes: list[ast.AST], name: str) -> set[str] | None:
    """The keys that a body takes from its `**kwargs` one by one; None if it uses them as a whole."""
    keys, whole = set(), sum(isinstance(node, ast.Name) and node.id == name for node in nodes)
    for node in nodes:
        holder: ast.AST | None = None
        key: ast.AST | None = None
        if isinstance(node, ast.Subscript):
            holder, key = node.value, node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TAKE_ONE:
            holder, key = node.func.value, next(iter(node.args), None)
        if isinstance(holder, ast.Name) and holder.id == name and isinstance(key, ast.Constant):
            keys.add(str(key.value))
            whole -= 1
    return None if whole else keys


def _initializer(target: str) -> ast.FunctionDef | None:
    """The function that a call of a target runs, as its file has it; None where the file does not tell."""
    module, _, name = target.rpartition(".")
    spec = _spec(module)
    if spec is None or not str(spec.origin).endswith(".py"):
        return None
    for node in _tree(str(spec.origin), Path(str(spec.origin)).stat().st_mtime_ns).body:
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            original = next(a.name for a in node.names if (a.asname or a.name) == name)
            inside = bool(spec.submodule_search_locations)
            above = module.split(".")[: len(module.split(".")) - node.level + inside] if node.level else []
            return _initializer(".".join([*above, *([node.module] if node.module else []), original]))
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return None if node.decorator_list else node
        if isinstance(node, ast.ClassDef) and node.name == name:
            own = [inner for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name == "__init__"]
            return own[0] if own and not own[0].decorator_list and not node.decorator_list else None
    return None


def _spec(module: str) -> ModuleSpec | None:
    """Where a module of the user's own stands, found without importing anything."""
    package, *names = module.split(".")
    spec = importlib.util.find_spec(package) if package in trusted() else None
    for place, name in enumerate(names):
        if spec is None:
            return None
        above = ".".join([package, *names[:place]])
        spec = PathFinder.find_spec(f"{above}.{name}", spec.submodule_search_locations or [])
    return spec


@lru_cache(64)
def _tree(path: str, written: int) -> ast.Module:
    """A file's code; `written` tells a file that was changed from what it was."""
    return ast.parse(Path(path).read_bytes())


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
