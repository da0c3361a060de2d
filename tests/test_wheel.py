"""The built wheel, installed outside the repository: a project in a folder with a space trains, sweeps and is used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from test_command import GROUPS, REPOSITORY, options

from tunelab import project, tools

pytestmark = pytest.mark.slow

DEPENDENCIES = next(p for p in map(Path, sys.path) if p.name == "site-packages" and (p / "torch").is_dir())
WHERE = """
import tunelab, hydra_plugins.tunelab_search_path as plugin
for path in (tunelab.__file__, tunelab.conf_folder(), plugin.__file__):
    print(path)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built by what is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, *command, "--wheel-dir", str(folder), str(REPOSITORY)], check=True)
    (built,) = folder.glob("tunelab-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new Python's bin/, with tunelab from the wheel and everything else from where it is installed already."""
    folder = tmp_path_factory.mktemp("a python") / "env"
    venv.create(folder)
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "dependencies.pth").write_text(f"{DEPENDENCIES}\n")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", "--no-compile", str(wheel)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, *install], check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def typed(environment: Path) -> Callable[..., str]:
    """typed(folder, program, *words): what a command of the new Python prints; it must succeed."""

    def run(folder: Path, program: str, *words: str, code: int = 0) -> str:
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TUNELAB_TRUST")}
        clean["PATH"] = f"{environment}{os.pathsep}{clean['PATH']}"
        clean["OMP_NUM_THREADS"] = "1"
        done = subprocess.run(
            [str(environment / program), *words], cwd=folder, env=clean, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def mine(typed: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project, made by the installed command in a folder with a space."""
    folder = tmp_path_factory.mktemp("some where")
    assert "python train.py experiment=first" in typed(folder, "tunelab", "new", "my project")
    return folder / "my project"


def test_the_wheel_has_the_catalogue_the_plugin_the_template_and_the_tools(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    catalogue = {f"tunelab/{p.relative_to(REPOSITORY)}" for p in (REPOSITORY / "conf").rglob("*.yaml")}
    template = {f"tunelab/{p.relative_to(REPOSITORY / 'src' / 'tunelab')}" for p in project.files()}
    modules = {str(p.relative_to(REPOSITORY / "src")) for p in (REPOSITORY / "src").rglob("*.py")}
    assert catalogue | template | modules <= inside
    assert {f"tunelab/tools/{name}.py" for name in tools.names()} <= inside
    assert [name for name in inside if name.startswith(("tests/", "scripts/", "hydra_plugins/__init__"))] == []


def test_it_is_the_wheel_that_runs(mine: Path, typed: Callable[..., str], environment: Path) -> None:
    found = typed(mine, "python", "-c", WHERE).splitlines()
    assert len(found) == 3
    for path in found:
        assert path.startswith(f"{environment.parent}/lib/")


def test_its_help_lists_every_group_with_every_option_and_those_of_ones_own(
    mine: Path, typed: Callable[..., str]
) -> None:
    for command in (("python", "train.py"), ("tunelab",)):
        lines = [line.replace("*", "").split() for line in typed(mine, *command, "--help").splitlines()]
        for group in GROUPS:
            own = [p.stem for p in (mine / "conf" / group).glob("*.yaml")] if command[-1] == "train.py" else []
            assert [group, *sorted([*options(group), *own])] in lines


def test_a_project_trains_is_scored_predicts_and_resumes(mine: Path, typed: Callable[..., str]) -> None:
    said = typed(mine, "python", "train.py", "experiment=first", "epochs=2", "hydra.run.dir=a run")
    reported = json.loads((mine / "a run" / "result.json").read_text())["test"]
    assert reported["test/accuracy"] > 0.6
    assert "circle · net small, 642 parameters · sign_descent lr 0.02" in said
    again = typed(mine, "python", "train.py", "evaluate", "run=a run")
    assert f"{reported['test/accuracy']:.4f}   (the run reported {reported['test/accuracy']:.4f})" in again
    (mine / "new points.csv").write_text("x,y\n0.1,0.2\n")
    assert "1 predictions in new points-predictions.csv" in typed(
        mine, *("python", "train.py", "predict", "run=a run", "input=new points.csv")
    )
    assert "epoch 3/3" in typed(mine, "python", "train.py", "resume=a run", "epochs=3")


def test_own_parts_and_ours_go_together_one_by_one_and_in_a_sweep(mine: Path, typed: Callable[..., str]) -> None:
    own = ("data=circle", "model=net", "loss=brier", "callbacks=[checkpoint,weight_norm]", "epochs=1")
    typed(mine, "python", "train.py", "-m", *own, "optimizer=sign_descent,adamw", "hydra.sweep.dir=sweep")
    found = [json.loads(path.read_text())["choices"] for path in sorted(mine.glob("sweep/*/run.json"))]
    assert [(c["optimizer"], c["model"], c["scheduler"]) for c in found] == [
        ("sign_descent", "net", "cosine"),
        ("adamw", "net", "cosine"),
    ]


def test_a_run_loads_in_python_once_its_package_is_trusted(mine: Path, typed: Callable[..., str]) -> None:
    typed(mine, "python", "train.py", "experiment=first", "epochs=1", "hydra.run.dir=loaded", "test=false")
    load = "print(tunelab.load('loaded').predict([[0.1, 0.2]]).columns.tolist())"
    told = typed(mine, "python", "-c", f"import tunelab; tunelab.trust('my_project'); {load}")
    assert told == "['prediction', 'p(outside)', 'p(inside)']\n"


def test_a_mistake_is_answered_in_words(mine: Path, typed: Callable[..., str]) -> None:
    text = typed(mine, "python", "train.py", "optimizer=sign_desent", code=2)
    assert re.search(r"got sign_desent\. Did you mean sign_descent", text)


def test_the_projects_own_test_passes(mine: Path, typed: Callable[..., str]) -> None:
    assert "1 passed" in typed(mine, "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hydra_pytest")


def test_the_command_alone_trains_anywhere(tmp_path: Path, typed: Callable[..., str]) -> None:
    typed(tmp_path, "tunelab", "data=breast_cancer", "size=tiny", "epochs=1", "hydra.run.dir=run")
    accuracy = json.loads((tmp_path / "run" / "result.json").read_text())["test"]["test/accuracy"]
    assert f"{accuracy:.4f}   (the run reported {accuracy:.4f})" in typed(tmp_path, "tunelab", "evaluate", "run=run")
