"""Which examples a run has, written into its folder, so that it is noticed if its data changes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tunelab import members
from tunelab.hashing import Hashes, hashes

log = logging.getLogger("tunelab")


class Passing:
    """The examples of batches as they pass by, of a data module that does not say which it has."""

    def __init__(self) -> None:
        self._found: list[Hashes] | None = []  # None once a batch is not of examples

    def add(self, batch: Any) -> None:
        """Takes note of a batch: tensors, each with a row for each example, the last of them the target."""
        leaves = tree_leaves(batch)
        rows = {len(leaf) if isinstance(leaf, Tensor) and leaf.ndim else -1 for leaf in leaves}
        if self._found is None or len(leaves) < 2 or len(rows) != 1 or -1 in rows:
            self._found = None
            return
        inputs = np.zeros(rows.pop(), np.int64)
        for leaf in leaves[:-1]:
            inputs = inputs * np.int64(3) + hashes(leaf)
        self._found.append(np.stack([inputs, hashes(leaves[-1])], 1))

    def members(self) -> Hashes | None:
        """What `SplitData.members` says of a part; None if nothing is known."""
        return np.concatenate(self._found) if self._found else None


class Watch(Callback):
    """Has the batches of a validation or a test noted as they pass."""

    def __init__(self, passing: Passing) -> None:
        self.passing = passing

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any, **kwargs: Any) -> None:
        self.passing.add(batch[1])  # behind the outputs

    on_test_batch_end = on_validation_batch_end


class MembersFile(Callback):
    """Writes members.npz: which examples each part has, by a number for the inputs and one for the target of each.

    It is written when the first epoch is over; a resumed run keeps it. Of a data module of the user's own that has no
    `members()`, the validation and test batches are noted as they pass, and nothing of the training part.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, Hashes] = {}  # and not yet written
        self._passing: Passing | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or (self.folder / members.FILE).exists():
            return
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "members"):
            self.found = dict(data.members())
        elif trainer.world_size == 1:
            self._passing = Passing()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any, **kwargs: Any) -> None:
        self._pass(trainer, batch)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before = members.kept(self.folder)
        data: Any = getattr(trainer, "datamodule", None)
        is_new = before is None or "test" not in before.sums
        if trainer.is_global_zero and trainer.world_size == 1 and is_new and not hasattr(data, "members"):
            self._passing = Passing()

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any, **kwargs: Any) -> None:
        self._pass(trainer, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._passed("val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._passed("test")
        self._write()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write()

    def _pass(self, trainer: Trainer, batch: tuple[Any, ...]) -> None:
        if self._passing is not None:
            self._passing.add(batch[1])  # behind the outputs

    def _passed(self, part: str) -> None:
        passing, self._passing = self._passing, None
        if passing is not None and (found := passing.members()) is not None:
            self.found[part] = found

    def _write(self) -> None:
        found, self.found = self.found, {}
        if found:
            members.keep(self.folder, found)
