"""What steps leave on the device until it is written: it belongs to a checkpoint taken in between."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from tunelab.tasks.scores import fine


class Unwritten:
    """The losses of the batches since `train/loss` was last written, what each counts, and which steps were clipped."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.counts: list[float | Tensor] = []  # of each of them its examples, or the sum of their weights
        self.clipped: list[Tensor] = []  # 1 for a step that was, else 0
        self.last_mean: float | None = None
        self._step = 0  # at which it was last written
        self._batch = -1  # whose loss is there

    def has_loss_of(self, batch_idx: int) -> bool:
        """Whether the optimizer has asked for the gradient of this batch before."""
        return self._batch == batch_idx

    def add_loss(self, loss: Tensor, count: float | Tensor, batch_idx: int) -> None:
        """Keeps the loss of a batch; the first, where an optimizer asks several times."""
        if not self.has_loss_of(batch_idx):
            self.losses.append(loss.detach())
            self.counts.append(count)
            self._batch = batch_idx

    def end_batch(self) -> None:
        """Tells that the next loss is that of another batch."""
        self._batch = -1

    def mean(self, trainer: Trainer) -> float | None:
        """The mean loss over the examples of all ranks, from which on it counts anew; None if written at this step.

        Args:
            trainer: At the end of a step that is written.
        """
        if trainer.global_step == self._step:  # gradients accumulate: its step is that of the batch before
            return None
        losses = fine(torch.stack(self.losses))
        counts = self._counts(losses)
        together = trainer.strategy.reduce(torch.stack([(losses * counts).sum(), counts.sum()]), reduce_op="sum")
        assert isinstance(together, Tensor)
        self.last_mean, self._step = float(together[0] / together[1]), trainer.global_step
        self.losses.clear()
        self.counts.clear()
        self.clipped.clear()
        return self.last_mean

    def _counts(self, losses: Tensor) -> Tensor:
        if any(isinstance(count, Tensor) for count in self.counts):
            return torch.stack([torch.as_tensor(count, device=losses.device) for count in self.counts]).to(losses)
        return torch.tensor(self.counts, dtype=losses.dtype, device=losses.device)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, shape (ranks, batches); all ranks call it together."""
        losses = torch.stack(self.losses) if self.losses else None
        return {
            # as many on each rank, so that none waits for another in vain
            "losses": _of_all_ranks(losses).cpu() if losses is not None else torch.empty(1, 0),
            "counts": _of_all_ranks(self._counts(fine(losses))).cpu() if losses is not None else torch.empty(1, 0),
            "clipped": torch.stack(self.clipped).tolist() if self.clipped else [],
            "last_mean": self.last_mean,
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any], rank: int, device: torch.device) -> None:
        """The inverse of `state_dict`.

        Args:
            state: Of this many ranks, or of another number.
            rank: Whose losses are to be taken.
            device: Where they belong.
        """
        losses = state["losses"].to(device)
        counts = state.get("counts", torch.ones_like(state["losses"])).to(device)  # an older one has none
        mine = rank if rank < len(losses) else None
        self.losses = list(losses.mean(0) if mine is None else losses[mine])
        self.counts = list(counts.mean(0) if mine is None else counts[mine])
        self.clipped = list(torch.tensor(state["clipped"], device=device))
        self.last_mean, self._step = state["last_mean"], state["step"]


def _of_all_ranks(losses: Tensor) -> Tensor:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return losses[None]
    gathered = [torch.empty_like(losses) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, losses)
    return torch.stack(gathered)
