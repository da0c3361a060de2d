"""What is written down of how a run began: enough to repeat it, and to compare it with others."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from tunelab import own_code
from tunelab.errors import show
from tunelab.folder import write_atomic, write_json

log = logging.getLogger("tunelab")

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

VARIABLES = (
    "KMP_DETERMINISTIC_REDUCTION",
    "MKL_CBWR",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_DYNAMIC",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Of the environment, what decides in which order or how exactly numbers are added; threads stand apart."""

READ_BYTES = 10**9
"""Files up to this size are read to know them again; a second or less."""


@dataclass(frozen=True)
class Start:
    """How a run was asked for, for its record.

    Args:
        command: What was typed.
        overrides: Its choices and values, which compose the recipe again.
        choices: The option of each group.
        checkout: The git commit it was asked for in, and whether something was changed since; None outside a checkout.
        repeated: The record of the run that this one is to repeat.
        repeated_from: The folder of that run.
        unread: The keys of the recipe that nothing reads, as `tunelab.reading` finds them.
    """

    command: str
    overrides: list[str]
    choices: Mapping[str, Any]
    checkout: Mapping[str, Any] | None = None
    repeated: Mapping[str, Any] | None = None
    repeated_from: Path | None = None
    unread: Sequence[str] = ()

    @property
    def built(self) -> dict[str, Any]:
        """The option of each group that is read; of one that takes several, those that are."""
        kept: dict[str, Any] = {group: option for group, option in self.choices.items() if not self.ignores(group)}
        for group, option in kept.items():
            if isinstance(option, list):
                kept[group] = [member for member in option if not self.ignores(f"{group}.{member}")]
        return kept

    def ignores(self, key: str) -> bool:
        """Whether nothing reads a key, or builds the option of a group."""
        beginnings = (f"{each}." for each in self.unread)
        return key in self.unread or f"{key}._target_" in self.unread or key.startswith(tuple(beginnings))


def record(folder: Path, cfg: DictConfig, start: Start) -> None:
    """Writes config.yaml and run.json: all that it takes to run it again. A resume is added to what began it.

    Warns of what is otherwise than in the run that is repeated or resumed, if it may change the last bits.
    """
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(cfg))
    now = {
        "command": start.command,
        "overrides": start.overrides,
        "choices": dict(start.choices),
        "unread": list(start.unread),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": cfg.seed,
        "threads": cfg.threads,
        "versions": _versions(),
        "machine": _machine(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "code": own_hash(),
        "own_code": {name: _hash_of(name) for name in own_code.trusted()},
        "data": fingerprints(cfg.data),
        "checkout": None if start.checkout is None else dict(start.checkout),
    }
    path = folder / "run.json"
    if start.repeated is not None:
        _warn("repeated", start.repeated, now)
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        resumes = before.pop("resumes", [])
        latest: dict[str, Any] = before
        for resume in resumes:
            latest = latest | resume
        _warn("resumed", latest, now)
        result = folder / "result.json"
        if result.is_file():  # that of the part before, and its look at the test set
            now["result_before"] = json.loads(result.read_text(encoding="utf-8"))
            result.unlink()
        resumes = [*resumes, {key: value for key, value in now.items() if latest.get(key) != value}]
        now = {**before, "overrides": start.overrides, "choices": dict(start.choices)}
        now |= {"unread": list(start.unread), "resumes": resumes}
    write_json(path, now)


@cache
def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@cache
def _machine() -> dict[str, str | None]:
    return {
        "platform": platform.platform(),
        "host": platform.node(),
        "libc": " ".join(platform.libc_ver()),
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


@cache
def own_hash() -> str:
    """That of tunelab: of what this process has imported, whatever becomes of the files."""
    return code_hash()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What may change the last bits of a run and differs between two records, each as `torch 2.12.0 → 2.13.0`.

    What one of the records does not say is passed over.
    """
    found = []
    for name in ("versions", "machine", "environment", "own_code", "data"):
        was, is_now = before.get(name), now.get(name)
        if not isinstance(was, Mapping) or not isinstance(is_now, Mapping):
            continue
        for key in dict.fromkeys([*was, *is_now]):
            partial = name in ("versions", "machine") and (key not in was or key not in is_now)
            if partial or key in ("platform", "host") or was.get(key) == is_now.get(key):
                continue
            label = {"own_code": f"code of {key}", "data": f"data.{key}"}.get(name) or key.replace(
                "cpu_capability", "CPU capability"
            )
            found.append(f"{label} {_said(was.get(key))} → {_said(is_now.get(key))}")
    for key, label in (("threads", "threads"), ("code", "code of tunelab")):
        if key in before and before[key] != now.get(key):
            found.append(f"{label} {_said(before[key])} → {_said(now.get(key))}")
    checkouts = [values.get("checkout") for values in (before, now)]
    dirty = [checkout.get("dirty") if isinstance(checkout, Mapping) else None for checkout in checkouts]
    if None not in dirty and dirty[0] != dirty[1]:
        found.append("uncommitted changes {} → {}".format(*("yes" if each else "no" for each in dirty)))
    return found


def fingerprints(data: Mapping[str, Any]) -> dict[str, str]:
    """What the files that a data source reads are known by, in words, by the key that names them.

    Args:
        data: Its part of the recipe.
    """
    named = {key: data.get(key) for key in ("path", "val_path", "test_path")}
    found = {
        key: _fingerprint(Path(path).expanduser()) for key, path in named.items() if isinstance(path, str) and path
    }
    return {key: seen for key, seen in found.items() if seen is not None}


def _fingerprint(path: Path) -> str | None:
    """Of a file its size and CRC-32, or when it was written if it is large; of a folder what its files come to."""
    try:
        if path.is_file():
            size = path.stat().st_size
            if size > READ_BYTES:
                return f"{size} bytes of {_time(path.stat().st_mtime)}"
            checksum = 0
            with path.open("rb") as file:
                while piece := file.read(2**20):
                    checksum = zlib.crc32(piece, checksum)
            return f"{size} bytes, crc32 {checksum:08x}"
        seen = [Path(folder, name).stat() for folder, _, names in os.walk(path) for name in names]
    except OSError:
        return None  # whoever reads it will say why it cannot be read
    if not seen:
        return None
    newest = _time(max(file.st_mtime for file in seen))
    return f"{len(seen)} files, {sum(file.st_size for file in seen)} bytes, newest of {newest}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat()


def _warn(how: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if found := differences(before, now):
        log.warning("It is %s under other conditions, so the last bits may differ: %s.", how, "; ".join(found))


def _said(value: Any) -> str:
    """A value of a record in a line: of a hash its beginning."""
    text = "none" if value is None else show(value)
    return text[:8] if len(text) == 64 and " " not in text else text


def _cpu() -> str:
    """The model of the processor: libraries choose what they run by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def code_hash(source: Path = Path(__file__).parent) -> str:
    """SHA-256 over the Python files of a folder, in order of their paths, or over one file; by default over tunelab."""
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
        digest.update(str(path.relative_to(source)).encode() + path.read_bytes())
    return digest.hexdigest()


def _hash_of(package: str) -> str | None:
    """The hash of a package of the user's own; None if Python finds none from here."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or [])
    origin = folders[0] if folders else spec.origin
    return code_hash(Path(origin)) if origin and Path(origin).exists() else None


def knobs(cfg: DictConfig, start: Start) -> dict[str, float | str | bool]:
    """What distinguishes runs in a table: the options chosen, the dials, and the parts' own numbers.

    What nothing reads is left out: it would be a difference between runs that are the same.
    """
    values: dict[str, Any] = {g: o for g, o in start.built.items() if isinstance(o, str)}
    values |= {g: ",".join(o) for g, o in start.built.items() if isinstance(o, list) and o}
    for key, value in cfg.items():
        if not OmegaConf.is_config(value) and key not in ("repeat", "resume", "name"):
            values[str(key)] = value
    for part in ("size", "model", "optimizer", "scheduler", "regularization", "clipping", "batch_growth"):
        for key, value in _leaves(cfg[part], part):
            name = key.rsplit(".", 1)[-1]
            if name not in cfg and (part == "size" or name not in cfg.size):  # or it would stand there twice
                values[key] = value
    read = {key: value for key, value in values.items() if not start.ignores(key)}
    return {key: value for key, value in read.items() if isinstance(value, (bool, int, float, str))}


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, DictConfig):
        for name, child in node.items():
            if not str(name).startswith("_") and name not in ("activation", "monitor", "direction"):
                yield from _leaves(child, f"{key}.{name!s}")
    elif node is not None:
        yield key, str(node) if OmegaConf.is_config(node) else node
