"""Trains one contender of step_overhead.py in this process, and leaves what its clock says.

    python benchmarks/step_contenders.py bare --model mlp --epochs 40 --folder FOLDER

The files of the run lie in FOLDER/run, the times in FOLDER/measured.json: microseconds per step from the end of the
first epoch to the end of the last, on the wall (`wall`) and of the processor, all threads together (`cpu`).
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from tunelab import conf_folder
from tunelab.config import recipe_of, validate
from tunelab.data import BundledData
from tunelab.data.memory import EpochOrder, MemoryLoader
from tunelab.models import CNN, MLP, ResNet
from tunelab.record import Start
from tunelab.run import train

WIDTH = 128
DEPTH = {"mlp": 1, "cnn": 2, "resnet": 2}  # the last two: size=small
BATCH_SIZE, LR, SEED = 64, 1e-3, 0
MOST_LOSS = 0.5  # cross-entropy in nats over the training part; untrained it is ln 10 = 2.3

Batch = tuple[Tensor, Tensor]


@cache
def digits() -> BundledData:
    """The data of every contender: the same split and the same scaling that tunelab's own run makes."""
    split = {"val_fraction": 0.1, "test_fraction": 0.1, "split_seed": 0}
    data = BundledData("digits", batch_size=BATCH_SIZE, shuffle=True, seed=SEED, **split)
    data.setup("fit")
    return data


def steps_per_epoch() -> int:
    """Batches of an epoch, of which the last is smaller."""
    return len(digits().train_dataloader())


def make_model(name: str) -> nn.Module:
    """The model of every contender, untrained."""
    makers: dict[str, Callable[..., nn.Module]] = {"mlp": MLP, "cnn": CNN, "resnet": ResNet}
    return makers[name]((1, 8, 8), 10, width=WIDTH, depth=DEPTH[name], activation=nn.ReLU)


@dataclass
class Clock:
    """Takes the time at the end of each epoch, and the loss over the training part at the end of the last."""

    epochs: int
    ends: list[tuple[float, float]] = field(default_factory=list)  # on the wall, and of the processor
    loss: float = float("nan")
    steps: int = 0

    def end_epoch(self, model: nn.Module, steps: int) -> None:
        """Call it after everything that belongs to an epoch."""
        self.ends.append((time.perf_counter(), time.process_time()))
        if len(self.ends) == self.epochs:
            self.steps = steps
            inputs, targets = digits().parts["train"]
            training = model.training
            with torch.no_grad():
                self.loss = F.cross_entropy(model.eval()(inputs), targets).item()
            model.train(training)

    @property
    def microseconds_per_step(self) -> dict[str, float]:
        """The means over all epochs but the first."""
        steps = (self.epochs - 1) * steps_per_epoch()
        both = zip(("wall", "cpu"), self.ends[0], self.ends[-1], strict=True)
        return {clock: (end - begin) * 1e6 / steps for clock, begin, end in both}

    def watch_lightning(self) -> None:
        """Ends an epoch where Lightning does, after every hook; a callback would add to each step."""
        end = _FitLoop.on_advance_end

        def end_and_tell(loop: _FitLoop) -> None:
            end(loop)
            self.end_epoch(loop.trainer.lightning_module, loop.trainer.global_step)

        _FitLoop.on_advance_end = end_and_tell  # type: ignore[assignment, method-assign]


def train_bare(model_name: str, clock: Clock, folder: Path, *, fused: bool | None = None) -> None:
    """The loop that a user writes without any framework, the data in memory."""
    inputs, targets = digits().parts["train"]
    model = make_model(model_name)
    optimizer = AdamW(model.parameters(), lr=LR, fused=fused)
    steps = 0
    for _ in range(clock.epochs):
        for indices in torch.randperm(len(inputs)).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs[indices]), targets[indices])
            loss.backward()
            optimizer.step()
            steps += 1
        clock.end_epoch(model, steps)


class Lean(LightningModule):
    """As little as Lightning needs."""

    def __init__(self, model: nn.Module, *, fused: bool | None = None) -> None:
        super().__init__()
        self.model, self.fused = model, fused

    def forward(self, inputs: Tensor) -> Any:
        return self.model(inputs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return F.cross_entropy(self(inputs), targets)

    def configure_optimizers(self) -> Any:
        return AdamW(self.parameters(), lr=LR, fused=self.fused)


class Ordinary(Lean):
    """As Lightning's own examples are written: everything of interest goes through `self.log`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.val_accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, targets = batch
        outputs = self(inputs)
        self.val_accuracy(outputs, targets)
        self.log("val/loss", F.cross_entropy(outputs, targets), prog_bar=True)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        parameters = self.model.named_parameters()
        self.log_dict({f"gradients/{name}": p.grad.norm().item() for name, p in parameters if p.grad is not None})

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = CosineAnnealingLR(optimizer, T_max=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_lean(model_name: str, clock: Clock, folder: Path, *, fused: bool | None = None) -> None:
    """Lightning with everything off: its own switch for that, no validation, batches from memory."""
    clock.watch_lightning()
    trainer = Trainer(accelerator="cpu", max_epochs=clock.epochs, barebones=True, limit_val_batches=0)
    inputs, targets = digits().parts["train"]
    loader = MemoryLoader(inputs, targets, BATCH_SIZE, EpochOrder(len(inputs), SEED, shuffle=True))
    trainer.fit(Lean(make_model(model_name), fused=fused), loader)


def train_ordinary(model_name: str, clock: Clock, folder: Path) -> None:
    """Lightning as its documentation shows it, with the progress bar that it chooses."""
    clock.watch_lightning()
    logger = TensorBoardLogger(str(folder), name="", version="")
    checkpoint = ModelCheckpoint(folder / "checkpoints", monitor="val/accuracy", mode="max", save_last=True)
    callbacks = [checkpoint, LearningRateMonitor()]
    trainer = Trainer(accelerator="cpu", max_epochs=clock.epochs, logger=logger, callbacks=callbacks)
    parts = digits().parts
    trainer.fit(
        Ordinary(make_model(model_name)),
        DataLoader(TensorDataset(*parts["train"]), batch_size=BATCH_SIZE, shuffle=True),
        DataLoader(TensorDataset(*parts["val"]), batch_size=BATCH_SIZE),
    )


EVERYTHING_OFF = (
    *("callbacks=[]", "logger=[]", "scheduler=constant", "test=false"),
    *("trainer.enable_progress_bar=false", "trainer.limit_val_batches=0"),
)


def train_tunelab(model_name: str, clock: Clock, folder: Path, *, overrides: Iterable[str] = ()) -> None:
    """What `python train.py` runs, from the composed config to the result."""
    clock.watch_lightning()
    typed = [*asked(model_name, clock.epochs), *overrides]
    cfg = composed(typed)
    choices = {str(group): option for group, option in cfg.hydra.runtime.choices.items()}
    cfg = recipe_of(cfg)
    validate(cfg)
    train(cfg, folder, Start(shlex.join(["python", "train.py", *typed]), typed, choices))


def asked(model_name: str, epochs: int) -> list[str]:
    """The command line of what the other contenders train."""
    return [
        *("name=step_overhead", f"model={model_name}", f"size.width={WIDTH}", f"size.depth={DEPTH[model_name]}"),
        *(f"epochs={epochs}", f"batch_size={BATCH_SIZE}", f"lr={LR}", f"seed={SEED}", "threads=1"),
    ]


def composed(typed: list[str]) -> DictConfig:
    """The recipe that a command line makes, Hydra's own part included."""
    with initialize_config_dir(str(conf_folder()), job_name="train"):
        return compose("train", overrides=typed, return_hydra_config=True)


MONITORS = {"gradients", "updates", "dead_units"}
"""The callbacks that measure in a step what the gradients do."""


def train_unmonitored(model_name: str, clock: Clock, folder: Path, *, but: str = "") -> None:
    """As `train_tunelab` with the defaults, but for the monitors among them; one of them may stay."""
    defaults = [str(name) for name in composed([]).callbacks]
    if missing := MONITORS - set(defaults):
        raise SystemExit(f"MONITORS must be among the default callbacks, got {', '.join(sorted(missing))}.")
    kept = ",".join(name for name in defaults if name not in MONITORS - {but})
    train_tunelab(model_name, clock, folder, overrides=[f"callbacks=[{kept}]"])


TRAINERS: dict[str, Callable[[str, Clock, Path], None]] = {
    "bare": train_bare,
    "bare_fused": partial(train_bare, fused=True),
    "ordinary": train_ordinary,
    "lean": train_lean,
    "lean_fused": partial(train_lean, fused=True),
    "tunelab_off": partial(train_tunelab, overrides=EVERYTHING_OFF),
    "tunelab_unmonitored": train_unmonitored,
    "tunelab_gradients": partial(train_unmonitored, but="gradients"),
    "tunelab_on": train_tunelab,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains one contender of step_overhead.py.")
    parser.add_argument("contender", choices=TRAINERS)
    parser.add_argument("--model", choices=DEPTH, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seed_everything(SEED, verbose=False)
    digits()
    clock = Clock(arguments.epochs)
    (arguments.folder / "run").mkdir()
    TRAINERS[arguments.contender](arguments.model, clock, arguments.folder / "run")
    steps = arguments.epochs * steps_per_epoch()
    if clock.steps != steps or not clock.loss < MOST_LOSS:
        raise SystemExit(
            f"{arguments.contender} must make {steps} steps and reach a loss below {MOST_LOSS}, "
            f"got {clock.steps} steps and {clock.loss:.3g}."
        )
    measured = {**clock.microseconds_per_step, "loss": clock.loss}
    (arguments.folder / "measured.json").write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
