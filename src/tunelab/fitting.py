"""A fit: data, task and trainer built from a completed recipe. The only caller of instantiate for a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig, OmegaConf

from tunelab import harmless, ranks
from tunelab.callbacks import Interrupts, Objective, Progress
from tunelab.checkpoints import AtomicCheckpointIO
from tunelab.errors import ConfigError, unexpected
from tunelab.lean import NoProfiler
from tunelab.loop import EpochLoop
from tunelab.prepare import prepare_process
from tunelab.replay import without_traces
from tunelab.whitelist import whitelist


def build(node: Any, **keywords: Any) -> Any:
    """Instantiates a config node, and only targets on the whitelist.

    Raises:
        ConfigError: If the part refuses its arguments.
    """
    from hydra.errors import InstantiationException

    try:
        return instantiate(_alone(node), **keywords, _convert_="all", _execution_whitelist_=whitelist())
    except (InstantiationException, TypeError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        first, *_ = str(cause).splitlines()
        here = node._get_full_key("") or node.get("_target_", "")
        key = str(error).rsplit("full_key: ", 1)[-1] if "full_key: " in str(error) else here
        rule = "be importable" if isinstance(cause, ImportError) else "be given arguments that it takes"
        others = [str(name) for name in node if not str(name).startswith("_")]
        if wrong := unexpected(key, first, others):
            raise ConfigError(wrong) from error
        raise ConfigError(f"`{key}` must {rule}: {first}") from error


def _alone(node: Any) -> Any:
    """A copy of a config node below the keys that lead to it, without the rest: instantiate would copy all of it."""
    if not OmegaConf.is_config(node) or node._get_parent() is None:
        return node
    tree, keys, parent = OmegaConf.to_container(node, resolve=True), [], node
    while parent._get_parent() is not None:
        keys.append(parent._key())
        parent = parent._get_parent()
    if not all(isinstance(key, str) for key in keys) or "${" in str(tree):  # in a list; what would be resolved twice
        return node
    for key in keys:
        tree = {key: tree}
    part: Any = OmegaConf.create(tree)
    for key in reversed(keys):
        part = part[key]
    return part


def build_trainer(cfg: DictConfig, folder: Path, callbacks: list[Callback]) -> Trainer:
    """The trainer of a recipe, with its callbacks, loggers and profiler, all of which write into the run's folder.

    Args:
        cfg: The completed recipe.
        folder: The run's folder.
        callbacks: Those of the run itself, an `Objective` first; the recipe's come after them.
    """
    if cfg.trainer.enable_progress_bar and ranks.rank() == 0:
        callbacks = [*callbacks, Progress(next(c for c in callbacks if isinstance(c, Objective)))]
    callbacks = [*callbacks, *(build(callback) for callback in cfg.callbacks.values())]
    profiler = build(cfg.profiler)
    if profiler is None:
        profiler = NoProfiler()
    else:
        profiler.dirpath = folder
    not_logged: dict[str, str] = {}
    made = (harmless.made(n, build(c, save_dir=str(folder), _partial_=True), not_logged) for n, c in cfg.logger.items())
    loggers = [logger for logger in made if logger is not None]
    trainer: Trainer = build(
        cfg.trainer,
        logger=loggers,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        profiler=profiler,
        # we start the processes; a cluster's variables would make Lightning think that the cluster has
        plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        default_root_dir=str(folder),
        **QUIET,
        enable_progress_bar=cfg.trainer.enable_progress_bar and ranks.rank() == 0,
    )
    trainer.not_logged = not_logged  # type: ignore[attr-defined]  # the first failure of each logger
    return trainer


QUIET = {"num_sanity_val_steps": 0, "enable_model_summary": False}
"""Our own opening line says what Lightning's summary would; a mistake in validation shows after one epoch."""


def parts(cfg: DictConfig, *, resumed: bool = False) -> tuple[LightningDataModule, LightningModule]:
    """The data and the task of a completed recipe.

    Args:
        cfg: The recipe.
        resumed: Whether the weights come from a checkpoint: what they began with may be gone.
    """
    task = cfg.task
    if resumed and "init" in task:
        default = {"_target_": "tunelab.inits.default", "_partial_": True}
        # apart from the recipe, from which instantiate would take the old keys again
        task = OmegaConf.create({**task, "init": default})
    return build(cfg.data), build(task)


def fit_aside(
    cfg: DictConfig,
    folder: Path,
    callbacks: Sequence[Callback],
    interrupts: Interrupts,
    *,
    checkpoint: Path | None = None,
) -> Trainer:
    """Makes the steps of a recipe as its run does, without writing or showing anything.

    Args:
        cfg: The completed recipe.
        folder: For what a part insists on writing.
        callbacks: Those that look on, or act.
        interrupts: Whether the process was told to end.
        checkpoint: Where it begins; None for the beginning.

    Raises:
        ConfigError: If the data or the model does not allow it, before the first step.
    """
    cfg = without_traces(cfg)
    prepare_process(cfg)
    data, task = parts(cfg, resumed=checkpoint is not None)
    trainer = build_trainer(cfg, folder, [Objective(cfg.objective, cfg.objective_direction), *callbacks])
    EpochLoop(trainer, interrupts, cfg.seed)
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer
