"""Who imports whom: arrows point one way, the command line starts without torch, and files stay small."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "src" / "tunelab"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
OURS = sorted(
    chain(
        *(sorted((REPOSITORY / folder).rglob("*.py")) for folder in ("src", "scripts", "benchmarks")),
        [REPOSITORY / "train.py"],
    )
)

# a mistake is said anywhere; what data says of itself is known to all that meet it; who reads may go at any time
EVERYWHERE = {"errors", "printing", "spec"}
FREE = {"torch", "numpy", *sys.stdlib_module_names}

# part: (which of ours it may import beside those, which packages of others beside torch and numpy)
ARROWS: dict[str, tuple[set[str], set[str]]] = {
    # leaves: each stands alone
    "errors": (set(), set()),
    "spec": (set(), set()),
    "activations": (set(), set()),
    "augmentations": (set(), {"kornia"}),
    "clipping": (set(), set()),
    "inits": (set(), set()),
    "losses": (set(), set()),
    "parameters": (set(), set()),
    "scaling": (set(), set()),
    "schedules": (set(), set()),
    "optimizers": ({"parameters"}, {"pytorch_optimizer"}),
    "regularizers": ({"parameters"}, set()),
    "models": (set(), set()),
    "hashing": (set(), set()),
    "data": ({"hashing"}, {"PIL", "datasets", "huggingface_hub", "lightning", "pandas", "sklearn"}),
    # what is asked for, and what is left behind: no torch, but for the record of a run and its checkpoints
    "own_code": (set(), set()),
    "checkout": (set(), set()),
    "children": (set(), set()),
    "whitelist": ({"own_code"}, set()),
    "project": (set(), set()),
    "events": (set(), {"tensorboard"}),
    "schema": (set(), {"pydantic", "pydantic_core"}),
    "ranges": ({"schema"}, {"pydantic"}),
    "rules_of_length": (set(), set()),
    "rules": ({"rules_of_length"}, set()),
    "aliases": ({"schema"}, {"hydra"}),
    "reading": ({"own_code"}, set()),
    "config": ({"aliases", "ranges", "reading", "rules", "schema", "whitelist"}, {"omegaconf"}),
    "hints": (set(), set()),
    "printing": (set(), set()),
    "catalogue": ({"config", "hints"}, {"hydra", "omegaconf", "yaml"}),
    "help_page": ({"__init__", "catalogue", "config", "schema"}, {"hydra"}),
    "folder": (set(), {"omegaconf", "yaml"}),
    "answers": ({"folder"}, {"matplotlib"}),
    "summary": ({"analysis"}, {"rich"}),
    "record": ({"folder", "own_code"}, {"omegaconf"}),
    "members": (set(), set()),
    "same_data": ({"folder", "hashing", "members", "record"}, {"omegaconf"}),
    "checkpoints": ({"folder"}, {"lightning"}),
    # a fit
    "metrics_csv": ({"folder"}, {"lightning"}),
    "loggers": ({"metrics_csv"}, {"lightning", "tensorboard"}),
    "harmless": (set(), {"lightning"}),
    "services": ({"folder"}, {"lightning", "mlflow", "wandb"}),
    "tasks": ({"loggers", "schedules"}, {"lightning", "torchmetrics"}),
    "callbacks": ({"folder", "hashing", "loggers", "members", "scaling"}, {"lightning", "rich"}),
    "profilers": ({"folder", "loggers"}, {"lightning", "rich"}),
    # what brings them together
    "ranks": (set(), set()),
    "lean": ({"tasks"}, {"lightning"}),
    "loop": ({"callbacks", "ends", "lean", "metrics_csv"}, {"lightning"}),
    "replay": ({"callbacks", "checkpoints", "folder"}, {"hydra", "lightning", "omegaconf"}),
    "prepare": ({"aliases", "config"}, {"hydra", "lightning", "omegaconf"}),
    "ends": (set(), {"lightning", "omegaconf"}),
    "opening": ({"ends", "folder", "loggers", "record"}, {"lightning", "omegaconf"}),
    "fitting": (
        {"callbacks", "checkpoints", "harmless", "lean", "loop", "prepare", "ranks", "replay", "whitelist"},
        {"hydra", "omegaconf", "lightning"},
    ),
    "run": (
        {
            *("callbacks", "checkpoints", "ends", "fitting", "folder", "lean", "loop", "metrics_csv", "opening"),
            *("prepare", "ranks", "record", "replay", "same_data", "tuning"),
        },
        {"omegaconf", "lightning"},
    ),
    "follower": ({"folder", "record", "run"}, set()),
    "predictor": (
        {
            "callbacks",
            "checkpoints",
            "config",
            "data",
            "fitting",
            "folder",
            "hashing",
            "prepare",
            "run",
            "same_data",
            "tasks",
        },
        {"lightning", "omegaconf", "pandas"},
    ),
    "job": (
        {"analysis", "catalogue", "checkout", "checkpoints", "config", "folder", "prepare", "record", "run", "summary"},
        {"hydra", "omegaconf"},
    ),
    "overrides": ({"catalogue", "folder", "job"}, {"hydra"}),
    "multirun": ({"catalogue", "config", "overrides", "ranges", "schema"}, {"hydra", "omegaconf"}),
    "command": (
        {
            *("__init__", "catalogue", "composing", "config", "folder", "help_page", "instrument", "job", "multirun"),
            *("overrides", "own_code", "project", "tools", "whitelist"),
        },
        {"hydra", "omegaconf", "yaml"},
    ),
    "composing": ({"__init__", "aliases", "catalogue", "config", "overrides"}, {"hydra", "omegaconf", "yaml"}),
    # tools, of which those that measure a recipe share an instrument's ways
    "instrument": (
        {"answers", "catalogue", "checkout", "composing", "config", "events", "folder", "job", "ranges", "record"},
        {"hydra", "matplotlib", "omegaconf", "pydantic", "rich"},
    ),
    # what finished runs say: no torch
    "analysis": (
        {"__init__", "config", "folder", "instrument"},
        {"matplotlib", "omegaconf", "optuna", "scipy", "sklearn"},
    ),
    "tuning": (
        {"answers", "callbacks", "children", "config", "fitting", "folder", "instrument", "prepare", "scaling"},
        {"lightning", "matplotlib", "omegaconf", "scipy"},
    ),
    "tools": (
        {
            *("analysis", "catalogue", "composing", "config", "folder", "instrument", "multirun", "overrides"),
            *("predictor", "project", "ranges", "reading", "sweep", "tuning"),
        },
        {"hydra", "matplotlib", "omegaconf", "pydantic"},
    ),
    # a search: many runs; only its workers import torch
    "sweep": (
        {
            *(
                "aliases",
                "analysis",
                "callbacks",
                "catalogue",
                "checkout",
                "checkpoints",
                "children",
                "config",
                "fitting",
            ),
            *("folder", "job", "multirun", "overrides", "own_code", "predictor", "prepare", "ranges", "reading"),
            *("record", "rules", "run", "schema", "whitelist"),
        },
        {
            *("hydra", "hydra_plugins", "lightning", "omegaconf", "optuna", "rich", "scipy", "sqlalchemy"),
            *("tensorboard", "yaml"),
        },
    ),
    "__init__": ({"command", "instrument", "own_code", "predictor", "tools"}, set()),
    # a user's project, as `tunelab new` writes it
    "template": ({"__init__", "data", "loggers"}, {"lightning"}),
}

# inside a package, files share one that is meant for it
SHARED = {
    "callbacks": {"constant", "finite", "layers", "objective"},
    "data": {
        *(
            "arrays",
            "columns",
            "dates",
            "decoder",
            "files",
            "folders",
            "gaps",
            "known",
            "memory",
            "numbers",
            "pictures",
        ),
        *("questions", "reading", "recorded", "scales", "splits", "targets", "values", "workers"),
    },
    "models": {"blocks"},
    "profilers": {"fit"},
    "schedules": {"warmup"},
    "regularizers": {"mixing"},
    "tasks": {"batch_norm", "grouping", "parts", "scored_weights", "scores", "steps", "supervised", "unwritten"},
}

# no parts to choose from but one program in several files, which import each other as they need, without a cycle
PROGRAMS = {"analysis", "sweep", "tuning"}

WITHOUT_TORCH = [
    "errors",
    "spec",
    "whitelist",
    "schema",
    "ranges",
    "rules",
    "rules_of_length",
    "scaling",
    "aliases",
    "config",
    "catalogue",
    "folder",
    "summary",
    "job",
    "overrides",
    "multirun",
    "own_code",
    "project",
    "composing",
    "help_page",
    "answers",
    "instrument",
    "analysis",
    "tools",
    "command",
    "sweep",
]
SCRIPTS_MAY_IMPORT = {"command"}


def imported(path: Path, *, only_at_once: bool = False) -> Iterator[str]:
    """The modules that a file imports; `only_at_once` leaves out what a function imports when it is called."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if only_at_once and id(node) in later:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: a relative import"
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def part(module: str) -> str:
    """The second word of a module of ours: a file, or a folder with all that is in it."""
    return module.split(".")[1] if "." in module else "__init__"


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "tunelab"


def test_the_table_of_arrows_has_every_part() -> None:
    assert set(ARROWS) == {part(module) for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_a_part_imports_only_what_the_arrows_allow(module: str) -> None:
    here = part(module)
    ours, others = ARROWS[here]
    found = set(imported(MODULES[module]))
    assert {part(m) for m in found if is_ours(m)} - {here} - EVERYWHERE <= ours
    assert {m.split(".")[0] for m in found if not is_ours(m)} - FREE <= others


def test_no_arrow_of_the_table_is_unused() -> None:
    used: dict[str, set[str]] = {name: set() for name in ARROWS}
    packages: dict[str, set[str]] = {name: set() for name in ARROWS}
    for module, path in MODULES.items():
        for other in imported(path):
            (used if is_ours(other) else packages)[part(module)].add(
                part(other) if is_ours(other) else other.split(".")[0]
            )
    for name, (ours, others) in ARROWS.items():
        assert ours - used[name] == set(), name
        assert others - packages[name] == set(), name


@pytest.mark.parametrize("module", [m for m in MODULES if m.count(".") == 2 and part(m) not in PROGRAMS])
def test_files_of_a_package_share_only_what_is_meant_for_it(module: str) -> None:
    package = part(module)
    siblings = {
        m.split(".")[2] for m in imported(MODULES[module]) if is_ours(m) and part(m) == package and "." in m[8:]
    }
    assert siblings <= SHARED.get(package, set())


def test_no_module_imports_itself_through_others() -> None:
    graph = {}
    for module, path in MODULES.items():
        if module == "tunelab":
            continue  # it hands out `main` and `load` when they are asked for
        graph[module] = {m for m in imported(path) if m in MODULES and m not in ("tunelab", module)}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises a CycleError that names the cycle
    assert set(order) == set(graph)


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_what_answers_a_command_line_imports_no_torch_even_through_others(name: str) -> None:
    heavy = {"torch", "lightning", "torchmetrics", "pandas", "sklearn"}
    seen: set[str] = set()
    waiting = [f"tunelab.{name}", "tunelab"]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for other in imported(MODULES[module], only_at_once=True):
            assert other.split(".")[0] not in heavy, f"{module} imports {other}"
            if other in MODULES:
                waiting.append(other)


def test_they_do_not_in_a_new_python_either() -> None:
    names = ", ".join(f"tunelab.{name}" for name in WITHOUT_TORCH)
    code = f"import sys, {names}; print(sorted({{'torch', 'lightning', 'pandas', 'sklearn'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "path", [*sorted((REPOSITORY / "scripts").glob("*.py")), REPOSITORY / "train.py"], ids=lambda p: p.name
)
def test_a_script_is_thin_and_starts_without_torch(path: Path) -> None:
    at_once = set(imported(path, only_at_once=True))
    assert {part(m) for m in imported(path) if is_ours(m)} <= SCRIPTS_MAY_IMPORT
    assert {m.split(".")[0] for m in at_once if not is_ours(m)} - set(sys.stdlib_module_names) <= {"omegaconf"}
    assert {part(m) for m in at_once if is_ours(m)} <= set(WITHOUT_TORCH)


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "hydra_plugins").glob("*.py")), ids=lambda p: p.name)
def test_a_plugin_imports_nothing_but_hydra_and_where_the_catalogue_is(path: Path) -> None:
    assert {m.split(".")[0] for m in imported(path)} - FREE <= {"hydra", "omegaconf", "tunelab"}
    assert {m for m in imported(path, only_at_once=True) if is_ours(m)} <= {"tunelab"}


def test_instantiate_has_one_caller_for_a_run_and_one_for_a_search() -> None:
    calls = [
        str(path.relative_to(REPOSITORY))
        for path in OURS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "instantiate"
    ]
    assert sorted(calls) == ["src/tunelab/fitting.py", "src/tunelab/sweep/building.py"]


# ---- small and flat


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_file_and_no_function_is_too_long(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > 60
    ]
    assert long == []


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_file_is_named_for_what_is_in_it_and_opens_with_a_sentence(path: Path) -> None:
    words = set(path.relative_to(REPOSITORY).with_suffix("").parts) | set(path.stem.split("_"))
    assert words & {"utils", "util", "helpers", "helper", "common", "misc", "core", "base", "manager"} == set()
    opening = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert len(opening.split()) >= 3, "no opening sentence"
