"""Which examples a run has, written into its folder, so that it is noticed if its data changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from tunelab import members
from tunelab.hashing import Hashes, Passing


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
