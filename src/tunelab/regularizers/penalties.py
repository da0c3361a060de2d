"""Penalties on the weights, added to the training loss; biases, norms and embeddings are spared, as by weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tunelab.parameters import kinds, named

_PLACES: WeakKeyDictionary[nn.Module, list[tuple[nn.Module, str]]] = WeakKeyDictionary()


def _weights(model: nn.Module) -> list[Tensor]:
    """The trainable matrices and kernels, each once, those of norms and embeddings left out; a lone zero for none."""
    if model not in _PLACES:  # told by their names and modules once: a penalty is asked for at each step
        _PLACES[model] = _places(model)
    weights = [module._parameters[name] for module, name in _PLACES[model]]
    return [w for w in weights if w is not None and w.requires_grad] or [torch.zeros(1)]


def _places(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The module and the name of each parameter that is a weight; a shared one is none if any of its places says so."""
    found: dict[int, tuple[nn.Module, str]] = {}
    spared: set[int] = set()
    for name, parameter, modules in named(model):
        found[id(parameter)] = (modules[-1], name.rpartition(".")[2])
        spared |= {id(parameter)} if kinds(name, parameter, modules) else set()
    return [place for number, place in found.items() if number not in spared]


@dataclass(frozen=True)
class L1:
    """Pulls weights to exactly zero.

    penalty = strength * sum |w|

    Args:
        strength: >= 0. Zero gives no penalty.
    """

    strength: float

    def penalty(self, model: nn.Module) -> Tensor:
        """Scalar."""
        return self.strength * torch.stack(torch._foreach_norm(_weights(model), 1)).sum()


@dataclass(frozen=True)
class L2:
    """Pulls weights towards zero, the large ones most. Under plain SGD the same as weight decay of this strength.

    penalty = strength / 2 * sum w^2

    Args:
        strength: >= 0. Zero gives no penalty.
    """

    strength: float

    def penalty(self, model: nn.Module) -> Tensor:
        """Scalar."""
        return self.strength / 2 * torch.stack([weight.square().sum() for weight in _weights(model)]).sum()


@dataclass(frozen=True)
class ElasticNet:
    """L1 and L2 in one: some weights go to exactly zero, the others stay small.

    penalty = strength * ( l1_fraction * sum |w| + (1 - l1_fraction) / 2 * sum w^2 )

    Args:
        strength: >= 0. Zero gives no penalty.
        l1_fraction: Share of L1, in [0, 1]: one is `L1`, zero is `L2`.

    Reference:
        Zou and Hastie 2005, with the shares as in scikit-learn's ElasticNet.
    """

    strength: float
    l1_fraction: float = 0.5

    def penalty(self, model: nn.Module) -> Tensor:
        """Scalar."""
        l1, l2 = L1(self.strength * self.l1_fraction), L2(self.strength * (1 - self.l1_fraction))
        return l1.penalty(model) + l2.penalty(model)
