"""From a config to a result: builds data, task and trainer, fits, scores, records. The only caller of instantiate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig, OmegaConf

from tunelab import ranks
from tunelab.callbacks import Checkpoint as OwnCheckpoint
from tunelab.callbacks import Clock, Interrupted, Interrupts, NotFiniteError, Objective, Progress, noticed
from tunelab.checkpoints import AtomicCheckpointIO, disk_full_in_words, epochs_done, read_checkpoint
from tunelab.errors import ConfigError, RunFailed, unexpected
from tunelab.folder import RunFolder, write_json
from tunelab.lean import NoProfiler
from tunelab.loop import EpochLoop
from tunelab.opening import Opening
from tunelab.prepare import check_devices, complete, prepare_process
from tunelab.record import Start, record
from tunelab.replay import explain, newest, without_traces
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


def train(
    cfg: DictConfig, folder: Path, start: Start, *, checkpoint: Path | None = None, callbacks: Sequence[Callback] = ()
) -> dict[str, Any]:
    """Runs a recipe and leaves a complete folder behind.

    Args:
        cfg: A validated recipe.
        folder: The run's folder, which exists.
        start: How it was asked for.
        checkpoint: Where to resume from; None to begin anew.
        callbacks: Beside those of every run and those of the recipe; one with a true `pruned` has ended the run.

    Returns:
        What result.json holds.

    Raises:
        ConfigError: If the data or the model does not allow it, before the first step.
        RunFailed: If its loss became NaN or Inf, or the disk is full.
        SystemExit: With code 130 if the user interrupted it, 143 if it was told to end.
    """
    cfg = complete(cfg)
    prepare_process(cfg)
    check_devices(cfg)
    first_step, over = check_resumable(checkpoint, cfg) if checkpoint else (0, False)

    data, task = build(cfg.data), build(_resumed(cfg.task) if checkpoint else cfg.task)
    objective, clock = Objective(cfg.objective, cfg.objective_direction), Clock()
    leads = ranks.rank() == 0  # the only one that writes
    with disk_full_in_words(folder), Interrupts() as interrupts:
        if leads:
            record(folder, cfg, start)
        with ranks.for_run(cfg, folder, checkpoint):
            # the objective comes first, as others read what it found; the clock last, once the loggers have connected
            opening = Opening(cfg, start, folder, over)
            trainer = build_trainer(cfg, folder, [objective, opening, *callbacks, interrupts, clock])
            EpochLoop(trainer, interrupts, cfg.seed)
            with _logging(trainer, first_step if checkpoint and leads else None):
                try:
                    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
                    result = summarise(trainer, task, objective, clock, first_step)
                    if any(getattr(callback, "pruned", False) for callback in callbacks):
                        result["status"] = "pruned"
                    if leads:
                        write_json(folder / "result.json", result)
                    interrupts.end_if_received()
                    if cfg.test:
                        trainer.profiler = NoProfiler()  # type: ignore[attr-defined]  # asked about is the fit
                        result["test"] = score(trainer, task, data, best_checkpoint(trainer))
                        if leads:
                            write_json(folder / "result.json", result)
                except Interrupted:
                    if leads and trainer.state.status == TrainerStatus.INTERRUPTED and trainer.state.fn == "fit":
                        write_json(folder / "result.json", summarise(trainer, task, objective, clock, first_step))
                    raise
                except (NotFiniteError, RuntimeError) as error:
                    interrupts.end_if_received()  # a loader's worker may have been told, too, and have ended first
                    ended = summarise(trainer, task, objective, clock, first_step)
                    raise diverged(noticed(error, trainer), cfg, folder, checkpoint, interrupts, ended) from None
    return result


@contextmanager
def _logging(trainer: Trainer, resumed_at: int | None) -> Iterator[None]:
    """Has the loggers go on at the step of a resume, and ends their files."""
    for logger in trainer.loggers if resumed_at is not None else []:
        if hasattr(logger, "resume_from"):
            logger.resume_from(resumed_at)
    try:
        yield
    finally:
        for logger in trainer.loggers:
            if hasattr(logger, "close"):
                logger.close()


def diverged(
    error: NotFiniteError,
    cfg: DictConfig,
    folder: Path,
    checkpoint: Path | None,
    interrupts: Interrupts,
    result: dict[str, Any],
) -> RunFailed:
    """What a run ends with whose loss became NaN or Inf: where it began, which is recorded, too.

    Args:
        error: How it was noticed.
        cfg: The completed recipe.
        folder: The run's folder.
        checkpoint: What it was resumed from.
        interrupts: Whether the run was told to end.
        result: What it has reached.
    """
    if ranks.rank() != 0:  # which says it
        raise SystemExit(1) from None
    write_json(folder / "result.json", {**result, "status": "diverged", "message": str(error)})
    message = explain(error, cfg, partial(fit_again, cfg, folder, interrupts), newest(folder, checkpoint, error))
    write_json(folder / "result.json", {**result, "status": "diverged", "message": message})
    return RunFailed(message)


def fit_again(
    cfg: DictConfig, folder: Path, interrupts: Interrupts, callbacks: list[Callback], checkpoint: Path | None
) -> None:
    """Makes the same fit once more, step by step the same, without writing anything.

    Args:
        cfg: The completed recipe.
        folder: The run's folder.
        interrupts: Whether the run was told to end.
        callbacks: Those that look on.
        checkpoint: Where it begins; None for the beginning.
    """
    cfg = without_traces(cfg)
    prepare_process(cfg)
    data, task = build(cfg.data), build(_resumed(cfg.task) if checkpoint else cfg.task)
    trainer = build_trainer(cfg, folder, [Objective(cfg.objective, cfg.objective_direction), *callbacks])
    EpochLoop(trainer, interrupts, cfg.seed)
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)


def _resumed(task: DictConfig) -> DictConfig:
    """The task of a run whose weights come from its checkpoint: what they began with may be gone."""
    parts = dict(task)
    if "init" in parts:
        parts["init"] = {"_target_": "tunelab.inits.default", "_partial_": True}
    return OmegaConf.create(parts)  # apart from the recipe, from which instantiate would take the old keys again


def check_resumable(checkpoint: Path, cfg: DictConfig) -> tuple[int, bool]:
    """Where a run is taken up again.

    Returns:
        The step at which the checkpoint was written, and whether nothing but the test score is missing.

    Raises:
        ConfigError: If it is damaged, or nothing of the recipe is left to do after it.
    """
    content = read_checkpoint(checkpoint, "resume")
    step, done = int(content["global_step"]), epochs_done(content)
    result = RunFolder(checkpoint.parent.parent).last_result
    ended = (
        result.get("status") == "finished" and result.get("steps") == step and result.get("epochs_asked") == cfg.epochs
    )
    unsaid = done == cfg.epochs and not result  # killed between its last step and its result
    if unsaid or (cfg.test and not result.get("test") and (ended or done == cfg.epochs)):
        return step, True
    if ended:
        early = f" of {cfg.epochs}, as early stopping had it" if done < cfg.epochs else ""
        raise ConfigError(
            f"`resume` must have something left to do, but the run has ended after {done} epochs{early}. "
            f"To go on, add epochs={2 * cfg.epochs}."
        )
    if done >= cfg.epochs:
        raise ConfigError(
            f"`epochs` must be more than the {done} that the run has behind it, got {cfg.epochs}. "
            f"Try epochs={2 * done}."
        )
    return step, False


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
    trainer: Trainer = build(
        cfg.trainer,
        logger=[build(logger, save_dir=str(folder))() for logger in cfg.logger.values()],
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        profiler=profiler,
        # we start the processes; a cluster's variables would make Lightning think that the cluster has
        plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        default_root_dir=str(folder),
        **QUIET,
        enable_progress_bar=cfg.trainer.enable_progress_bar and ranks.rank() == 0,
    )
    return trainer


QUIET = {"num_sanity_val_steps": 0, "enable_model_summary": False}
"""Our own opening line says what Lightning's summary would; a mistake in validation shows after one epoch."""


def best_checkpoint(trainer: Trainer) -> str | None:
    """The checkpoint that the objective chose, or None for the weights as they are."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    kept = sorted((c for c in callbacks if isinstance(c, Checkpoint)), key=lambda c: not isinstance(c, OwnCheckpoint))
    return (getattr(kept[0], "best_model_path", None) or None) if kept else None


def score(
    trainer: Trainer, task: LightningModule, data: LightningDataModule, checkpoint: str | None
) -> dict[str, float] | None:
    """The test metrics, or None if the data has no test part."""
    data.setup("test")
    if not has_examples(data, "test"):
        return None
    trainer.test(task, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def has_examples(data: LightningDataModule, part: str) -> bool:
    """Whether the data has a validation or test part."""
    if not is_overridden(f"{part}_dataloader", data, LightningDataModule):
        return False
    loader = getattr(data, f"{part}_dataloader")()
    return loader is not None and len(loader) > 0


def summarise(
    trainer: Trainer, task: LightningModule, objective: Objective, clock: Clock, first_step: int
) -> dict[str, Any]:
    """What a run ended with, apart from its test score; its time is that from `first_step` on."""
    return {
        "status": "finished" if trainer.state.status == TrainerStatus.FINISHED else "interrupted",
        "objective": {
            "metric": objective.metric,
            "direction": objective.direction,
            "best": objective.best if objective.epoch else None,
            "epoch": objective.epoch,
        },
        "train_loss": getattr(getattr(task, "unwritten", None), "last_mean", None),
        "test": None,
        "epochs": trainer.fit_loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
        "epochs_asked": trainer.max_epochs,
        "steps": trainer.global_step,
        "resumed_at": first_step,
        "seconds": round(clock.seconds, 3),
        "samples_per_second": round(clock.samples / clock.seconds) if clock.samples else None,
        "parameters": sum(p.numel() for p in task.parameters() if p.requires_grad),
        "val_examples": objective.examples,
    }
