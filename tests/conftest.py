"""What several test files share: one thread, fixed seeds, and small runs composed from the catalogue."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from lightning import Callback, Trainer, seed_everything
from omegaconf import DictConfig
from PIL import Image

from tunelab import conf_folder
from tunelab.callbacks import Objective
from tunelab.config import chosen_options, recipe_of, validate
from tunelab.data import BundledData
from tunelab.fitting import QUIET, build
from tunelab.prepare import complete, prepare_process
from tunelab.record import Start
from tunelab.run import train
from tunelab.tasks import SupervisedTask


def options(group: str) -> list[str]:
    """Every option of a config group, read from its folder, so that a new file is tested without being listed."""
    found = sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
    assert found, f"conf/{group} has no file"
    return found


def local_files(data: str, folder: Path) -> list[str]:
    """The overrides by which a source that reads files finds small real ones, written into this folder."""
    if data == "image_folder":
        for name, pixels in zip("abc" * 30, np.random.default_rng(0).integers(0, 256, (90, 8, 8)), strict=True):
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            count = len(list((folder / "images" / name).iterdir()))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name / f"{count}.png")
        return [f"data.path='{folder / 'images'}'"]
    if data in ("huggingface", "mnist", "fashion_mnist", "cifar10"):
        datasets = pytest.importorskip("datasets")
        label = datasets.ClassLabel(names=["a", "b", "c"])
        pixels = np.random.default_rng(0).integers(0, 256, (90, 8, 8)).astype(np.uint8)
        columns = {"image": [Image.fromarray(p) for p in pixels], "label": [0, 1, 2] * 30}
        features = datasets.Features({"image": datasets.Image(), "label": label})
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder / "saved")
        return [f"data.path='{folder / 'saved'}'"]
    if data not in ("csv", "parquet"):
        return []
    rows = pd.DataFrame({"size": np.arange(90) % 7, "city": list("abc") * 30, "kind": ["yes", "no", "maybe"] * 30})
    path = folder / f"table.{data}"
    rows.to_csv(path, index=False) if data == "csv" else rows.to_parquet(path)
    return [f"data.path='{path}'", "data.target=kind"]


def companions(group: str, option: str, folder: Path) -> list[str]:
    """The overrides without which an option cannot stand: a file, a service's folder, a part that reads its dial."""
    if (group, option) == ("init", "pretrained"):
        torch.save({"hidden1.bias": torch.ones(32)}, folder / "weights.pt")  # of the mlp at size tiny
        return [f"init.path='{folder / 'weights.pt'}'", "init.strict=false"]
    return {
        ("model", "transformer"): ["data=breast_cancer"],
        ("regularization", "stochastic_depth"): ["model=resnet"],
        ("logger", "wandb"): ["logger.wandb.offline=true"],
        ("logger", "mlflow"): [f"logger.mlflow.tracking_uri='sqlite:///{folder / 'mlflow.db'}'"],
    }.get((group, option), local_files(option, folder) if group == "data" else [])


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_process() -> Iterator[None]:
    """The same random numbers in each test whatever ran before; what a run sets in the process does not outlive it."""
    seed_everything(0, verbose=False)
    os.environ.pop("TUNELAB_COMMAND", None)  # of a command that a test before has typed
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


def _composed(overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, Any]]:
    """The recipe of a command line and the option of each group; a copy, so that a test may change it."""
    cfg, choices = _composed_once(overrides)
    return cfg.copy(), dict(choices)


@cache
def _composed_once(overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, Any]]:
    # 80 ms of YAML each: the conformance tests ask for the same ones again and again
    GlobalHydra.instance().clear()
    # the default name asks Hydra's runtime, which a composition alone has not
    named = overrides if any(o.startswith("name=") for o in overrides) else (*overrides, "name=test")
    with initialize_config_dir(str(conf_folder()), job_name="train"):
        cfg = hydra_compose("train", overrides=list(named), return_hydra_config=True)
    recipe = recipe_of(cfg)
    return recipe, chosen_options(cfg.hydra.runtime.choices, recipe)


@pytest.fixture
def compose() -> Callable[..., DictConfig]:
    """compose(*overrides): the recipe of a command line, without the `hydra` node, interpolations unresolved."""
    return lambda *overrides: _composed(overrides)[0]


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Path]]:
    """fit(*overrides): trains as the command does; returns what result.json holds and the run's folder."""
    folders = iter(range(1, 1000))

    def run(*overrides: str) -> tuple[dict[str, Any], Path]:
        cfg, choices = _composed(overrides)
        validate(cfg, [override.split("=")[0].lstrip("+~") for override in overrides])
        folder = tmp_path / f"run{next(folders)}"
        folder.mkdir()
        command = " ".join(["python train.py", *overrides])
        return train(cfg, folder, Start(command, list(overrides), choices)), folder

    return run


@dataclass(frozen=True)
class Fitted:
    """A finished fit with its objects, for tests that look inside."""

    trainer: Trainer
    task: SupervisedTask
    data: BundledData
    objective: Objective
    folder: Path


@pytest.fixture
def fit_with(tmp_path: Path) -> Callable[..., Fitted]:
    """fit_with(callbacks, *overrides): the same fit with callbacks of the test's own behind the recipe's."""
    folders = iter(range(1, 1000))

    def run(callbacks: list[Callback], *overrides: str) -> Fitted:
        recipe, _ = _composed((*overrides, "trainer.enable_progress_bar=false"))
        validate(recipe)
        cfg = complete(recipe)
        prepare_process(cfg)
        folder = tmp_path / f"fitted{next(folders)}"
        folder.mkdir()
        data, task = build(cfg.data), build(cfg.task)
        objective = Objective(cfg.objective, cfg.objective_direction)
        own = [build(callback) for callback in cfg.callbacks.values()]
        trainer = build(
            cfg.trainer,
            logger=[build(logger, save_dir=str(folder))() for logger in cfg.logger.values()],
            callbacks=[objective, *own, *callbacks],
            enable_checkpointing="checkpoint" in cfg.callbacks,
            default_root_dir=str(folder),
            **QUIET,
        )
        trainer.fit(task, datamodule=data)
        for logger in trainer.loggers:
            logger.save()
        return Fitted(trainer, task, data, objective, folder)

    return run
