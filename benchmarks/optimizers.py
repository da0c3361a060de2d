"""What an optimizer's step costs in each form that torch has: a loop over tensors, foreach, fused. One thread.

    python benchmarks/optimizers.py [--repeats 30] [--optimizers adam sgd] [--models mlp resnet resnet18]

Every form of an optimizer takes the same steps on the tensors of the same model, with the defaults of the optimizer's
file in conf/. A repeat times each form once, in turn, so that a slow minute of the machine meets all alike, by the
process's own clock, which stands still while others have the core; the table has medians. Before the clock starts the
forms must have led to the same weights, up to rounding.
"""

from __future__ import annotations

import argparse
import inspect
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from torch import nn
from torch.optim import Optimizer

from tunelab import conf_folder
from tunelab.fitting import build
from tunelab.models import MLP, ResNet

FORMS: dict[str, dict[str, bool]] = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"fused": True},
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP((1, 8, 8), 10, width=128, depth=1, activation=nn.ReLU),  # 64-128-10: 4 tensors
    "resnet": lambda: ResNet((1, 8, 8), 10, width=128, depth=2, activation=nn.ReLU),  # size base on digits
    "resnet18": lambda: ResNet((3, 32, 32), 10, width=512, depth=8, blocks=[2, 2, 2, 2], activation=nn.ReLU),
}
STEPS = {"mlp": 50, "resnet": 10, "resnet18": 1}
"""Steps that the clock covers at once."""


Maker = Callable[..., Optimizer]


def makers() -> dict[str, tuple[Maker, list[str]]]:
    """What makes the optimizer of each file in conf/, and the names of its forms, if its class has several."""
    found = {}
    for path in sorted((conf_folder() / "optimizer").glob("*.yaml")):
        with initialize_config_dir(str(conf_folder()), job_name="train"):
            cfg = compose("train", overrides=[f"optimizer={path.stem}", "name=optimizers"])
        has = inspect.signature(get_class(cfg.optimizer._target_)).parameters
        if "foreach" in has:
            forms = [form for form in FORMS if form != "fused" or "fused" in has]
            found[path.stem] = (build(cfg.optimizer), forms)
    return found


def make(maker: Maker, form: str, forms: list[str], model: str) -> Optimizer:
    """An optimizer of new parameters, the same for every form."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(p.shape, generator=generator)) for p in MODELS[model]().parameters()]
    keywords = {key: value for key, value in FORMS[form].items() if key != "fused" or "fused" in forms}
    optimizer = maker(parameters, **keywords)
    if hasattr(optimizer, "train"):  # schedule-free
        optimizer.train()
    return optimizer


def draw_gradients(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters, with gradients that are the same for every form: some write into them."""
    generator = torch.Generator().manual_seed(1)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return parameters


def check(name: str, optimizers: dict[str, Optimizer]) -> None:
    """Makes five steps, after which the forms must have the same weights."""
    weights = {}
    for form, optimizer in optimizers.items():
        for _ in range(5):
            parameters = draw_gradients(optimizer)
            optimizer.step()
        weights[form] = [parameter.detach() for parameter in parameters]
    for form, found in weights.items():
        for ours, plain in zip(found, weights["loop"], strict=True):
            if not torch.allclose(ours, plain, rtol=1e-4, atol=1e-6):
                raise SystemExit(f"{name} must move weights alike in all its forms, but {form} does not.")


def measure(optimizers: dict[str, Optimizer], steps: int, repeats: int) -> dict[str, float]:
    """The median microseconds of a step in each form."""
    taken: dict[str, list[float]] = {form: [] for form in optimizers}
    for _ in range(repeats):
        for form, optimizer in optimizers.items():
            draw_gradients(optimizer)
            start = time.process_time()
            for _ in range(steps):
                optimizer.step()
            taken[form].append((time.process_time() - start) / steps * 1e6)
    return {form: statistics.median(values) for form, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="What an optimizer's step costs in each form.")
    made = makers()
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--optimizers", nargs="+", choices=list(made), default=list(made))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"µs per step; × the loop\n\n| optimizer | tensors of | {' | '.join(FORMS)} |")
    print(f"| --- | --- |{' ---: |' * len(FORMS)}")
    for name in arguments.optimizers:
        maker, forms = made[name]
        for model in arguments.models:
            optimizers = {form: make(maker, form, forms, model) for form in forms}
            check(name, optimizers)
            found = measure(optimizers, STEPS[model], arguments.repeats)
            cells = [
                f"{found[form]:.0f} ({found[form] / found['loop']:.2f} ×)" if form in found else "" for form in FORMS
            ]
            print(f"| {name} | {model} | {' | '.join(cells)} |", flush=True)
    print(f"\n{machine()}")


def machine() -> str:
    """Where it was measured, and how busy it was."""
    linux = Path("/proc/cpuinfo")
    lines = linux.read_text(encoding="utf-8").splitlines() if linux.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    load = f"{os.getloadavg()[0]:.1f} processes ran on average"
    return f"{cpu}, {os.cpu_count()} cores, of which 1 thread is used · torch {torch.__version__} · {load}"


if __name__ == "__main__":
    main()
