"""The sweeper behind `-m`, as Hydra finds it; what it does is in tunelab.sweep."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class TunelabSweeper(Sweeper):
    """Searches over the overrides of a command line.

    Args:
        sweep: How: conf/sweep and the dials beside it.
        pruner: When a trial is hopeless: conf/pruner.
    """

    config: DictConfig

    def __init__(self, sweep: DictConfig, pruner: DictConfig) -> None:
        self.sweep_cfg, self.pruner_cfg = sweep, pruner

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.task_function, self.config = hydra_context.config_loader, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        from tunelab.sweep import search  # Hydra imports its plugins at each start

        return search(arguments, self.config, self.loader)
