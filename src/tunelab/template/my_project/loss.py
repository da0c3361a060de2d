"""A loss of our own: any nn.Module that maps (outputs, targets) to a scalar."""

from torch import Tensor, nn
from torch.nn import functional


class Brier(nn.Module):
    """How far the predicted probabilities are from the truth.

    loss = mean over examples of ( sum over classes of (p - y)^2 ),  y = 1 for the true class, else 0
    """

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        probabilities = outputs.softmax(dim=1)  # (batch, classes)
        truth = functional.one_hot(targets, outputs.shape[1])
        return (probabilities - truth).square().sum(dim=1).mean()
