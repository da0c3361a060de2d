"""What a training step costs in the bare PyTorch loop, in Lightning and in tunelab, on scikit-learn's digits.

    python benchmarks/step_overhead.py [--model mlp|cnn] [--repeats 5] [--epochs 20]

Every contender trains the same model (mlp 64-128-10, or the cnn of size small) on the same 1,437 digits, in batches of
64, with AdamW, on one thread. A repeat runs each of them once, in a process of its own, and the repeats follow one
another, so that a slow minute of the machine meets all alike. The clock runs from the end of the first epoch to the end
of the last and so covers validations and checkpoints, but neither imports nor set-up.

Progress bars really draw: the output of each process is a pseudo-terminal of 120 columns, read as a screen would read
it. (Lightning draws rich's bar wherever rich is installed.) A repeat counts only if all steps were made, the loss over
the whole training part fell below MOST_LOSS, a contender left all its files, and its bar drew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import pty
import shlex
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning import LightningModule, Trainer, seed_everything
from lightning import __version__ as lightning_version
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from omegaconf import open_dict
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from tunelab import conf_folder
from tunelab.config import validate
from tunelab.data import BundledData
from tunelab.data.memory import EpochOrder, MemoryLoader
from tunelab.models import CNN, MLP
from tunelab.record import Start
from tunelab.run import train

WIDTH = 128
DEPTH = {"mlp": 1, "cnn": 2}
BATCH_SIZE, LR, SEED = 64, 1e-3, 0
MOST_LOSS = 0.5  # cross-entropy in nats over the training part; untrained it is ln 10 = 2.3
ERASE_LINE = "\x1b[2K"  # what a progress bar writes before it draws anew
LEAST_DRAWINGS = 3

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
    makers: dict[str, Callable[..., nn.Module]] = {"mlp": MLP, "cnn": CNN}
    return makers[name]((1, 8, 8), 10, width=WIDTH, depth=DEPTH[name], activation=nn.ReLU)


@dataclass
class Clock:
    """Takes the time at the end of each epoch, and the loss over the training part at the end of the last."""

    epochs: int
    ends: list[float] = field(default_factory=list)
    loss: float = float("nan")
    steps: int = 0

    def end_epoch(self, model: nn.Module, steps: int) -> None:
        """Call it after everything that belongs to an epoch."""
        self.ends.append(time.perf_counter())
        if len(self.ends) == self.epochs:
            self.steps = steps
            inputs, targets = digits().parts["train"]
            training = model.training
            with torch.no_grad():
                self.loss = F.cross_entropy(model.eval()(inputs), targets).item()
            model.train(training)

    @property
    def microseconds_per_step(self) -> float:
        """The mean over all epochs but the first."""
        return (self.ends[-1] - self.ends[0]) * 1e6 / ((self.epochs - 1) * steps_per_epoch())

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
    asked = [
        *("name=step_overhead", f"model={model_name}", f"size.width={WIDTH}", f"size.depth={DEPTH[model_name]}"),
        *(f"epochs={clock.epochs}", f"batch_size={BATCH_SIZE}", f"lr={LR}", f"seed={SEED}", "threads=1", *overrides),
    ]
    with initialize_config_dir(str(conf_folder()), job_name="train"):
        cfg = compose("train", overrides=asked, return_hydra_config=True)
    choices = {str(group): option for group, option in cfg.hydra.runtime.choices.items()}
    with open_dict(cfg):
        del cfg["hydra"]
    validate(cfg)
    train(cfg, folder, Start(shlex.join(["python", "train.py", *asked]), asked, choices))


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    title: str
    train: Callable[[str, Clock, Path], None]
    files: tuple[str, ...] = ()  # patterns of what it leaves in its folder
    draws: bool = False  # a progress bar


ORDINARY_FILES = ("events.out.*", "checkpoints/last.ckpt", "checkpoints/epoch=*.ckpt")
TUNELAB_FILES = ("tensorboard/events.*", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "result.json")
CONTENDERS = {
    "bare": Contender("bare loop", train_bare),
    "bare_fused": Contender("bare loop, fused AdamW", partial(train_bare, fused=True)),
    "ordinary": Contender("Lightning the ordinary way, everything on", train_ordinary, ORDINARY_FILES, draws=True),
    "lean": Contender("Lightning, everything off", train_lean),
    "lean_fused": Contender("Lightning, everything off, fused AdamW", partial(train_lean, fused=True)),
    "tunelab_off": Contender("tunelab, everything off", partial(train_tunelab, overrides=EVERYTHING_OFF)),
    "tunelab_on": Contender("tunelab, everything on (the defaults)", train_tunelab, TUNELAB_FILES, draws=True),
}


def train_here(name: str, model_name: str, epochs: int, folder: Path) -> None:
    """Trains one contender in this process and leaves what its clock says in `folder`."""
    torch.set_num_threads(1)
    seed_everything(SEED, verbose=False)
    digits()
    clock = Clock(epochs)
    (folder / "run").mkdir()
    CONTENDERS[name].train(model_name, clock, folder / "run")
    if clock.steps != epochs * steps_per_epoch() or not clock.loss < MOST_LOSS:
        wanted = f"{epochs * steps_per_epoch()} steps and reach a loss below {MOST_LOSS}"
        raise SystemExit(f"{name} must make {wanted}, got {clock.steps} steps and {clock.loss:.3g}.")
    measured = {"microseconds": clock.microseconds_per_step, "loss": clock.loss}
    (folder / "measured.json").write_text(json.dumps(measured), encoding="utf-8")


def measure(name: str, model_name: str, epochs: int) -> dict[str, float]:
    """Trains one contender in a process of its own, and checks what it left."""
    contender = CONTENDERS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, __file__, "--model", model_name, "--epochs", str(epochs), "--alone", name, temporary]
        status, written = run_in_terminal(command)
        missing = [pattern for pattern in contender.files if not any((folder / "run").glob(pattern))]
        drawings = written.count(ERASE_LINE)
        if status or missing or contender.draws != (drawings >= LEAST_DRAWINGS):
            found = f"exit code {status}, {drawings} drawings of a bar, missing files {missing}"
            raise SystemExit(f"{written}\n{name} did not do its work: {found}. Its output stands above.")
        measured: dict[str, float] = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    return measured


def run_in_terminal(command: list[str]) -> tuple[int, str]:
    """Runs a command on one thread in a pseudo-terminal; its exit code, and all that a screen would have got."""
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    written = bytearray()
    with contextlib.suppress(OSError):  # Linux's way to say that the other side has closed
        while piece := os.read(screen, 65536):
            written += piece
    os.close(screen)
    return process.wait(), written.decode(errors="replace")


def table(measured: dict[str, list[float]]) -> str:
    """The comparison in Markdown, from the microseconds per step of each repeat."""
    baseline = statistics.median(measured["bare"])
    lines = ["| contender | µs per step | × bare loop | spread |", "| --- | ---: | ---: | ---: |"]
    for name, values in measured.items():
        median = statistics.median(values)
        spread = f"{min(values):.0f}–{max(values):.0f}"
        lines.append(f"| {CONTENDERS[name].title} | {median:.0f} | {median / baseline:.2f} | {spread} |")
    return "\n".join(lines)


def machine() -> str:
    """Where it was measured."""
    linux = Path("/proc/cpuinfo")
    lines = linux.read_text(encoding="utf-8").splitlines() if linux.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = f"torch {torch.__version__}, lightning {lightning_version}, Python {platform.python_version()}"
    return f"{cpu}, {os.cpu_count()} cores, of which 1 thread is used · {versions}, {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training step costs.")
    parser.add_argument("--model", choices=sorted(DEPTH), default="mlp")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20, help="at least 10: fewer do not reach the loss asked for")
    parser.add_argument("--alone", nargs=2, metavar=("CONTENDER", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.epochs < 10 or arguments.repeats < 1:
        parser.error(f"needs --epochs 10 and --repeats 1 at least, got {arguments.epochs} and {arguments.repeats}")
    if arguments.alone:
        name, folder = arguments.alone
        train_here(name, arguments.model, arguments.epochs, Path(folder))
        return
    measured: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for repeat in range(1, arguments.repeats + 1):
        for name, values in measured.items():
            found = measure(name, arguments.model, arguments.epochs)
            values.append(found["microseconds"])
            line = f"repeat {repeat}/{arguments.repeats}  {name:<12} {values[-1]:6.0f} µs  loss {found['loss']:.3f}"
            print(line, file=sys.stderr)
    command = f"--model {arguments.model} --repeats {arguments.repeats} --epochs {arguments.epochs}"
    print(f"{table(measured)}\n\n{machine()}\n`python benchmarks/step_overhead.py {command}`")


if __name__ == "__main__":
    main()
