"""A callback of our own: any lightning Callback."""

import torch
from lightning import Callback, LightningModule, Trainer

from tunelab.loggers import write


class WeightNorm(Callback):
    """Writes `weights/norm`, the Euclidean norm of all weights, after each epoch.

    One that keeps growing while val/loss rises asks for weight decay.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = torch.nn.utils.parameters_to_vector(pl_module.parameters())
        write(trainer, {"weights/norm": weights.norm().item()}, trainer.global_step)
