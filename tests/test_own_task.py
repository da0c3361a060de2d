"""A task of the user's own, which is a plain LightningModule: it trains with the defaults, and resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_command import refused, typed
from test_own_resume import own_project, run
from test_resume import cut, equal

from tunelab.checkpoints import AtomicCheckpointIO

TASK = """
    import torch
    from lightning import LightningDataModule, LightningModule
    from torch import nn
    from torch.utils.data import DataLoader

    class Plain(LightningModule):
        def __init__(self, lr):
            super().__init__()
            self.lr = lr
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

        def loss(self, batch):
            inputs, targets = batch.values() if isinstance(batch, dict) else batch
            return nn.functional.cross_entropy(self.net(inputs), targets)

        def training_step(self, batch, batch_idx):
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.loss(batch))

        def test_step(self, batch, batch_idx):
            self.log("test/loss", self.loss(batch))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), self.lr)

    class Dicts(LightningDataModule):
        def train_dataloader(self):
            inputs = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
            examples = [{"inputs": row, "targets": int(row.argmax()) % 3} for row in inputs]
            return DataLoader(examples, 10)

        val_dataloader = train_dataloader

    class Named(Plain):  # whose `model` is no module
        model = "a net"
"""
CALLBACKS = "callbacks=[checkpoint,finite,gradients,updates,dead_units,histograms,lr,throughput]"
WORDS = (
    "task=plain",
    "data=iris",
    "epochs=3",
    "threads=1",
    "objective=val/loss",
    "trainer.log_every_n_steps=1",
    CALLBACKS,
)


RUNS = ("whole", "cut")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with own_project(tmp_path_factory.mktemp("own"), "owntasks", TASK) as folder:
        (folder / "conf" / "task").mkdir()
        for name in ("Plain", "Named"):
            (folder / "conf" / "task" / f"{name.lower()}.yaml").write_text(f"_target_: owntasks.{name}\nlr: ${{lr}}\n")
        (folder / "conf" / "data" / "dicts.yaml").write_text("_target_: owntasks.Dicts\n")
        yield folder


@pytest.mark.parametrize("task", ["plain", "named"])
def test_it_trains_with_every_callback_and_its_layers_are_watched(project: Path, task: str) -> None:
    outcome = run(project, *WORDS, f"task={task}", f"hydra.run.dir={task}")
    assert outcome.code == 0, outcome.text
    written = pd.read_csv(project / task / "metrics.csv")
    columns = set(written.columns)
    of_layers = {f"layers/{what}/net.{i}" for what in ("gradient_norm", "update_ratio") for i in (0, 2)}
    assert of_layers <= columns, columns
    assert "layers/dead_share/net.1" in columns
    assert written["val/loss"].dropna().iloc[-1] < written["val/loss"].dropna().iloc[0]


@pytest.mark.slow
def test_its_run_that_was_cut_short_and_resumed_is_the_uninterrupted_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ("--config-dir", str(project / "conf"))
    assert run(project, *WORDS, "hydra.run.dir=whole").code == 0
    cut(project, monkeypatch, 3, *WORDS, *own, "hydra.run.dir=cut")
    outcome = run(project, "resume=cut")
    assert outcome.code == 0, outcome.text
    checkpoints = [torch.load(project / name / "checkpoints" / "last.ckpt", weights_only=True) for name in RUNS]
    for part in ("state_dict", "optimizer_states", "callbacks", "epoch", "global_step"):
        assert equal(*(checkpoint[part] for checkpoint in checkpoints)), part
    assert len({(project / name / "metrics.csv").read_text() for name in RUNS}) == 1


@pytest.mark.slow
def test_its_run_is_not_evaluated_and_says_why(project: Path) -> None:
    assert run(project, *WORDS, "epochs=1", "hydra.run.dir=one").code == 0
    text = refused(run(project, "evaluate", "run=one"), 1)
    assert "`run` must have a task that is or builds on one of tunelab.tasks, got one with owntasks.Plain" in text


def test_batches_that_are_dicts_are_counted(project: Path) -> None:
    outcome = run(project, *WORDS, "data=dicts", "test=false", "hydra.run.dir=dicts")
    assert outcome.code == 0, outcome.text
    result = json.loads((project / "dicts" / "result.json").read_text())
    assert result["samples_per_second"] == pytest.approx(3 * 30 / result["seconds"], rel=0.1)


@pytest.mark.parametrize(
    "entry",
    [
        "optimizer_states",
        *(pytest.param(e, marks=pytest.mark.slow) for e in ("lr_schedulers", "callbacks", "data_spec", "unwritten")),
    ],
)
def test_a_checkpoint_that_lacks_an_entry_is_refused_with_its_name(tmp_path: Path, entry: str) -> None:
    words = ("data=iris", "size=tiny", "epochs=1", "threads=1", "test=false", "hydra.run.dir=run")
    assert typed(tmp_path, *words).code == 0
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    del content[entry]
    AtomicCheckpointIO().save_checkpoint(content, path)
    text = refused(typed(tmp_path, "resume=run", "epochs=2"), 1)
    assert f"it was not written by a run of this framework, as it has no {entry}." in text
