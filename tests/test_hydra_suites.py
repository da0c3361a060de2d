"""Hydra's own suites for sweepers and launchers, run on `hydra/sweeper=tunelab` with its basic launcher."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.extra.pytest_plugin import hydra_restore_singletons, hydra_sweep_runner  # noqa: F401  # fixtures
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

Plugins.instance()  # whose options are registered once, when they are found, and not again in restored singletons

OURS = "hydra/sweeper=tunelab"

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")


@pytest.mark.slow
@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", [OURS])])
class TestEverySweep(LauncherTestSuite):
    """What any launcher has to do under this sweeper."""


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("basic", [OURS, "hydra.sweeper.sweep={n_jobs:2}"])], ids=["two at once"]
)
class TestBatches(BatchedSweeperTestSuite):
    """A grid of six trials, two at once."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({"defaults": [{"override hydra/sweeper": "tunelab"}]}, ["-m"])], ids=["-m"]
)
class TestApps(IntegrationTestSuite):
    """Apps of their own, in processes of their own."""

    @pytest.mark.skip(reason="types one command twice in one folder; here the second goes on with what the first left")
    def test_to_absolute_path_multirun(self, task_launcher_cfg: Any, extra_flags: Any) -> None: ...


def test_nothing_else_of_the_suites_is_left_out() -> None:
    suites: list[tuple[Any, Any]] = [
        (TestEverySweep, LauncherTestSuite),
        (TestBatches, BatchedSweeperTestSuite),
        (TestApps, IntegrationTestSuite),
    ]
    for ours, theirs in suites:
        tests = [name for name in vars(theirs) if name.startswith("test_")]
        left_out = [name for name in tests if getattr(ours, name) is not getattr(theirs, name)]
        assert left_out == (["test_to_absolute_path_multirun"] if ours is TestApps else [])


APP = """
import hydra

@hydra.main(config_path=None)
def app(cfg):
    return float(cfg.x)

app()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["+sweep=grid", "+x=interval(0,1)"], "`sweep=grid` needs finite choices, but x is interval(0,1)."),
        (["+sweep.n_jobs=0", "+x=1,2"], "`sweep.n_jobs` must be at least 1, got 0."),
        (["+sweep.n_trails=5", "+x=1,2"], "got n_trails. Did you mean n_trials?"),
    ],
    ids=["grid", "n_jobs", "n_trails"],
)
def test_another_app_hears_of_a_mistake_in_words(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    command = [sys.executable, "app.py", "-m", OURS, *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
