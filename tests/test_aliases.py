"""A key that passes on another is that key: one value, whichever of the two is typed, in runs, searches and tools."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from test_command import refused, typed

import tunelab
from tunelab import conf_folder
from tunelab.aliases import PLACES, without_aliases
from tunelab.composing import composed
from tunelab.config import plain
from tunelab.errors import ConfigError
from tunelab.folder import RunFolder

PARSER = OverridesParser.create()

IRIS = ("data=iris", "size=tiny", "threads=1", "logger=[]")

OWN_SETTINGS = {
    "data.workers": "threads",
    "data.task": "task._target_",
    "scheduler.monitor": "objective",
    "scheduler.direction": "objective_direction",
    "regularization.early_stopping.monitor": "objective",
    "regularization.early_stopping.direction": "objective_direction",
    "logger.mlflow.experiment": "name",
    "logger.wandb.name": "name",
    "pruner.max_resource": "epochs",
    "sweep.sampler.seed": "sweep.seed",
}
"""The keys of conf/ that only begin from another: typing one changes nothing else."""

VALUES: dict[str, list[Any]] = {
    "epochs": [2, 7],
    "lr": [0.5, 0.02],
    "weight_decay": [0.3, 0.0],
    "batch_size": [16, 48],
    "fold": ["0/4", "2/3"],
    "dropout": [0.25, 0.4],
    "stochastic_depth": [0.2, 0.3],
    "size.width": [24, 64],
    "size.depth": [2, 3],
    "label_smoothing": [0.05, 0.2],
    "warmup_steps": [3, 9],
    "warmup_fraction": [0.1, 0.2],
    "seed": [5, 11],
    "compile": ["true", "true"],
}


def _links(node: Any, place: str) -> list[tuple[str, str]]:
    if isinstance(node, dict):
        return [found for key, child in node.items() for found in _links(child, f"{place}.{key}".lstrip("."))]
    link = re.fullmatch(r"\$\{([\w.]+)\}", str(node))
    return [(place, link[1])] if link else []


def _found() -> dict[str, dict[str, str]]:
    """Of each option of conf/, as group=option, the keys that pass on another value, read from its file."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(conf_folder().glob("*/*.yaml")):
        group, text = path.parent.name, path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
        content.pop("defaults", None)
        links = _links(content, "" if "# @package _global_" in text else group)
        leaves = {place: to for place, to in links if not (conf_folder() / to).is_dir() and to != "parameter_groups"}
        if leaves and group != "experiment":
            found[f"{group}={path.stem}"] = leaves
    return found


FOUND = _found()
ALIASES = {
    option: {place: target for place, target in links.items() if place not in OWN_SETTINGS}
    for option, links in FOUND.items()
}


def test_every_link_in_conf_is_to_a_value_that_is_tried_below_or_is_a_setting_of_its_own() -> None:
    links = {place: target for each in FOUND.values() for place, target in each.items()}
    assert len(ALIASES) > 50
    assert {place: target for place, target in links.items() if place in OWN_SETTINGS} == OWN_SETTINGS
    assert {target for place, target in links.items() if place not in OWN_SETTINGS} == set(VALUES)
    others = {"data.seed", "task.seed", "batch_growth.batch_size"}  # beside the place where it has its effect
    assert {target: place for place, target in links.items() if place not in others | OWN_SETTINGS.keys()} == PLACES


def _values(option: str) -> dict[str, Any]:
    """A value for each key that the parts of an option pass on."""
    chosen = random.Random(option)
    values = {target: chosen.choice(VALUES[target]) for target in ALIASES[option].values()}
    return values | ({"warmup_fraction": 0} if "warmup_steps" in values else {})


@pytest.mark.parametrize("option", [option for option, links in ALIASES.items() if links])
def test_a_key_is_read_as_the_one_that_it_passes_on(option: str, compose: Callable[..., DictConfig]) -> None:
    raw, values = plain(compose(option), resolve=False), _values(option)
    by_place = [f"{place}={values[target]}" for place, target in ALIASES[option].items()]
    by_name = list(dict.fromkeys(f"{target}={values[target]}" for target in ALIASES[option].values()))
    found = without_aliases(PARSER.parse_overrides(by_place), (), lambda arguments: raw)
    assert [override.input_line for override in found] == by_name


@pytest.mark.parametrize("option", ["optimizer=muon", "model=vit", "data=waves", "scheduler=plateau", "trainer=cpu"])
def test_a_key_and_the_one_that_it_passes_on_make_the_same_recipe_and_record(option: str) -> None:
    values = _values(option)
    by_place = composed(option, *(f"{place}={values[target]}" for place, target in ALIASES[option].items()))
    by_name = composed(option, *(f"{target}={value}" for target, value in values.items()))
    assert by_place == by_name
    for place, target in ALIASES[option].items():
        assert OmegaConf.select(by_place.cfg, place) == OmegaConf.select(by_place.cfg, target)
        assert str(OmegaConf.select(by_place.cfg, target)) == str(values[target])


def test_a_setting_of_its_own_that_only_begins_from_another_keeps_the_other(compose: Callable[..., DictConfig]) -> None:
    words = ("scheduler=plateau", "scheduler.monitor=val/loss", "objective=val/accuracy", "data=image_folder")
    cfg = composed(*words, "data.workers=3", "threads=2", "sweep.seed=4", "seed=1").cfg
    assert (cfg.scheduler.monitor, cfg.objective, cfg.data.workers, cfg.threads, cfg.seed) == (
        *("val/loss", "val/accuracy", 3, 2, 1),
    )


# ---- the command line


DOORS = {
    "optimizer.lr": ("lr", "0.05"),
    "optimizer.weight_decay": ("weight_decay", "0.3"),
    "data.batch_size": ("batch_size", "16"),
    "data.fold": ("fold", "1/4"),
    "model.dropout": ("dropout", "0.25"),
    "model.width": ("size.width", "24"),
    "loss.label_smoothing": ("label_smoothing", "0.1"),
    "scheduler.warmup_steps": ("warmup_steps", "3"),
    "task.seed": ("seed", "7"),
    "trainer.max_epochs": ("epochs", "2"),
}


def test_a_run_is_announced_recorded_and_trained_alike_by_either_name(tmp_path: Path) -> None:
    words = ("data=iris", "size=tiny", "threads=1")
    by_place = typed(tmp_path, *words, *(f"{place}={value}" for place, (_, value) in DOORS.items()))
    by_name = typed(tmp_path, *words, *(f"{name}={value}" for name, value in DOORS.values()))
    assert by_place.code == by_name.code == 0, by_place.text
    opening = re.search(r"^iris .*$", by_place.err, re.M)
    assert opening
    assert opening[0] in by_name.err
    assert "adamw lr 0.05 · 2 epochs of 7 steps" in opening[0]
    folders = [tmp_path / by_place.folder, tmp_path / by_name.folder]
    for name in ("config.yaml", "metrics.csv"):
        assert (folders[0] / name).read_text() == (folders[1] / name).read_text()
    records = [json.loads((folder / "run.json").read_text()) for folder in folders]
    assert records[0]["overrides"] == records[1]["overrides"] == [*words, *(f"{n}={v}" for n, v in DOORS.values())]
    hparams = [_hparams(folder) for folder in folders]
    assert hparams[0] == hparams[1]
    assert (hparams[0]["lr"], hparams[0]["weight_decay"], hparams[0]["epochs"]) == (0.05, 0.3, 2)
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    assert results[0]["objective"] == results[1]["objective"]
    assert results[0]["test"] == results[1]["test"]


def _hparams(folder: Path) -> dict[str, Any]:
    """What the HParams tab shows of a run, read from its event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(found).session_start_info.hparams
    return {key: getattr(value, str(value.WhichOneof("kind"))) for key, value in values.items()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lr=0.1", "optimizer.lr=0.5"), "`optimizer.lr` must have the value of lr, which it passes on, got lr=0.1 "),
        (("optimizer.lr=0.5", "lr=0.1"), "got optimizer.lr=0.5 beside lr=0.1. Leave one of them out."),
        (("task.seed=1", "data.seed=2"), "must have the value of seed, which it passes on, got task.seed=1 beside"),
        (("epochs=2", "trainer.max_epochs=3"), "`trainer.max_epochs` must have the value of epochs"),
        (("-m", "lr=0.1,0.2", "optimizer.lr=0.1,0.3"), "got lr=0.1,0.2 beside optimizer.lr=0.1,0.3."),
        (("-m", "lr=0.1,0.2", "optimizer.lr=0.1"), "`lr` must be given once, got it 2 times."),
        (("optimizer=lbfgs", "optimizer.weight_decay=0.1"), "optimizer.weight_decay"),
        (("optimizer.lr=-1",), "`lr` must be greater than 0, got -1"),
        (("trainer.max_epochs=0",), "`epochs` must be at least 1, got 0."),
    ],
)
def test_two_values_for_one_key_and_wrong_ones_are_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    outcome = typed(tmp_path, *words)
    assert said in refused(outcome, 2 if "optimizer=lbfgs" in words else 1)
    assert not (tmp_path / "outputs").exists()


def test_the_same_value_by_both_names_is_given_once(tmp_path: Path) -> None:
    outcome = typed(tmp_path, "lr=1e-1", "optimizer.lr=0.1", "optimizer.lr=0.10", "--cfg", "job")
    assert outcome.code == 0
    assert OmegaConf.create(outcome.out).lr == 0.1
    assert composed("lr=1e-1", "optimizer.lr=0.1", "optimizer.lr=0.10").overrides == ["lr=1e-1"]
    assert composed("optimizer.lr=${lr}").cfg == composed().cfg


def test_the_decay_of_an_optimizer_is_the_decay(tmp_path: Path) -> None:
    shown = typed(tmp_path, "optimizer.weight_decay=0.3", "--cfg", "job")
    assert shown.code == 0, "which was refused, as nobody reads weight_decay"
    assert OmegaConf.create(shown.out).weight_decay == 0.3


# ---- searches


@pytest.mark.slow
def test_a_search_over_a_key_that_passes_on_another_is_one_over_that(tmp_path: Path) -> None:
    words = ("-m", *IRIS, "epochs=1", "optimizer=sgd", "name=both", "test=false")
    outcome = typed(tmp_path, *words, "optimizer.lr=0.1,0.2", "task.seed=3")
    assert outcome.code == 0, outcome.text
    with (tmp_path / "outputs/sweeps/both/results.csv").open() as file:
        rows = {float(row["lr"]): row for row in csv.DictReader(file)}
    assert rows.keys() == {0.1, 0.2}
    assert "optimizer.lr" not in rows[0.1]
    for lr, row in rows.items():
        run = RunFolder(tmp_path / "outputs/sweeps/both" / row["trial"])
        assert (run.config.lr, run.config.optimizer.lr, run.config.seed, run.config.task.seed) == (lr, lr, 3, 3)
        assert run.record["overrides"][-2:] == ["seed=3", f"lr={lr}"]
    again = typed(tmp_path, *words, "lr=0.1,0.2", "seed=3")
    assert again.code == 0, again.text
    assert "was made for another" not in again.text, "it is the same study"
    assert len((tmp_path / "outputs/sweeps/both/results.csv").read_text().splitlines()) == 3


SPACES = {
    "optimizer.lr=0.1,0.2": "lr=0.1,0.2",
    "optimizer.lr=choice(1e-3,1e-2)": "lr=choice(1e-3,1e-2)",
    "optimizer.lr=interval(1e-4,1e-1)": "lr=interval(1e-4,1e-1)",
    "optimizer.lr=tag(log,interval(1e-4,1e-1))": "lr=tag(log,interval(1e-4,1e-1))",
    "data.batch_size=range(8,64,8)": "batch_size=range(8,64,8)",
    "++model.dropout=shuffle(0.1,0.2)": "dropout=shuffle(0.1,0.2)",
    "optimizer.momentum=0.1,0.9": "optimizer.momentum=0.1,0.9",
    "+optimizer.maximize=true,false": "+optimizer.maximize=true,false",
}
RAW = {
    "lr": 0.1,
    "batch_size": 8,
    "dropout": 0.0,
    "optimizer": {"lr": "${lr}", "momentum": 0.9},
    "data": {"batch_size": "${batch_size}"},
    "model": {"dropout": "${dropout}"},
}


@pytest.mark.parametrize("space", SPACES)
def test_every_kind_of_search_space_is_written_to_the_key_itself(space: str) -> None:
    parse = PARSER.parse_overrides
    (found,) = without_aliases(parse([space]), (), lambda arguments: RAW)
    assert found.input_line == SPACES[space]
    assert found.is_sweep_override() == parse([SPACES[space]])[0].is_sweep_override()


def test_a_key_that_is_its_own_with_some_options_of_a_search_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "own/optimizer/mine.yaml", "{_target_: torch.optim.SGD, _partial_: true, lr: 0.3}")
    words = ("--config-dir", "own", *IRIS, "optimizer=sgd,mine", "optimizer.lr=0.1,0.2")
    said = refused(typed(tmp_path, "-m", *words), 1)
    assert "`optimizer.lr` must be the same key in all trials, got lr with some of the options" in said


# ---- files of the user's own


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_link_in_a_file_of_the_users_own_is_one_too(tmp_path: Path) -> None:
    file = "{_target_: torch.optim.SGD, _partial_: true, lr: '${lr}', momentum: '${my_momentum}'}"
    _write(tmp_path / "own/optimizer/mine.yaml", file)
    _write(tmp_path / "own/experiment/more.yaml", "# @package _global_\nmy_momentum: 0.8\n")
    words = ("--config-dir", "own", "optimizer=mine", "experiment=more", "optimizer.lr=0.3", "optimizer.momentum=0.4")
    shown = typed(tmp_path, *words, "--cfg", "job")
    assert shown.code == 0, shown.text
    cfg = OmegaConf.create(shown.out)
    assert (cfg.lr, cfg.optimizer.lr, cfg.my_momentum, cfg.optimizer.momentum) == (0.3, 0.3, 0.4, 0.4)


@pytest.mark.parametrize("kind", ["experiment", "optimizer"])
def test_a_number_that_a_file_writes_in_the_place_of_a_key_is_that_key(tmp_path: Path, kind: str) -> None:
    if kind == "experiment":
        _write(
            tmp_path / "own/experiment/mine.yaml",
            "# @package _global_\noptimizer: {lr: 0.25}\ntrainer: {max_epochs: 2}\n",
        )
        chosen = ("--config-dir", "own", *IRIS, "experiment=mine")
    else:
        _write(tmp_path / "own/optimizer/mine.yaml", "{_target_: torch.optim.SGD, _partial_: true, lr: 0.25}")
        chosen = ("--config-dir", "own", *IRIS, "optimizer=mine", "trainer.max_epochs=2")
    outcome = typed(tmp_path, *chosen)
    assert outcome.code == 0, outcome.text
    assert "lr 0.25 · 2 epochs of" in outcome.err
    cfg = RunFolder(tmp_path / outcome.folder).config
    assert (cfg.lr, cfg.optimizer.lr, cfg.epochs, cfg.trainer.max_epochs) == (0.25, 0.25, 2, 2)
    said = refused(typed(tmp_path, *chosen, "lr=0.1"), 1)
    assert "`lr` must be read by a chosen part, but a file gives optimizer.lr the value 0.25 of its own." in said
    assert "Type optimizer.lr=<value>, or write `lr: ${lr}` there." in said
    assert "`find_lr` must have an lr to set" in refused(typed(tmp_path, *chosen, "find_lr=true"), 1)
    assert "optimizer.lr" in refused(typed(tmp_path, *chosen, "-m", "lr=0.1,0.2"), 1)


# ---- runs and studies from before


@pytest.mark.slow
def test_a_resumed_run_that_was_typed_by_another_name_keeps_what_it_was_trained_with(tmp_path: Path) -> None:
    outcome = typed(tmp_path, *IRIS, "optimizer=sgd", "optimizer.lr=0.05", "trainer.max_epochs=2")
    folder = tmp_path / outcome.folder
    record = json.loads((folder / "run.json").read_text())
    record["overrides"] = [*IRIS, "optimizer=sgd", "optimizer.lr=0.05", "trainer.max_epochs=2"]  # as once
    (folder / "run.json").write_text(json.dumps(record))
    cfg = RunFolder(folder).config
    cfg.lr, cfg.epochs = 0.1, 30
    OmegaConf.save(cfg, folder / "config.yaml")
    said = refused(typed(tmp_path, f"resume={outcome.folder}"), 1)
    assert "the run has ended after 2 epochs. To go on, add epochs=4." in said
    resumed = typed(tmp_path, f"resume={outcome.folder}", "epochs=3")
    assert resumed.code == 0, resumed.text
    assert "sgd lr 0.05 · 3 epochs of 2 steps" in resumed.err
    assert "steps 5 to 6" in resumed.out
    cfg = RunFolder(folder).config
    assert (cfg.lr, cfg.optimizer.lr, cfg.epochs, cfg.trainer.max_epochs) == (0.05, 0.05, 3, 3)
    further = typed(tmp_path, f"resume={outcome.folder}", "trainer.max_epochs=4")
    assert "steps 7 to 8" in further.out, further.text


# ---- Python and the tools


def test_the_tools_take_a_key_by_either_name(tmp_path: Path) -> None:
    words = ("data=iris", "size=tiny", "epochs=2", "optimizer=sgd", "scheduler=constant")
    by_place = tunelab.show_schedule(*words, "optimizer.lr=0.5", "data.batch_size=16")
    by_name = tunelab.show_schedule(*words, "lr=0.5", "batch_size=16")
    assert by_place.values() == by_name.values()
    assert by_place.values()["lr"]["peak"] == 0.5
    assert by_place.said() == by_name.said()
    with pytest.raises(ConfigError, match=r"got lr=0.1 beside optimizer.lr=0.5"):
        tunelab.show_schedule("lr=0.1", "optimizer.lr=0.5")
    shown = typed(tmp_path, "show_schedule", *words, "optimizer.lr=0.5")
    assert "lr 0.5 at each step" in shown.out
    assert "lr=0.5" in shown.out.splitlines()[3], shown.out
