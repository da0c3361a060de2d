"""What a config may build: our parts and a few packages, and nothing that runs what it likes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from test_command import REPOSITORY, refused, typed

from tunelab.config import validate, validate_targets
from tunelab.errors import ConfigError
from tunelab.fitting import build
from tunelab.whitelist import whitelist

Compose = Callable[..., DictConfig]

ATTACKS = [
    "os.system",
    "os.popen",
    "os.execv",
    "posix.system",
    "subprocess.run",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "builtins.__import__",
    "importlib.import_module",
    "runpy.run_path",
    "shutil.rmtree",
    "pathlib.Path.unlink",
    "pickle.loads",
    "functools.partial",
    "operator.methodcaller",
    "ctypes.CDLL",
    "socket.create_connection",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.utils.cpp_extension.load",
    "numpy.load",
    "pandas.read_pickle",
    "hydra.utils.instantiate",
    "hydra.utils.get_method",
    "omegaconf.OmegaConf.load",
    "tunelab.main",
    "tunelab.load",
    "tunelab.command.main",
    "tunelab.run.train",
    "tunelab.fitting.build",
    "tunelab.folder.write_atomic",
    "tunelab.predictor.load",
    "lightning.pytorch.cli.LightningCLI",
    "lightning.Trainer.fit",
    "tunelabx.models.MLP",
    "tunelab.modelsx.MLP",
    "torch.optimx.SGD",
    "torch.nnx.Linear",
    "torchmetricsx.Accuracy",
    "lightning.pytorch.TrainerX",
]

# what our own and the trusted packages have imported is not theirs
DETOURS = [
    "torch.optim.optimizer.torch.load",
    "torch.optim.optimizer.torch.hub.load",
    "torch.nn.modules.module.torch.load",
    "torch.nn.modules.module.functools.partial",
    "tunelab.callbacks.checkpoint.shutil.rmtree",
    "tunelab.callbacks.checkpoint.Path.unlink",
    "tunelab.loggers.write_atomic",
    "tunelab.data.bundled.np.load",
    "tunelab.tasks.parts.inspect.os.system",
    "lightning.pytorch.callbacks.model_checkpoint.os.system",
    "lightning.pytorch.callbacks.model_checkpoint.shutil.rmtree",
]

PLACES = ["model", "activation", "init", "loss", "optimizer", "scheduler", "data", "task", "trainer"]


@pytest.mark.parametrize("target", ATTACKS)
def test_a_target_outside_the_whitelist_is_refused_before_anything_is_built(target: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"`model\._target_` must be in a trusted package, got {re.escape(target)}\."
    ):
        validate_targets(OmegaConf.create({"model": {"_target_": target}}))


@pytest.mark.parametrize("target", [*ATTACKS, *DETOURS])
@pytest.mark.parametrize("form", ["plain", "partial", "nested", "in a list"])
def test_build_refuses_it_too_whatever_was_validated(target: str, form: str) -> None:
    node: dict[str, Any] = {"_target_": target, "_args_": ["/nowhere"]}
    if form == "partial":
        node["_partial_"] = True
    elif form == "nested":
        node = {"_target_": "torch.nn.Linear", "in_features": node, "out_features": 1}
    elif form == "in a list":
        node = {"_target_": "torch.nn.Linear", "_args_": [[node], 1]}
    with pytest.raises(ConfigError, match=re.escape(target.rsplit(".", 1)[-1])):
        build(OmegaConf.create(node))


@pytest.mark.parametrize("place", PLACES)
def test_a_target_is_refused_wherever_it_stands(compose: Compose, place: str) -> None:
    with pytest.raises(ConfigError, match=rf"`{place}\._target_` must be in a trusted package, got os\.system\."):
        validate(compose(f"{place}._target_=os.system"))


@pytest.mark.parametrize(
    "words",
    ["+model.extra={_target_:os.system}", "+callbacks.x={_target_:os.system}", "+size.x=[{_target_:os.system}]"],
)
def test_a_target_that_was_added_is_refused(compose: Compose, words: str) -> None:
    with pytest.raises(ConfigError, match=r"_target_` must be in a trusted package, got os\.system\."):
        validate(compose(words))


def test_every_target_that_is_not_trusted_is_named(compose: Compose) -> None:
    with pytest.raises(ConfigError) as refusal:
        validate(compose("model._target_=os.system", "loss._target_=builtins.eval"))
    assert [re.findall(r"got ([\w.]+)\. ", mistake)[0] for mistake in refusal.value.mistakes] == [
        "os.system",
        "builtins.eval",
    ]


WIDENED = {"_execution_whitelist_": ["os.*"], "_convert_": "none", "_recursive_": False}


@pytest.mark.parametrize("key", WIDENED)
def test_a_config_cannot_widen_the_whitelist_itself(key: str, tmp_path: Path) -> None:
    node = {"_target_": "os.mkdir", "_args_": [f"{tmp_path}/owned"], key: WIDENED[key]}
    outer = {"_target_": "torch.nn.Linear", "in_features": node, "out_features": 1}
    for attack in (node, outer, {**outer, key: node[key]}):
        # a TypeError where the target was left a plain dict
        with pytest.raises((ConfigError, TypeError), match=r"os\.mkdir|whitelist|got dict"):
            build(OmegaConf.create(attack))
    assert not (tmp_path / "owned").exists()


def test_hydras_own_doors_are_shut_too(tmp_path: Path) -> None:
    (tmp_path / "conf" / "hydra" / "job_logging").mkdir(parents=True)
    (tmp_path / "conf" / "hydra" / "job_logging" / "evil.yaml").write_text(
        "defaults: [default]\n"
        f"handlers: {{x: {{'()': os.mkdir, path: {tmp_path}/owned}}}}\nroot: {{handlers: [console, x]}}\n"
    )
    words = ("--config-dir", "conf", "hydra/job_logging=evil", "size=tiny", "epochs=1", "hydra.run.dir=run")
    outcome = typed(tmp_path, *words)
    assert not (tmp_path / "owned").exists()
    assert outcome.code == 1
    assert "os.mkdir" in outcome.err


def test_what_the_catalogue_needs_may_be_built(compose: Compose) -> None:
    validate_targets(compose("regularization=[l1,l2,early_stopping]", "profiler=simple", "clipping=norm"))
    assert build(OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2})).bias.shape == (
        2,
    )


def test_an_argument_that_a_part_does_not_take_is_said_in_words() -> None:
    with pytest.raises(ConfigError, match=r"must be a key that the part takes, got shape.*") as refusal:
        build(OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": 3, "shape": 2}))
    assert "Traceback" not in str(refusal.value)


# ---- trusting a package of one's own


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that is not ours, with a model, on the path."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "myparts.py").write_text(
        "from torch import nn\n\n\n"
        "class Plain(nn.Sequential):\n"
        "    def __init__(self, input_shape, output_size, width):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, output_size))\n"
    )
    conf = tmp_path / "conf" / "model"
    conf.mkdir(parents=True)
    (conf / "plain.yaml").write_text("_target_: myparts.Plain\n_partial_: true\nwidth: ${size.width}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delenv("TUNELAB_TRUST", raising=False)
    return tmp_path / "conf"


WORDS = ("model=plain", "size=tiny", "epochs=1", "init=kaiming_normal")


def test_a_package_of_ones_own_is_refused_with_how_to_trust_it(tmp_path: Path, package: Path) -> None:
    text = refused(typed(tmp_path, "--config-dir", str(package), *WORDS), 1)
    assert (
        "`model._target_` must be in a trusted package, got myparts.Plain. If myparts is your own, say "
        'tunelab.main(trust=["myparts"]) in its train.py and start from there; in Python, tunelab.trust("myparts"); '
        "elsewhere set TUNELAB_TRUST=myparts." in text
    )


def test_a_trusted_package_trains_and_its_model_loads_again(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNELAB_TRUST", "other, myparts")
    outcome = typed(tmp_path, "--config-dir", str(package), *WORDS, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    again = typed(tmp_path, "run=run", script="scripts/evaluate.py")
    ours, theirs = zip(*re.findall(r"([\d.]+) +\(the run reported ([\d.]+)\)", again.out), strict=True)
    assert ours == theirs
    monkeypatch.delenv("TUNELAB_TRUST")
    assert "got myparts.Plain. If myparts is your own" in refused(
        typed(tmp_path, "run=run", script="scripts/evaluate.py"), 1
    )


def test_trust_in_one_package_is_not_trust_in_another(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELAB_TRUST", "mypart,")
    assert "mypart.*" in whitelist()
    with pytest.raises(ConfigError, match=r"myparts\.Plain"):
        build(OmegaConf.create({"_target_": "myparts.Plain", "_partial_": True}))


@pytest.mark.slow
def test_a_train_py_of_ones_own_finds_our_groups_behind_its_own(tmp_path: Path, package: Path) -> None:
    (package / "train.yaml").write_text((REPOSITORY / "conf" / "train.yaml").read_text())
    (tmp_path / "train.py").write_text(
        'import tunelab\n\nif __name__ == "__main__":\n    tunelab.main(config_path="conf", trust=["myparts"])\n'
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "train.py"), *WORDS, "optimizer=sgd"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "digits · plain tiny, 2,410 parameters · sgd lr 0.1" in done.stdout + done.stderr
