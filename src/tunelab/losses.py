"""Losses that torch lacks."""

from torch import Tensor, nn
from torch.nn import functional as F


class CrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy whose label smoothing acts in training alone.

    loss = mean( -sum_k q_k log p_k ),  q = (1 - s) * true class + s / classes

    Validation and test losses are without smoothing, so that runs with different s can be compared.

    Args:
        label_smoothing: Share s of the target spread over all classes, in [0, 1). Zero is plain cross-entropy.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing=label_smoothing)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Args:
            logits: Unnormalised scores, shape (batch, classes).
            labels: True classes, shape (batch,), integers in [0, classes).

        Returns:
            Scalar, in nats.
        """
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing if self.training else 0.0)
