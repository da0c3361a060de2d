"""Training on the inputs that hurt most within a small distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tunelab.regularizers.mixing import Shares
from tunelab.spec import DataSpec

Loss = Callable[[Tensor, Shares], Tensor]


def _ascend(inputs: Tensor, shares: Shares, loss: Loss) -> Tensor:
    """The sign of the loss's gradient by the inputs, the same shape."""
    with torch.enable_grad():
        probe = inputs.detach().requires_grad_()
        # of the sum over the batch: the mean's small ones would be zero in half precision
        (gradient,) = torch.autograd.grad(len(probe) * loss(probe, shares), probe)
    return gradient.sign()


def _attacked(inputs: Tensor, fraction: float) -> int:
    """How many of a batch, at least one."""
    return max(1, round(fraction * len(inputs))) if fraction else 0


def _first(shares: Shares, count: int) -> Shares:
    return [(targets[:count], weight) for targets, weight in shares]


@dataclass
class _Attack:
    """What attacks share: the least and greatest value that an input may have, where the data knows them."""

    limits: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    last = True  # it attacks what the others have made of the batch

    def adapt(self, spec: DataSpec) -> None:
        """Takes over the range of an image's pixels; the values of tables and sequences have no known range."""
        if spec.kind == "image":
            low, high = (
                torch.from_numpy(spec.normalize(np.full(spec.input_shape, end)))[0] for end in spec.value_range
            )
            self.limits = low, high

    def _valid(self, attacked: Tensor, clean: Tensor) -> Tensor:
        """The inputs cut to the range; a value that was outside before (added noise) does not go farther."""
        if self.limits is None:
            return attacked
        low, high = (limit.to(clean) for limit in self.limits)
        return attacked.clamp(torch.minimum(low, clean), torch.maximum(high, clean))


@dataclass
class FGSM(_Attack):
    """Some inputs of each batch take one step in the direction that raises the loss most.

    x' = clip( x + epsilon * sign( d loss / d x ), least pixel, greatest pixel ),  for a table or sequence without clip

    Args:
        epsilon: Length of the step, in standard deviations of the inputs. Zero attacks nothing.
        fraction: Share of each batch that is attacked, in [0, 1], at least one example; zero attacks nothing.

    Reference:
        Goodfellow et al. 2015, arXiv:1412.6572, section 4.
    """

    epsilon: float
    fraction: float = 0.5

    def change_batch(self, inputs: Tensor, shares: Shares, loss: Loss) -> tuple[Tensor, Shares]:
        """The batch as the model is to meet it."""
        count = _attacked(inputs, self.fraction)
        if not count:
            return inputs, shares
        clean = inputs[:count]
        attacked = clean + self.epsilon * _ascend(clean, _first(shares, count), loss)
        return torch.cat([self._valid(attacked, clean), inputs[count:]]), shares


@dataclass
class PGD(_Attack):
    """Some inputs of each batch climb the loss in several steps, from a random start, never farther than epsilon.

    x_0 = x + U(-epsilon, epsilon)
    x_{i+1} = clip( x_i + step_size * sign( d loss / d x_i ), x - epsilon, x + epsilon )

    Each x_i of an image is also cut to the range of its pixels; a table's or sequence's values have no known range.

    Args:
        epsilon: Farthest that any input value moves, in standard deviations of the inputs. Zero attacks nothing.
        steps: Steps of the climb; each costs a forward and a backward pass.
        step_size: Length of each; None for 2.5 epsilon / steps.
        fraction: Share of each batch that is attacked, in [0, 1], at least one example; zero attacks nothing.

    Reference:
        Madry et al. 2018, arXiv:1706.06083, section 2.1.
    """

    epsilon: float
    steps: int = 5
    step_size: float | None = None
    fraction: float = 0.5

    def change_batch(self, inputs: Tensor, shares: Shares, loss: Loss) -> tuple[Tensor, Shares]:
        """The batch as the model is to meet it."""
        count = _attacked(inputs, self.fraction)
        if not count:
            return inputs, shares
        clean, own = inputs[:count], _first(shares, count)
        step_size = self.step_size or 2.5 * self.epsilon / self.steps
        attacked = self._valid(clean + torch.empty_like(clean).uniform_(-self.epsilon, self.epsilon), clean)
        for _ in range(self.steps):
            attacked = attacked + step_size * _ascend(attacked, own, loss)
            attacked = self._valid(clean + (attacked - clean).clamp(-self.epsilon, self.epsilon), clean)
        return torch.cat([attacked, inputs[count:]]), shares
