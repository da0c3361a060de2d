"""What comes before a run: open values filled in, devices there, the process set up."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from hydra.utils import get_class
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf, open_dict

from tunelab.aliases import taken_over
from tunelab.config import plain
from tunelab.errors import ConfigError

DEFAULT_THREADS = torch.get_num_threads()
"""The physical cores, or what OMP_NUM_THREADS says: what torch began with, before any run of this process."""


def check_devices(cfg: DictConfig) -> None:
    """Refuses more GPUs than there are, and what only they can do.

    Raises:
        ConfigError: With the trainer to choose instead.
    """
    accelerator, wanted, there = cfg.trainer.accelerator, cfg.trainer.devices, torch.cuda.device_count()
    if accelerator == "gpu" and not there:
        chosen = "fsdp" if cfg.trainer.get("strategy") == "fsdp" else "gpu"
        instead = "trainer=ddp trainer.accelerator=cpu" if wanted > 1 else "trainer=cpu"
        raise ConfigError(f"`trainer={chosen}` must have a GPU that PyTorch can use, but there is none. Try {instead}.")
    if there and accelerator != "cpu" and wanted > there:
        raise ConfigError(
            f"`trainer.devices` must be at most the {there} GPUs of this machine, got {wanted}. "
            f"Try trainer.devices={there}."
        )
    if cfg.trainer.precision == "16-mixed" and (accelerator == "cpu" or not there):
        raise ConfigError(
            "`trainer.precision` must not be 16-mixed on a CPU, where it would be bf16-mixed without a word. "
            "Try trainer.precision=bf16-mixed."
        )


def complete(cfg: DictConfig) -> DictConfig:
    """A copy with every value that was left open filled in, so that the record is whole."""
    cfg = cfg.copy()
    with open_dict(cfg):
        for key, value in taken_over(plain(cfg, resolve=False)).items():
            OmegaConf.update(cfg, key, value)
        cfg.threads = cfg.threads or DEFAULT_THREADS
        cfg.objective_direction = cfg.objective_direction or direction(cfg)
        cfg.repeat = cfg.resume = None
        for part, key in (("data", "path"), ("data", "val_path"), ("data", "test_path"), ("init", "path")):
            named = cfg[part].get(key)
            if named and Path(named).expanduser().exists():  # a record must hold wherever it is read
                cfg[part][key] = str(Path(named).expanduser().absolute())
    OmegaConf.resolve(cfg)
    return cfg


def direction(cfg: DictConfig) -> str:
    """Whether to `minimize` or `maximize` the objective: what its metric says of itself.

    Raises:
        ConfigError: If it does not say.
    """
    name = cfg.objective.split("/")[-1]
    if name == "loss":
        return "minimize"
    target = OmegaConf.select(cfg.task, f"metrics.{name}._target_")
    higher = getattr(get_class(target), "higher_is_better", None) if target else None
    if higher is None:
        raise ConfigError(
            f"`objective_direction` must be given for {cfg.objective}, which does not say whether more is better. "
            "Write objective_direction=minimize or objective_direction=maximize."
        )
    return "maximize" if higher else "minimize"


def prepare_process(cfg: DictConfig) -> None:
    """Threads, seeds and determinism, which belong to the process and not to an object."""
    torch.set_num_threads(max(1, cfg.threads // cfg.trainer.devices))  # which the ranks share
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if cfg.compile:
        torch.compiler.reset()  # what the jobs of a sweep before this one compiled counts towards a limit
    quiet_lightning()
    seed_everything(cfg.seed, verbose=False)


def quiet_lightning() -> None:
    """One voice: Lightning's tips and its own handler off, and its warnings about what we do on purpose."""
    logging.getLogger("lightning").handlers.clear()
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "The number of training batches",  # fewer than the logging interval: we write at the end of each epoch too
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's own use of torch
        "Total length of `list` across ranks is zero",  # data without a validation part
        ".*exists and is not empty",  # checkpoints of the run that is resumed
        "You're resuming from a checkpoint that ended before the epoch ended",  # our loop finds its place again
        "Detected call of `lr_scheduler.step\\(\\)` before",  # a scaler may skip the first steps of float16
        "It is recommended to use .*sync_dist=True",  # torchmetrics has brought the ranks together
    ):
        warnings.filterwarnings("ignore", message)
