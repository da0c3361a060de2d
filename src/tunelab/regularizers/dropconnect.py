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
        """The parameters that this step uses in place of the model's own, by name; a shared one once."""
        if not self.rate:
            return {}
        weighted = [module for module in model.modules() if isinstance(module, WEIGHTED)]
        dropped = {id(module.weight) for module in weighted}
        return {
            name: nn.functional.dropout(parameter, self.rate)
            for name, parameter in model.named_parameters()
            if id(parameter) in dropped
        }
