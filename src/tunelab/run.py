"""From a recipe to a result: prepares, fits, scores, records."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig

from tunelab import ranks
from tunelab.callbacks import Checkpoint as OwnCheckpoint
from tunelab.callbacks import Clock, Facts, Interrupted, Interrupts, MembersFile, NotFiniteError, Objective, noticed
from tunelab.checkpoints import disk_full_in_words, epochs_done, read_checkpoint
from tunelab.ends import ended_by, still_ends
from tunelab.errors import ConfigError, RunFailed
from tunelab.fitting import build, build_trainer, fit_aside, parts
from tunelab.folder import RunFolder, write_json
from tunelab.lean import NoProfiler
from tunelab.loop import EpochLoop
from tunelab.metrics_csv import METRICS_LINES, Csv
from tunelab.opening import Opening
from tunelab.prepare import check_devices, complete, prepare_process
from tunelab.record import Start, record
from tunelab.replay import explain, newest
from tunelab.same_data import require_same
from tunelab.tuning.lr_run import with_found_lr

log = logging.getLogger("tunelab")


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
    cfg = complete(with_found_lr(cfg, folder, checkpoint) if cfg.get("find_lr") else cfg)
    prepare_process(cfg)
    check_devices(cfg)
    first_step, over, lines = check_resumable(checkpoint, cfg) if checkpoint else (0, False, None)
    data, task = parts(cfg, resumed=checkpoint is not None)
    require_same(cfg, data, lambda: build(cfg.data), folder if checkpoint else None, start.repeated_from)
    objective, clock = Objective(cfg.objective, cfg.objective_direction), Clock()
    leads = ranks.rank() == 0  # the only one that writes
    with disk_full_in_words(folder), Interrupts() as interrupts:
        if leads:
            record(folder, cfg, start)
        with ranks.for_run(cfg, folder, checkpoint):
            # the objective comes first, as others read what it found; the clock last, once the loggers have connected
            own = [objective, Opening(cfg, start, folder, over), Facts(folder), MembersFile(folder)]
            trainer = build_trainer(cfg, folder, [*own, *callbacks, interrupts, clock])
            EpochLoop(trainer, interrupts, cfg.seed)
            with _logging(trainer, first_step if checkpoint and leads else None, lines):
                try:
                    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
                    result = summarise(trainer, task, cfg, objective, clock, first_step)
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
                        write_json(folder / "result.json", summarise(trainer, task, cfg, objective, clock, first_step))
                    raise
                except (NotFiniteError, RuntimeError) as error:
                    interrupts.end_if_received()  # a loader's worker may have been told, too, and have ended first
                    ended = summarise(trainer, task, cfg, objective, clock, first_step)
                    raise diverged(noticed(error, trainer), cfg, folder, checkpoint, interrupts, ended) from None
    return result


@contextmanager
def _logging(trainer: Trainer, resumed_at: int | None, lines: int | None) -> Iterator[None]:
    """Has the loggers go on at the step of a resume, and behind so many lines of metrics.csv, and ends their files."""
    if resumed_at is not None:
        for logger in trainer.loggers:
            if isinstance(logger, Csv):
                logger.resume_from(resumed_at, lines)
            elif hasattr(logger, "resume_from"):
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

    def fit_again(callbacks: list[Callback], start: Path | None) -> None:
        fit_aside(cfg, folder, callbacks, interrupts, checkpoint=start)

    message = explain(error, cfg, fit_again, newest(folder, checkpoint, error))
    write_json(folder / "result.json", {**result, "status": "diverged", "message": message})
    return RunFailed(message)


def check_resumable(checkpoint: Path, cfg: DictConfig) -> tuple[int, bool, int | None]:
    """Where a run is taken up again.

    Returns:
        The step at which the checkpoint was written, whether nothing but the test score is missing, and how many lines
        metrics.csv had, where the checkpoint says so.

    Raises:
        ConfigError: If it is damaged, or nothing of the recipe is left to do after it.
    """
    content = read_checkpoint(checkpoint, "resume")
    step, done, lines = int(content["global_step"]), epochs_done(content), content.get(METRICS_LINES)
    result = RunFolder(checkpoint.parent.parent).last_result
    limit = result.get("ended_by")
    all_steps = 0 < (cfg.trainer.get("max_steps") or -1) <= step
    ended = (
        result.get("status") == "finished"
        and result.get("steps") == step
        and result.get("epochs_asked") == cfg.epochs
        and still_ends(limit, cfg)
    )
    trained = done == cfg.epochs or all_steps
    unsaid = trained and not result  # killed between its last step and its result
    if unsaid or (cfg.test and not result.get("test") and (ended or trained)):
        return step, True, lines
    if all_steps:
        raise ConfigError(
            f"`trainer.max_steps` must be more than the {step} that the run has behind it, got "
            f"{cfg.trainer.max_steps}. Try trainer.max_steps={2 * step}."
        )
    if ended:
        early = f" of {cfg.epochs}, as {limit or 'early stopping'} had it" if done < cfg.epochs else ""
        more = "trainer.max_time=<longer>" if str(limit).startswith("trainer.max_time") else f"epochs={2 * cfg.epochs}"
        raise ConfigError(
            f"`resume` must have something left to do, but the run has ended after {done} epochs{early}. "
            f"To go on, add {more}."
        )
    if done >= cfg.epochs:
        raise ConfigError(
            f"`epochs` must be more than the {done} that the run has behind it, got {cfg.epochs}. "
            f"Try epochs={2 * done}."
        )
    return step, False, lines


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
    if not is_overridden("test_step", task):
        log.info("The test set is not scored: %s has no test_step.", type(task).__name__)
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
    trainer: Trainer, task: LightningModule, cfg: DictConfig, objective: Objective, clock: Clock, first_step: int
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
        "ended_by": ended_by(trainer, cfg),
        "validations": objective.validations,
        "steps": trainer.global_step,
        "resumed_at": first_step,
        "seconds": round(clock.seconds, 3),
        "samples_per_second": round(clock.samples / clock.seconds) if clock.samples else None,
        "parameters": sum(p.numel() for p in task.parameters() if p.requires_grad),
        "val_examples": objective.examples,
        **({"not_logged": failures} if (failures := getattr(trainer, "not_logged", None)) else {}),
    }
