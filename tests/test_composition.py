"""Every file of conf/ composes, builds and trains; every dial stands once; what is chosen later and closer wins."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import companions, local_files, options
from hydra.utils import get_object
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from test_command import GROUPS
from torch import nn

from tunelab import conf_folder
from tunelab.config import MEMBER_GROUPS, OF_A_SEARCH, validate
from tunelab.errors import ConfigError
from tunelab.fitting import build
from tunelab.prepare import complete
from tunelab.schema import Recipe
from tunelab.spec import DataSpec

Compose = Callable[..., DictConfig]
Fit = Callable[..., tuple[dict[str, Any], Path]]

# how a -m searches is no part of a recipe: test_sweep_command composes and builds each of those
FILES = [(group, option) for group in GROUPS if group not in OF_A_SEARCH for option in options(group)]
EXPERIMENTS = sorted((conf_folder() / "experiment").glob("*.yaml"))
PAGE = OmegaConf.load(conf_folder() / "train.yaml")
DIALS = [str(key) for key in PAGE if not OmegaConf.is_config(PAGE._get_node(key))]

every_file = pytest.mark.parametrize(("group", "option"), FILES, ids=["/".join(file) for file in FILES])
SECONDS = (("trainer", "ddp"), ("logger", "mlflow"), ("logger", "wandb"))  # processes, services


# sqlalchemy's word to mlflow, which this project cannot heed
ignore_mlflow = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def choose(group: str, option: str) -> str:
    return f"{group}=[{option}]" if group in MEMBER_GROUPS else f"{group}={option}"


def file(group: str, option: str) -> DictConfig:
    cfg = OmegaConf.load(conf_folder() / group / f"{option}.yaml")
    assert isinstance(cfg, DictConfig)
    return cfg


def is_global(group: str, option: str) -> bool:
    return "# @package _global_" in (conf_folder() / group / f"{option}.yaml").read_text()


def fitting(compose: Compose, *overrides: str) -> tuple[str, ...]:
    """The overrides with the first data set that they are valid for: mse needs a regression, the cnn images."""
    if any(o.startswith(("data=", "experiment=")) for o in overrides):
        return overrides
    for data in sorted(options("data"), key=lambda name: name != "digits"):
        try:
            validate(compose(f"data={data}", *overrides))
        except ConfigError:
            continue
        return (f"data={data}", *overrides)
    raise AssertionError(f"no data set fits {overrides}")


def needs_gpu(*overrides: str) -> bool:
    return bool({"trainer=gpu", "trainer=fsdp"} & set(overrides)) and not torch.cuda.is_available()


def nodes_to_build(node: Any, key: str = "") -> Iterator[tuple[str, DictConfig]]:
    if OmegaConf.is_dict(node):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from nodes_to_build(child, f"{key}.{name}")


# ---- every file


@every_file
def test_every_option_composes_alone_and_what_its_file_says_stands(compose: Compose, group: str, option: str) -> None:
    cfg = compose(choose(group, option))
    own = file(group, option)
    own.pop("defaults", None)
    found = OmegaConf.to_container(cfg if is_global(group, option) else cfg[group])
    unchanged = OmegaConf.merge(found, own)  # nothing that the file says has been lost
    assert OmegaConf.to_container(unchanged) == found


@pytest.mark.parametrize("group", MEMBER_GROUPS)
def test_a_list_group_may_be_empty_or_hold_all(compose: Compose, group: str) -> None:
    assert compose(f"{group}=[]")[group] == {}
    assert sorted(compose(f"{group}=[{','.join(options(group))}]")[group]) == sorted(options(group))


@every_file
@ignore_mlflow
def test_every_target_builds_what_it_names(compose: Compose, group: str, option: str, tmp_path: Path) -> None:
    if needs_gpu(choose(group, option)):
        pytest.skip("needs a GPU that PyTorch can use")
    cfg = complete(compose(*fitting(compose, choose(group, option), *companions(group, option, tmp_path))))
    roots = [group] if group in cfg else ["task", "data", "trainer"]  # an experiment or a debug aid sets several
    for key, node in [found for root in roots for found in nodes_to_build(cfg[root], root)]:
        target = get_object(node._target_)
        built = build(node)
        if node.get("_partial_"):
            assert isinstance(built, functools.partial), key
            assert built.func is target, key
        else:
            assert type(built) is target, key


def test_every_file_has_a_target_but_those_that_set_numbers_for_the_others() -> None:
    without = {
        f"{group}/{option}"
        for group, option in FILES
        if "_target_" not in (conf_folder() / group / f"{option}.yaml").read_text() and not is_global(group, option)
    }
    assert without == {
        *(f"size/{size}" for size in options("size")),
        *(f"trainer/{name}" for name in ("gpu", "ddp")),
    }


@pytest.mark.parametrize(
    ("group", "option"),
    [pytest.param(*f, id="/".join(f), marks=pytest.mark.slow if f in SECONDS else ()) for f in FILES],
)
@ignore_mlflow
def test_every_option_trains(compose: Compose, fit: Fit, group: str, option: str, tmp_path: Path) -> None:
    if needs_gpu(choose(group, option)):
        pytest.skip("needs a GPU that PyTorch can use")
    quiet = [f"{other}=[]" for other in ("callbacks", "logger") if other != group]
    patient = "patience:" in (conf_folder() / group / f"{option}.yaml").read_text()
    epochs = 11 if patient else 1  # of one batch; a patience of ten asks for more than ten
    short = (*quiet, "trainer.limit_train_batches=1", f"epochs={epochs}", "trainer.enable_progress_bar=false")
    needed = companions(group, option, tmp_path)
    result, _ = fit(*fitting(compose, "size=tiny", *short, choose(group, option), *needed))
    assert (result["status"], result["steps"]) == ("finished", epochs)


@pytest.mark.parametrize("model", options("model"))
@pytest.mark.parametrize(
    "size", [pytest.param(s, marks=pytest.mark.slow if s == "large" else ()) for s in options("size")]
)
def test_every_model_of_every_size_makes_a_step(compose: Compose, fit: Fit, model: str, size: str) -> None:
    one = ("trainer.limit_train_batches=1", "epochs=1", "trainer.enable_progress_bar=false")
    data = companions("model", model, Path())
    result, _ = fit(*fitting(compose, f"model={model}", f"size={size}", *data, *one))
    assert result["steps"] == 1


def test_larger_sizes_have_more_parameters(fit: Fit) -> None:
    order = ["tiny", "small", "base", "large"]
    assert sorted(order) == options("size")
    one = ("trainer.limit_train_batches=1", "epochs=1", "trainer.enable_progress_bar=false")
    counts = [fit(f"size={size}", *one)[0]["parameters"] for size in order]
    assert all(larger > smaller for smaller, larger in pairwise(counts))


# ---- experiments


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_opens_with_its_command_time_and_score(path: Path) -> None:
    opening = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        opening.append(line)
    comment = "\n".join(opening)
    assert f"python train.py experiment={path.stem}" in comment
    assert re.search(r"\d+(\.\d+)? (s|min|h)\b", comment), "no time"
    assert re.search(r"(test|val)/\w+ \d+(\.\d+)? ± \d+(\.\d+)?", comment), "no score with its spread"
    assert re.search(r"scikit-learn on the same split: \w+ \d", comment), "nothing beside it"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_makes_a_step(fit: Fit, path: Path) -> None:
    one = ("trainer.limit_train_batches=1", "epochs=2", "trainer.enable_progress_bar=false")
    result, _ = fit(f"experiment={path.stem}", *one)
    assert (result["status"], result["steps"]) == ("finished", 2)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_reaches_the_score_that_its_comment_promises(fit: Fit, path: Path) -> None:
    found = re.search(r"(test/\w+) ([\d.]+) ± ([\d.]+)", path.read_text())
    assert found, "no score in the comment"
    name, mean, spread = found[1], float(found[2]), float(found[3])
    result, _ = fit(f"experiment={path.stem}")
    # four standard deviations: one seed in 16,000 would fall outside, were the seeds normal; and what rounding hides
    assert result["test"][name] == pytest.approx(mean, abs=4 * spread + 1e-3)


# ---- the dials


def test_every_dial_stands_once_at_the_top_of_the_page() -> None:
    text = (conf_folder() / "train.yaml").read_text()
    groups = {name for name, field in Recipe.model_fields.items() if "tunelab.schema" in str(field.annotation)}
    groups -= {"objective_direction"}  # a choice of two words, not a group
    for dial in set(Recipe.model_fields) - groups:
        assert re.findall(rf"^{dial}:", text, flags=re.MULTILINE) == [f"{dial}:"]
    assert set(DIALS) == set(Recipe.model_fields) - groups


@every_file
def test_a_part_reads_a_dial_and_does_not_repeat_its_value(group: str, option: str) -> None:
    own = OmegaConf.to_container(file(group, option))
    assert isinstance(own, dict)
    if is_global(group, option):  # such a file may set dials, at its top
        own = {key: value for key, value in own.items() if isinstance(value, dict)}

    def repeated(node: Any) -> Iterator[str]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from repeated(value)
            elif key in DIALS and value != f"${{{key}}}":
                yield f"{key}: {value}"

    assert list(repeated(own)) == []


@pytest.mark.parametrize("option", options("optimizer"))
def test_an_optimizer_brings_its_own_lr_and_gives_way_to_a_typed_one(compose: Compose, option: str) -> None:
    own = file("optimizer", option)
    alone, given = compose(f"optimizer={option}"), compose("lr=0.0123", f"optimizer={option}")
    assert alone.lr == alone.optimizer.lr == own.lr
    assert given.lr == given.optimizer.lr == 0.0123


def test_sgd_alone_gets_the_lr_of_sgd(compose: Compose) -> None:
    assert compose("optimizer=sgd").optimizer.lr == 0.1  # shared/KNOBS.md, which gives adamw 1e-3
    assert compose("optimizer=adamw").optimizer.lr == 1e-3


@pytest.mark.parametrize("option", options("data"))
def test_a_data_set_brings_the_task_loss_and_objective_that_fit_it(
    compose: Compose, option: str, tmp_path: Path
) -> None:
    own = file("data", option)
    cfg = compose(f"data={option}", *local_files(option, tmp_path))
    validate(cfg)
    brought = dict(next(iter(entry.items())) for entry in own["defaults"])
    for group in ("task", "loss"):
        assert cfg[group]._target_ == file(group, brought[f"override /{group}"])._target_
    assert cfg.objective == own.objective != PAGE.objective


def test_the_command_line_beats_the_experiment_which_beats_the_data_and_the_optimizer_which_beat_the_page(
    tmp_path: Path, compose: Compose
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /data: diabetes\n  - override /optimizer: sgd\n  - override /loss: huber\n"
        "objective: val/mae\nlr: 0.02\nepochs: 7\n"
    )
    search = f"hydra.searchpath=[file://{tmp_path}]"
    page, data = compose(), compose("data=diabetes", "optimizer=sgd")
    experiment = compose(search, "experiment=mine")
    typed = compose(search, "experiment=mine", "objective=val/r2", "lr=0.3", "loss=mae", "epochs=2")
    assert (PAGE.lr, PAGE.objective) == (1e-3, "val/loss")
    assert page.epochs == data.epochs == PAGE.epochs
    assert (data.lr, data.objective, data.loss._target_) == (0.1, "val/rmse", "torch.nn.MSELoss")
    assert (experiment.lr, experiment.objective, experiment.epochs) == (0.02, "val/mae", 7)
    assert experiment.loss._target_ == "torch.nn.HuberLoss"
    assert (typed.lr, typed.objective, typed.epochs) == (0.3, "val/r2", 2)
    assert typed.loss._target_ == "torch.nn.L1Loss"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("group", ["size", "model", "scheduler", "loss"])
def test_an_option_typed_beside_an_experiment_is_the_one_that_runs(compose: Compose, path: Path, group: str) -> None:
    alone, chosen = compose(f"experiment={path.stem}"), options(group)[-1]
    typed = compose(f"experiment={path.stem}", f"{group}={chosen}")
    assert typed[group] == file(group, chosen)
    assert typed.data == alone.data


@pytest.mark.parametrize("option", options("debug"))
def test_debug_works_on_any_experiment_and_gives_way_to_the_command_line(compose: Compose, option: str) -> None:
    for path in EXPERIMENTS:
        cfg = compose(f"experiment={path.stem}", f"debug={option}", "epochs=3")
        validate(cfg)
        assert cfg.epochs == 3


# ---- sizes


@pytest.mark.parametrize("model", options("model"))
def test_the_width_can_be_set_on_any_model(compose: Compose, model: str) -> None:
    cfg = complete(compose(f"model={model}", "size.width=96"))
    task = build(cfg.task)
    kind, shape = ("image", (1, 8, 8)) if "image" in task.make_model.func.kinds else ("table", (64,))
    task.spec = DataSpec(kind, shape, 10, ("x",) * 64, tuple("0123456789"), (0.0,), (1.0,))
    task.configure_model()
    head = [module for module in task.model.modules() if isinstance(module, nn.Linear)][-1]
    assert (head.in_features, head.out_features) == (96, 10)


def test_the_trainer_takes_its_epochs_from_the_dial(compose: Compose) -> None:
    trainer = build(complete(compose("epochs=4", "trainer.enable_progress_bar=false")).trainer, logger=False)
    assert isinstance(trainer, Trainer)
    assert trainer.max_epochs == 4
