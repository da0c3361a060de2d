"""What bfloat16 gains on this CPU: in the steps of tunelab's models, in matrix products alone, and what it costs.

    python benchmarks/precision.py [--repeats 5] [--recipes 'vit, base, batch 64' ...] [--seeds 3]

A recipe is trained by tunelab's own Trainer and task with everything else off, one fit for each precision in turn; a
repeat times the steps of a fit but the first three, by the process's own clock, which stands still while others have
the core. Medians, one thread. What it costs is told by the accuracy of whole runs on the test set of digits.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning import Callback
from omegaconf import DictConfig

from tunelab import conf_folder
from tunelab.config import recipe_of, validate
from tunelab.fitting import QUIET, build
from tunelab.prepare import complete, prepare_process
from tunelab.record import Start
from tunelab.run import train

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
FIRST_STEPS, STEPS = 3, 7
"""Steps that warm up, and steps of a fit in all."""

OFF = (
    *("name=precision", "threads=1", "test=false", "scheduler=constant", "callbacks=[]", "logger=[]", "epochs=1"),
    *("trainer.enable_progress_bar=false", "trainer.limit_val_batches=0", f"trainer.limit_train_batches={STEPS}"),
)
BLOBS = ("data=blobs", "data.features=64", "data.examples=8000")
WAVES = ("data=waves", "model=transformer")
RECIPES: dict[str, tuple[str, ...]] = {
    "mlp, base, batch 64": ("model=mlp", "batch_size=64"),
    "mlp, base, batch 512": (*BLOBS, "model=mlp", "batch_size=512"),
    "mlp, width 2048, batch 512": (*BLOBS, "model=mlp", "size.width=2048", "batch_size=512"),
    "cnn, base, batch 64": ("model=cnn", "batch_size=64"),
    "cnn, large, batch 64": ("model=cnn", "size=large", "batch_size=64"),
    "resnet, base, batch 64": ("model=resnet", "batch_size=64"),
    "resnet, large, batch 64": ("model=resnet", "size=large", "batch_size=64"),
    "vit, base, batch 64": ("model=vit", "batch_size=64"),
    "vit, large, batch 16": ("model=vit", "size=large", "batch_size=16"),
    "transformer, base, batch 64": (*WAVES, "batch_size=64"),
    "transformer, large, batch 16": (*WAVES, "size=large", "batch_size=16"),
}
PRODUCTS = [(64, 64, 128), (512, 64, 128), (512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048)]
"""Rows, inner size and columns of matrix products."""


class Clock(Callback):
    """Takes the time of the process at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.process_time())

    def milliseconds(self) -> float:
        """The median step but the first few."""
        steps = [(end - start) * 1e3 for start, end in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(steps[FIRST_STEPS - 1 :])


def recipe(*overrides: str) -> DictConfig:
    """The composed recipe of a command line."""
    with initialize_config_dir(str(conf_folder()), job_name="train"):
        cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
    cfg = recipe_of(cfg)
    validate(cfg)
    return cfg


def step_milliseconds(name: str, precision: str) -> float:
    """The median step of one fit."""
    cfg = complete(recipe(*OFF, *RECIPES[name], f"trainer.precision={precision}"))
    prepare_process(cfg)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(
            cfg.trainer, logger=False, callbacks=[clock], enable_checkpointing=False, default_root_dir=folder, **QUIET
        )
        trainer.fit(build(cfg.task), datamodule=build(cfg.data))
    assert len(clock.ends) == STEPS
    return clock.milliseconds()


def product_microseconds(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    """One matrix product, the mean over about 20 milliseconds."""
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    count = max(1, int(1e9 / (rows * inner * columns)))
    left @ right
    start = time.process_time()
    for _ in range(count):
        left @ right
    return (time.process_time() - start) / count * 1e6


def test_accuracy(model: str, precision: str, seed: int) -> float:
    """The share of digits told right by a whole run."""
    overrides = ["name=precision", "threads=1", f"model={model}", "size=small", f"seed={seed}"]
    overrides += [f"trainer.precision={precision}", "trainer.enable_progress_bar=false"]
    overrides += ["callbacks=[checkpoint]", "logger=[]"]
    with tempfile.TemporaryDirectory() as folder:
        result = train(recipe(*overrides), Path(folder), Start("benchmarks/precision.py", overrides, {}))
    return float(result["test"]["test/accuracy"])


def print_table(kind: str, rows: dict[str, dict[str, list[float]]], unit: str) -> None:
    """Medians, and ratios to the first column."""
    columns = list(next(iter(rows.values())))
    print(f"\n| {kind} | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for name, cells in rows.items():
        plain = statistics.median(cells[columns[0]])
        medians = {column: statistics.median(values) for column, values in cells.items()}
        print(f"| {name} | {' | '.join(f'{m:.3g} {unit} ({m / plain:.2f} ×)' for m in medians.values())} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="What bfloat16 gains on this CPU.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--recipes", nargs="*", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    products: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.repeats):
        for sizes in PRODUCTS:
            row = products.setdefault("{} × {} times {} × {}".format(*sizes[:2], *sizes[1:]), {"32": [], "bf16": []})
            row["32"].append(product_microseconds(*sizes, torch.float32))
            row["bf16"].append(product_microseconds(*sizes, torch.bfloat16))
    print_table("matrix product", products, "µs")

    steps: dict[str, dict[str, list[float]]] = {name: {p: [] for p in PRECISIONS} for name in arguments.recipes}
    for _ in range(arguments.repeats):
        for name, cells in steps.items():
            for precision, values in cells.items():
                values.append(step_milliseconds(name, precision))
    print_table("step", steps, "ms")

    print(
        "\n| test accuracy on digits, size small, of each seed | "
        + " | ".join(PRECISIONS)
        + " |\n| --- |"
        + " ---: |" * 3
    )
    for model in ("mlp", "cnn"):
        found = [[test_accuracy(model, p, seed) for seed in range(arguments.seeds)] for p in PRECISIONS]
        print(f"| {model} | {' | '.join(', '.join(f'{value:.4f}' for value in values) for values in found)} |")
    print(f"\n{machine()}")


def machine() -> str:
    """Where it was measured, how busy it was, and what the CPU can do with bfloat16."""
    linux = Path("/proc/cpuinfo")
    lines = linux.read_text(encoding="utf-8").splitlines() if linux.is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    can = [flag for flag in facts.get("flags", "").split() if "bf16" in flag or "amx" in flag] or ["nothing"]
    cpu = f"{facts.get('model name', platform.processor())} ({', '.join(can)} for bfloat16; torch uses "
    cpu += f"{torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores, of which 1 thread is used"
    return f"{cpu} · torch {torch.__version__} · {os.getloadavg()[0]:.1f} processes ran on average"


if __name__ == "__main__":
    main()
