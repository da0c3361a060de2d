"""Dropout of single weights instead of whole units."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class DropConnect:
    """In each training step a share of the weights of linear and convolutional layers is zero.

    w' = w * m / (1 - rate),  m ~ Bernoulli(1 - rate)

    Args:
        rate: Share of the weights, in [0, 1). Zero drops nothing.

    Reference:
        Wan et al. 2013, section 3, with the scale put into training, so that evaluation uses the weights as they are.
    """

    rate: float

    def step_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The parameters that this step uses in place of the model's own, by name."""
        return {
            f"{name}.weight" if name else "weight": nn.functional.dropout(module.weight, self.rate)
            for name, module in model.named_modules()
            if isinstance(module, WEIGHTED) and self.rate
        }
