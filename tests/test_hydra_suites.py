"""Hydra's own suites for sweepers and launchers, run on `hydra/sweeper=tunelab` with its basic launcher."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.extra.pytest_plugin import hydra_restore_singletons, hydra_sweep_runner  # noqa: F401  # fixtures
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

Plugins.instance()  # whose options are registered once, when they are found, and not again in restored singletons

OURS = "hydra/sweeper=tunelab"

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")


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


def test_nothing_of_the_suites_is_left_out() -> None:
    suites: list[tuple[Any, Any]] = [
        (TestEverySweep, LauncherTestSuite),
        (TestBatches, BatchedSweeperTestSuite),
        (TestApps, IntegrationTestSuite),
    ]
    for ours, theirs in suites:
        tests = [name for name in vars(theirs) if name.startswith("test_")]
        assert all(getattr(ours, name) is getattr(theirs, name) for name in tests)
