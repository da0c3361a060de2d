"""The sweeper behind `-m`, as Hydra finds it; what it does is in tunelab.sweep."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write


class TunelabSweeper(Sweeper):
    """Searches over the overrides of a command line.

    It serves any app, with the defaults where its config has no `sweep`: `python app.py -m hydra/sweeper=tunelab
    x=1,2`. To have it otherwise, add to it: `+sweep=tpe +sweep.n_trials=50`.

    Args:
        sweep: How: conf/sweep and the dials beside it.
        pruner: When a trial is hopeless: conf/pruner.
    """

    config: DictConfig
    hydra_context: HydraContext

    def __init__(self, sweep: DictConfig | None = None, pruner: DictConfig | None = None) -> None:
        self.sweep_cfg, self.pruner_cfg = sweep, pruner

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        from tunelab.schema import Sweep  # Hydra imports its plugins at each start
        from tunelab.sweep import search
        from tunelab.sweep.launcher import launch, runs_here
        from tunelab.sweep.plan import NO_PRUNER

        master = self.config.copy()
        with read_write(master), open_dict(master):
            master.sweep = OmegaConf.merge(Sweep.model_validate({}).model_dump(), self.sweep_cfg or {})
            master.pruner = self.pruner_cfg or dict(NO_PRUNER)
        if runs_here(master, self.task_function):
            return search(arguments, master, self.hydra_context.config_loader)
        return launch(arguments, master, self.hydra_context, self.task_function)
