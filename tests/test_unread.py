"""A key that nothing reads is refused, and claimed by nothing: for generated tasks of the user's own, and for ours."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import TrialState
from test_command import refused as refused_in_words
from test_own_resume import own_project, run

from tunelab import catalogue
from tunelab.composing import composed, found_by_hydra, loader
from tunelab.config import check, plain
from tunelab.errors import ConfigError
from tunelab.reading import BUILT, OF_THE_RUN, Reading
from tunelab.sweep.hparams import _written
from tunelab.sweep.recipes import Recipes
from tunelab.sweep.samplers import Random
from tunelab.sweep.space import read_space
from tunelab.sweep.trials import Trials

OTHERS = {
    "size": "tiny",
    "activation": "gelu",
    "model": "cnn",
    "init": "zeros",
    "loss": "focal",
    "scheduler": "linear",
    "optimizer": "adam",
    "augmentation": "light",
    "regularization": "[l1]",
    "clipping": "norm",
    "batch_growth": "factor",
    "profiler": "simple",
    "logger": "[csv]",
    "callbacks": "[lr]",
    "trainer": "ddp",
}
"""Another option than the default of each group that does not name the task or the data, which are generated."""

VALUES = {
    "batch_size": 32,
    "lr": 0.5,
    "weight_decay": 0.3,
    "dropout": 0.3,
    "label_smoothing": 0.3,
    "stochastic_depth": 0.3,
    "warmup_steps": 3,
    "warmup_fraction": 0.3,
    "fold": "0/5",
    "compile": True,
    "seed": 3,
    "threads": 3,
    "epochs": 3,
    "size.width": 40,
    "size.depth": 7,
    "model.width": 40,
    "optimizer.betas": [0.5, 0.5],
    "optimizer.eps": 0.1,
    "scheduler.eta_min": 1e-6,
    "init._target_": "tunelab.inits.zeros",
    "parameter_groups.layer_decay": 0.5,
    "data.split_seed": 3,
    "data.shuffle": False,
    "trainer.log_every_n_steps": 3,
}
READ = (
    *("model", "init", "loss", "optimizer", "parameter_groups", "scheduler", "regularization", "augmentation"),
    *("clipping", "batch_growth", "compile", "lr", "weight_decay", "dropout", "label_smoothing", "warmup_steps"),
    *("warmup_fraction", "stochastic_depth", "seed", "batch_size", "size.width", "optimizer.eps", "optimizer.lr"),
    *("model.width", "scheduler.eta_min", "activation", "size", "fold"),
)
"""What a generated task may read."""

WAYS = ("${%s}", "${oc.select:%s,0}", "so ${%s} it is", "${..%s}")
"""How it may refer to it; with two dots, as it stands one below the top."""


def own_recipe(raw: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], list[str]]:
    """A recipe whose task reads a random part of what there is, and whose data reads the batch size or not."""
    raw = copy.deepcopy(raw)
    read = rng.sample(READ, rng.randrange(len(READ)))
    task: dict[str, Any] = {"_target_": "torch.nn.Identity"}
    for number, key in enumerate(read):
        way = WAYS[rng.randrange(len(WAYS))] if "." not in key and key not in OTHERS else WAYS[0]
        flat = way == WAYS[3] or rng.random() < 0.5
        task[f"argument{number}"] = way % key if flat else [{"inner": way % key}]
    raw["task"] = task
    if rng.random() < 0.5:
        raw["data"] = {"_target_": "torch.nn.Identity"}
    return raw | {"objective": "val/loss", "objective_direction": "minimize"}, read


def put(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with another value."""
    changed = copy.deepcopy(raw)
    *parents, name = key.split(".")
    node = changed
    for parent in parents:
        node = node[parent]
    node[name] = value
    return changed


def followed(node: Any, root: dict[str, Any], path: tuple[str, ...] = ()) -> Any:
    """A node with the interpolations that stand in the catalogue and in WAYS followed, in the plainest way."""
    if isinstance(node, dict):
        return {name: followed(child, root, (*path, name)) for name, child in node.items()}
    if isinstance(node, list):
        return [followed(child, root, (*path, "")) for child in node]
    if not (isinstance(node, str) and "${" in node):
        return node
    key = re.sub(r"^.*\$\{(oc.select:)?([\w.:]+).*$", r"\2", node).removeprefix("..")
    if key.startswith("hydra:"):
        return node
    there: Any = root
    for step in key.split("."):
        there = (followed(there, root) if isinstance(there, str) else there)[step]
    return followed(there, root)


def built(raw: dict[str, Any]) -> dict[str, Any]:
    """What a run is made of: an independent answer to what a key changes."""
    return {key: followed(raw[key], raw, (key,)) for key in (*BUILT, *OF_THE_RUN)}


def refused(raw: dict[str, Any], *keys: str) -> bool:
    """Whether the keys are refused as unread; any other sentence fails the test."""
    try:
        check(raw, followed(raw, raw), keys)
        return False
    except ConfigError as error:
        mistakes = error.mistakes
    assert all(re.match(r"`[\w.]+` must be read by a chosen part, got ", said) for said in mistakes), mistakes
    assert {said.split("`")[1] for said in mistakes} <= set(keys)
    return True


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    return plain(composed("name=test").cfg, resolve=False)


@pytest.mark.parametrize("seed", range(20))
def test_a_key_of_an_own_recipe_changes_what_is_built_or_is_refused(raw: dict[str, Any], seed: int) -> None:
    own, read = own_recipe(raw, random.Random(seed))
    assert not refused(own), read
    before, unread = built(own), Reading(own).unread()
    for key, value in VALUES.items():
        if key.startswith("data.") and len(own["data"]) == 1:
            continue
        changed = put(own, key, value)
        if key.startswith("warmup"):  # one of them is given, not both
            changed = put(changed, "warmup_fraction" if key == "warmup_steps" else "warmup_steps", 0)
        matters = built(changed) != before
        assert refused(changed, key) == (not matters), (key, read)
        assert any(key == each or key.startswith(f"{each}.") for each in unread) == (not matters), (key, read)


@pytest.fixture(scope="module")
def others() -> dict[str, Any]:
    """The recipe with another option of each group."""
    return plain(composed("name=test", *(f"{group}={option}" for group, option in OTHERS.items())).cfg, resolve=False)


@pytest.mark.parametrize("seed", range(10))
def test_an_option_of_an_own_recipe_is_built_or_is_refused(
    raw: dict[str, Any], others: dict[str, Any], seed: int
) -> None:
    before, read = own_recipe(raw, random.Random(seed))
    for group in OTHERS:
        changed, _ = own_recipe(raw | {group: others[group]}, random.Random(seed))
        whole = group not in ("optimizer", "model", "scheduler") or group in read  # not only a number of it
        matters = whole and built(changed) != built(before)
        assert refused(changed, group) == (not matters), (group, read)


# ---- our own tasks


def leaves(node: dict[str, Any], parent: str = "") -> list[str]:
    found = []
    for name, child in node.items():
        key = f"{parent}{name}"
        found += leaves(child, f"{key}.") if isinstance(child, dict) else [] if name == "_partial_" else [key]
    return found


@pytest.mark.parametrize(
    "words", ["data=digits model=resnet loss=focal", "data=diabetes model=mlp loss=huber", "model=vit"]
)
def test_every_key_of_the_catalogue_changes_what_is_built_or_is_refused(words: str) -> None:
    cfg = composed("name=test", *words.split(), "regularization=[l1,ema]", "clipping=norm", "batch_growth=factor").cfg
    raw = plain(cfg, resolve=False)
    before, reading = built(raw), Reading(raw)
    for key in leaves(raw):
        assert reading.reads(key) == (built(put(raw, key, "other")) != before), key
    assert set(reading.unread()) <= {"label_smoothing", "stochastic_depth"}


def test_our_tasks_build_the_option_of_every_group(raw: dict[str, Any], others: dict[str, Any]) -> None:
    assert [group for group in OTHERS for each in (raw, others) if not Reading(each).takes(group)] == []


# ---- a project with tasks of its own

OWN = """
    import torch
    from lightning import LightningModule
    from torch import nn

    class Plain(LightningModule):
        def __init__(self, lr):
            super().__init__()
            self.lr, self.net = lr, nn.Linear(4, 3)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), self.lr)

    class Swallows(Plain):
        def __init__(self, lr, loss, init=None, **rest):
            super().__init__(lr)
            self.scale = rest.get("dropout", 0.0)

    class Passes(Plain):
        def __init__(self, lr, **rest):
            super().__init__(lr)
            self.rest = rest

    class Saves(Plain):
        def __init__(self, lr, loss, **rest):
            super().__init__(lr)
            self.save_hyperparameters(ignore=["loss"])
"""
PARTS = {name: f"${{{name}}}" for name in ("loss", "init", "model", "dropout", "optimizer")}
WORDS = ("data=iris", "epochs=1", "threads=1", "objective=val/loss")
UNREAD = (
    "optimizer=sgd",
    "loss=focal",
    "model=cnn",
    "clipping=norm",
    "regularization=[l1]",
    "init=zeros",
    "dropout=0.1",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with own_project(tmp_path_factory.mktemp("own"), "ownunread", OWN) as folder:
        (folder / "conf" / "task").mkdir()
        for name in ("Plain", "Swallows", "Passes", "Saves"):
            parts = {} if name == "Plain" else PARTS
            content = {"_target_": f"ownunread.{name}", "lr": "${lr}", **parts}
            (folder / "conf" / "task" / f"{name.lower()}.yaml").write_text(yaml.safe_dump(content))
        yield folder


def test_what_an_own_task_does_not_read_is_refused_all_at_once(project: Path) -> None:
    said = refused_in_words(run(project, *WORDS, "task=plain", *UNREAD), 1).splitlines()
    assert [line.split("`")[1] for line in said] == [word.split("=")[0] for word in UNREAD]
    assert said[0] == (
        "`optimizer` must be read by a chosen part, got torch.optim.SGD, but none of them builds it. "
        "Leave it out, or write optimizer: ${optimizer} into the file of a part that takes it."
    )


def test_the_opening_line_and_the_table_of_runs_claim_only_what_is_read(project: Path) -> None:
    outcome = run(project, *WORDS, "task=plain", "lr=0.05", "hydra.run.dir=plain")
    assert outcome.code == 0, outcome.text
    assert "iris · task plain, 15 parameters · Adam lr 0.05 · 1 epoch of 2 steps · 1 thread" in outcome.text
    assert "The test set is not scored: Plain has no test_step." in outcome.text
    row = _written(project / "plain" / "tensorboard")
    assert set(row) == {
        *("data", "task", "trainer", "callbacks", "logger", "seed", "threads", "epochs", "batch_size", "lr"),
        *("find_lr", "objective", "objective_direction", "test"),
    }
    again = run(project, "repeat=plain", "hydra.run.dir=again")
    assert "iris · task plain, 15 parameters · Adam lr 0.05" in again.text
    assert _written(project / "again" / "tensorboard") == row


@pytest.mark.parametrize(
    ("task", "swallowed"),
    [("swallows", {"loss", "init", "model", "optimizer"}), ("passes", set()), ("saves", set())],
)
def test_what_a_constructor_takes_and_never_looks_at_is_not_read(project: Path, task: str, swallowed: set[str]) -> None:
    shown = ("loss=focal", "init=zeros", "model=mlp", "optimizer=sgd", "dropout=0.1")
    outcome = run(project, *WORDS, f"task={task}", *shown, "--cfg", "job")
    assert {line.split("`")[1] for line in outcome.err.splitlines()} == swallowed
    assert "which is given it and does not look at it" in outcome.err or not swallowed


def test_a_search_over_what_nothing_reads_is_refused(project: Path) -> None:
    said = refused_in_words(
        run(project, "-m", *WORDS, "task=plain", "loss=cross_entropy,focal", "optimizer=sgd,adam", "size.width=8,16"), 1
    )
    assert [line.split("`")[1] for line in said.splitlines()] == ["loss", "optimizer", "size.width"]


def test_a_search_leaves_out_what_a_trial_does_not_read(project: Path) -> None:
    words = ("task=classification,plain", "optimizer=adam,sgd", "dropout=0.0,0.1", "size=tiny", "name=two")
    outcome = run(project, "-m", *WORDS, *words)
    assert outcome.code == 0, outcome.text
    table = pd.read_csv(project / "outputs" / "sweeps" / "two" / "results.csv", dtype=str)
    tried = table[["task", "optimizer", "dropout"]].fillna("").apply(tuple, axis=1)
    assert sorted(tried) == [
        *(("classification", name, dropout) for name in ("adam", "sgd") for dropout in ("0.0", "0.1")),
        ("plain", "", ""),
    ]


def test_a_sampler_draws_what_is_read_alone(project: Path) -> None:
    with found_by_hydra("train", project / "conf"):
        typed = ["loss=mse,mae,huber", "task=regression,plain", "data=diabetes", "objective=val/loss"]
        parsed = OverridesParser.create(config_loader=loader()).parse_overrides(typed)
        recipes = Recipes(loader(), "train", read_space(parsed, catalogue.groups(loader()), 0), [])
        assert recipes.conditional == ["loss"]
        sampler = Random(seed=0)
        sampler.space = recipes.space
        study = optuna.create_study(sampler=sampler)
        trials = Trials(study, recipes.space, recipes.active, project, 20, None, recipes.conditional)
        while claim := trials.next():
            assert set(claim.values) == ({"task", "loss"} if claim.values["task"] == "regression" else {"task"})
            trials.end(claim, TrialState.COMPLETE, 1.0)
        trials.owner.close()
    assert {tuple(sorted(trial.params)) for trial in study.trials} == {("loss", "task"), ("task",)}
