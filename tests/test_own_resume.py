"""Data of a user's own, in torch's loaders: a run that is ended within an epoch sees the batches that were to come."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_command import Outcome, typed
from test_resume import assert_the_same_run, scalars

from tunelab.callbacks import Objective

DATA = """
    import random
    import numpy as np
    import torch
    from lightning import LightningDataModule
    from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

    generator = torch.Generator().manual_seed(0)
    INPUTS = torch.rand(200, 4, generator=generator)
    LABELS = (INPUTS[:, 0] > INPUTS[:, 1]).long()

    class Own(LightningDataModule):
        def __init__(self, workers=0):
            super().__init__()
            self.workers = workers
            self.examples = TensorDataset(INPUTS, LABELS)

        def train_dataloader(self):
            return DataLoader(self.examples, 10, shuffle=True, num_workers=self.workers)

        def val_dataloader(self):
            return DataLoader(TensorDataset(INPUTS, LABELS), 100)

    class Noisy(Dataset):
        def __len__(self):
            return 200

        def __getitem__(self, i):  # noise of every kind that people draw
            noise = torch.rand(4) + torch.from_numpy(np.random.rand(4)).float() + random.random()
            return INPUTS[i] + 0.1 * noise, LABELS[i]

    class Augmented(Own):
        def __init__(self, workers=0):
            super().__init__(workers)
            self.examples = Noisy()

    class Endless(IterableDataset):
        def __iter__(self):
            order = torch.randperm(200)
            for i in order:
                yield INPUTS[i], LABELS[i]

    class Stream(Own):
        def train_dataloader(self):
            return DataLoader(Endless(), 10)
"""
SOURCES = ("Own", "Own with workers", "Stream", "Augmented", "Augmented with workers")
WORDS = ("data=own", "size=tiny", "epochs=4", "threads=1", "trainer.log_every_n_steps=5", "test=false")


@contextlib.contextmanager
def own_project(folder: Path, module: str, code: str) -> Iterator[Path]:
    """A user's project: a module that its train.py trusts, and a conf/ of its own."""
    (folder / "conf" / "data").mkdir(parents=True)
    (folder / f"{module}.py").write_text(textwrap.dedent(code))
    start = f"import tunelab\nif __name__ == '__main__':\n    tunelab.main(config_path='conf', trust='{module}')\n"
    (folder / "train.py").write_text(start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELAB_TRUST", "")
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with own_project(tmp_path_factory.mktemp("own"), "ownloaders", DATA) as folder:
        for source in SOURCES:
            name, *workers = source.split(" with ")
            text = f"""
                # @package _global_
                defaults: [override /task: classification, override /loss: cross_entropy]
                data: {{_target_: ownloaders.{name}, workers: {2 if workers else 0}}}
            """
            (folder / "conf" / "data" / f"{source.replace(' ', '_')}.yaml").write_text(textwrap.dedent(text).lstrip())
        yield folder


def run(project: Path, *words: str) -> Outcome:
    return typed(project, *words, script=str(project / "train.py"))


def stopped(project: Path, monkeypatch: pytest.MonkeyPatch, batches: int, *words: str) -> Outcome:
    """A run that gets a signal behind so many batches of this part of it."""
    seen = 0

    def stop(self: Objective, *args: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == batches:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "on_train_batch_end", stop)
        return run(project, *words)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*has `shuffle=True`")
@pytest.mark.parametrize(
    "source", [pytest.param(source, marks=() if source == "Augmented" else pytest.mark.slow) for source in SOURCES]
)
def test_a_loader_of_ones_own_goes_on_with_the_batches_that_were_to_come(
    project: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    name = source.replace(" ", "_")
    words = (f"data={name}", *WORDS[1:], *(("trainer.limit_train_batches=20",) if source == "Stream" else ()))
    whole, cut = f"{name}_whole", f"{name}_cut"
    outcome = run(project, *words, f"hydra.run.dir={whole}")
    assert outcome.folder == whole, outcome.text
    draw = random.Random(source)
    outcome = stopped(project, monkeypatch, draw.randrange(2, 70), *words, f"hydra.run.dir={cut}")
    assert outcome.code == 130, outcome.text
    assert run(project, f"resume={cut}").folder == cut
    assert_the_same_run(project / whole, project / cut)
    assert scalars(project / cut) == scalars(project / whole)
