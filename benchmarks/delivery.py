"""What a batch from memory costs, beside torch's DataLoader and beside the step that it is for.

    python benchmarks/delivery.py [--repeats 15]

Each loader delivers whole epochs in an order of their own, and the step is the bare loop's (forward, backward, fused
AdamW), which is the fastest that trains on the batch: of any other step the share is less. Repeats take turns. All of
it is the processor's time on one thread, which leaves out what others do with the machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset

from tunelab.data.memory import EpochOrder, MemoryLoader
from tunelab.models import CNN, MLP

CLASSES, WIDTH = 10, 128
LEAST_BATCHES, STEPS = 60, 20  # of one measurement


@dataclass(frozen=True)
class Case:
    """Inputs of one shape, and the model that learns from them."""

    title: str
    examples: int
    input_shape: tuple[int, ...]
    batch_size: int
    model: Callable[..., nn.Module]
    depth: int


CASES = (
    Case("1 x 8 x 8, batch 64, mlp 64-128-10", 1437, (1, 8, 8), 64, MLP, depth=1),
    Case("1 x 8 x 8, batch 64, cnn", 1437, (1, 8, 8), 64, CNN, depth=2),
    Case("3 x 32 x 32, batch 128, cnn", 5000, (3, 32, 32), 128, CNN, depth=2),
)


def per_batch(loader: Iterable[object], batches: int) -> float:
    """Microseconds that one batch takes, the start of an epoch included."""
    began, delivered = time.thread_time(), 0
    while delivered < batches:
        for _ in loader:
            delivered += 1
    return (time.thread_time() - began) * 1e6 / delivered


def measure(case: Case, repeats: int) -> dict[str, float]:
    """Medians in microseconds: a batch from memory, one from a DataLoader, and a step."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(case.examples, *case.input_shape), torch.randint(CLASSES, (case.examples,))
    ours = MemoryLoader(inputs, targets, case.batch_size, EpochOrder(case.examples, 0, shuffle=True))
    theirs = DataLoader(TensorDataset(inputs, targets), batch_size=case.batch_size, shuffle=True)
    model = case.model(case.input_shape, CLASSES, width=WIDTH, depth=case.depth, activation=nn.ReLU)
    optimizer = AdamW(model.parameters(), fused=True)
    batch, answers = inputs[: case.batch_size], targets[: case.batch_size]

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(batch), answers).backward()
        optimizer.step()

    found: dict[str, list[float]] = {"memory": [], "DataLoader": [], "step": []}
    for _ in range(repeats + 1):
        found["memory"].append(per_batch(ours, LEAST_BATCHES))
        found["DataLoader"].append(per_batch(theirs, math.ceil(case.examples / case.batch_size)))
        began = time.thread_time()
        for _ in range(STEPS):
            step()
        found["step"].append((time.thread_time() - began) * 1e6 / STEPS)
    return {name: statistics.median(values[1:]) for name, values in found.items()}  # the first one warms up


def main() -> None:
    parser = argparse.ArgumentParser(description="What a batch from memory costs.")
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    if repeats < 1:
        parser.error(f"needs --repeats 1 at least, got {repeats}")
    torch.set_num_threads(1)
    print("| batches for | from memory, µs | by a DataLoader, µs | bare step, µs | memory / step |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for case in CASES:
        found = measure(case, repeats)
        memory, loader, step = found["memory"], found["DataLoader"], found["step"]
        print(f"| {case.title} | {memory:,.1f} | {loader:,.0f} | {step:,.0f} | {memory / step:.1%} |")
    print(f"\n`python benchmarks/delivery.py --repeats {repeats}`")


if __name__ == "__main__":
    main()
