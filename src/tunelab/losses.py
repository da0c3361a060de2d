"""Losses that torch lacks, and class weights that come from the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunelab.errors import ConfigError, show
from tunelab.spec import DataSpec


class ClassLoss(nn.Module):
    """A loss of scores and true classes, whose weights may come from the data.

    Args:
        class_weights: `balanced`: examples / (classes * examples of the class), so that each class counts the same;
            or a weight for each class, > 0; None for 1 each.
    """

    weight: Tensor | None

    def __init__(self, class_weights: str | Sequence[float] | None = None) -> None:
        super().__init__()
        self.class_weights = class_weights
        given = None if class_weights is None or isinstance(class_weights, str) else torch.tensor(class_weights)
        self.register_buffer("weight", given, persistent=False)

    def adapt(self, spec: DataSpec) -> None:
        """Takes the weights from what the training part holds of each class.

        Raises:
            ConfigError: If there are none to take, or not as many as classes.
        """
        if self.class_weights is None:
            return
        if isinstance(self.class_weights, str):
            counts = spec.class_counts
            absent = [name for name, count in zip(spec.class_names, counts, strict=False) if not count]
            if not counts or absent:
                found = f"no training example of {', '.join(absent)}" if absent else "data that has not counted them"
                numbers = ",".join(["1"] * min(spec.output_size, 3)) + (",…" if spec.output_size > 3 else "")
                raise ConfigError(
                    "`loss.class_weights` must be numbers where the classes cannot be balanced, got balanced for "
                    f"{found}. Try loss.class_weights=null or loss.class_weights=[{numbers}]."
                )
            self.weight = torch.tensor([sum(counts) / (len(counts) * count) for count in counts])
        elif len(self.class_weights) != spec.output_size:
            raise ConfigError(
                f"`loss.class_weights` must have a number for each of the {spec.output_size} classes, got "
                f"{len(self.class_weights)}: {show(list(self.class_weights))}. Try loss.class_weights=balanced."
            )

    def weights(self, scores: Tensor) -> Tensor | None:
        """The weight of each class, shape (classes,), in the type of the scores; None for 1 each."""
        assert self.weight is not None or self.class_weights is None, "adapt comes first"
        return None if self.weight is None else self.weight.to(scores.dtype)

    def divisor(self, labels: Tensor) -> Tensor | int:
        """What a batch's mean is divided by: with it, the mean over a part does not depend on how it is cut."""
        return len(labels) if self.weight is None else self.weight[labels].sum()


class CrossEntropy(ClassLoss):
    """Cross-entropy whose label smoothing acts in training alone.

    loss = mean( -sum_k q_k log p_k ),  q = (1 - s) * true class + s / classes

    With class weights the mean is a weighted one, and w_k stands before each term of the sum. Validation and test
    losses are without smoothing, so that runs with different s can be compared.

    Args:
        label_smoothing: Share s of the target spread over all classes, in [0, 1). Zero is plain cross-entropy.
        class_weights: balanced, a weight for each class, or None.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: str | Sequence[float] | None = None) -> None:
        super().__init__(class_weights)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Args:
            logits: Unnormalised scores, shape (batch, classes).
            labels: True classes, shape (batch,), integers in [0, classes).

        Returns:
            Scalar, in nats.
        """
        smoothing = self.label_smoothing if self.training else 0.0
        return F.cross_entropy(logits, labels, weight=self.weights(logits), label_smoothing=smoothing)


class Focal(ClassLoss):
    """Cross-entropy that fades for examples already classified well.

    loss = sum( -w (1 - p)^gamma log p ) / sum( w ),  p = probability of the true class, w = its weight

    Args:
        gamma: How fast easy examples fade, >= 0. Zero is plain cross-entropy.
        class_weights: The paper's alpha: balanced, a weight for each class, or None.

    Reference:
        Lin et al. 2017, arXiv:1708.02002, equations 4 and 5.
    """

    def __init__(self, gamma: float = 2.0, class_weights: str | Sequence[float] | None = None) -> None:
        super().__init__(class_weights)
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Args:
            logits: Unnormalised scores, shape (batch, classes).
            labels: True classes, shape (batch,), integers in [0, classes).

        Returns:
            Scalar, in nats.
        """
        weights = self.weights(logits)
        log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)  # (batch,)
        missing = -torch.expm1(log_p)  # 1 - p, with the digits of a small one
        # above zero, where the slope of a root is infinite
        losses = -(missing.clamp(min=torch.finfo(log_p.dtype).tiny) ** self.gamma) * log_p
        if weights is None:
            return losses.mean()
        return (weights[labels] * losses).sum() / weights[labels].sum()


class Hinge(ClassLoss):
    """Asks the true class to score above each other one by a margin.

    loss = mean( w / classes * sum_{k != y} max(0, margin - x_y + x_k) ),  x = scores, y = true class, w = its weight

    Args:
        margin: By how much, > 0.
        class_weights: balanced, a weight for each class, or None.

    Reference:
        Weston and Watkins 1999, as torch.nn.MultiMarginLoss has it.
    """

    def __init__(self, margin: float = 1.0, class_weights: str | Sequence[float] | None = None) -> None:
        super().__init__(class_weights)
        self.margin = margin

    def divisor(self, labels: Tensor) -> int:
        return len(labels)

    def best_scores(self, counts: Tensor) -> Tensor:
        """The constant scores with the least loss: whole margins, in steps down the classes in order of their weight.

        Args:
            counts: Examples of each class, shape (classes,).

        A border between the classes i <= b and j > b costs a_j for each pair, and saves a_i for each that no other
        border parts already, a = examples * weight: the best borders are found from the first on.
        """
        weights = counts if self.weight is None else counts * self.weight.to(counts)
        order = torch.argsort(weights, descending=True)
        own, classes = weights[order].tolist(), len(weights)
        least, before = [0.0] * classes, [0] * classes  # up to a border below so many classes; the border above that
        for border in range(1, classes):
            costs = [
                least[above] + border * sum(own[border:]) - sum(own[above:border]) * (classes - border)
                for above in range(border)
            ]
            before[border] = min(range(border), key=costs.__getitem__)
            least[border] = costs[before[border]]
        levels, border = torch.zeros(classes, dtype=counts.dtype), min(range(classes), key=least.__getitem__)
        while border:
            levels[order[:border]] += self.margin
            border = before[border]
        return levels

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Args:
            scores: Shape (batch, classes).
            labels: True classes, shape (batch,), integers in [0, classes).

        Returns:
            Scalar, in units of the scores.
        """
        return F.multi_margin_loss(scores, labels, margin=self.margin, weight=self.weights(scores))
