"""What is written down of how a run began: enough to repeat it, and to compare it with others."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from tunelab.folder import write_atomic, write_json

PACKAGES = (
    "tunelab",
    "torch",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "numpy",
    "scikit-learn",
    "pandas",
)


@dataclass(frozen=True)
class Start:
    """How a run was asked for, for its record.

    Args:
        command: What was typed.
        overrides: Its choices and values, which compose the recipe again.
        choices: The option of each group.
    """

    command: str
    overrides: list[str]
    choices: Mapping[str, Any]


def record(folder: Path, cfg: DictConfig, start: Start) -> None:
    """Writes config.yaml and run.json: all that it takes to run it again. A resume is added to what began it."""
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(cfg))
    now = {
        "command": start.command,
        "overrides": start.overrides,
        "choices": dict(start.choices),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": cfg.seed,
        "threads": cfg.threads,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": {
            "platform": platform.platform(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "code": code_hash(),
    }
    path = folder / "run.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        result = folder / "result.json"
        if result.is_file():  # that of the part before, and its look at the test set
            now["result_before"] = json.loads(result.read_text(encoding="utf-8"))
            result.unlink()
        resumes = [*before.pop("resumes", []), {key: value for key, value in now.items() if before.get(key) != value}]
        now = {**before, "overrides": start.overrides, "choices": dict(start.choices), "resumes": resumes}
    write_json(path, now)


def code_hash() -> str:
    """SHA-256 over the package's source files, in order of their paths."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()


def knobs(cfg: DictConfig, start: Start) -> dict[str, float | str | bool]:
    """What distinguishes runs in a table: the options chosen, the dials, and the parts' own numbers."""
    values: dict[str, Any] = {g: o for g, o in start.choices.items() if isinstance(o, str)}
    values |= {g: ",".join(o) for g, o in start.choices.items() if isinstance(o, list) and o}
    for key, value in cfg.items():
        if not OmegaConf.is_config(value) and key not in ("repeat", "resume", "name"):
            values[str(key)] = value
    for part in ("size", "model", "optimizer", "scheduler", "regularization", "clipping"):
        for key, value in _leaves(cfg[part], part):
            name = key.rsplit(".", 1)[-1]
            if name not in cfg and (part == "size" or name not in cfg.size):  # or it would stand there twice
                values[key] = value
    return {key: value for key, value in values.items() if isinstance(value, (bool, int, float, str))}


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, DictConfig):
        for name, child in node.items():
            if not str(name).startswith("_") and name not in ("activation", "monitor", "direction"):
                yield from _leaves(child, f"{key}.{name!s}")
    elif node is not None:
        yield key, str(node) if OmegaConf.is_config(node) else node
