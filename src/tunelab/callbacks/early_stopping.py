"""Ends a run that no longer improves."""

from __future__ import annotations

from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping


class EarlyStopping(LightningEarlyStopping):
    """Ends the run after `patience` validations without improvement. You would see a run shorter than its epochs.

    Args:
        monitor: The metric it watches.
        direction: Whether less (`minimize`) or more (`maximize`) of it is better.
        patience: Validations without improvement that it bears.
        min_delta: Least change that counts as an improvement, in the metric's units.
    """

    def __init__(self, monitor: str, direction: str, patience: int = 10, min_delta: float = 0.0) -> None:
        super().__init__(monitor=monitor, mode=direction[:3], patience=patience, min_delta=min_delta)
