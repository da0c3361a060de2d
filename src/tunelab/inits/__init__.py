"""How the weights of a model begin: drawn at random, scaled by data, or taken from a model trained before.

Random weights: biases begin at zero, norms as they are. Embeddings (positions, class tokens, the vectors of a table's
features) are looked up, not multiplied, and so have no fan: what follows the fan leaves them as the model made them.
"""

from tunelab.inits.pretrained import pretrained
from tunelab.inits.weights import (
    default,
    gain,
    kaiming_normal,
    kaiming_uniform,
    lsuv,
    normal,
    orthogonal,
    truncated_normal,
    xavier_normal,
    xavier_uniform,
    zeros,
)

__all__ = [
    "default",
    "gain",
    "kaiming_normal",
    "kaiming_uniform",
    "lsuv",
    "normal",
    "orthogonal",
    "pretrained",
    "truncated_normal",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
