"""Learning-rate schedules: each a function of the step behind a linear warm-up, ratios between groups kept."""

from tunelab.schedules.forms import (
    constant,
    cosine,
    cosine_restarts,
    cyclic,
    exponential,
    inverse_sqrt,
    multistep,
    one_cycle,
    polynomial,
    step,
    warmup_stable_decay,
)
from tunelab.schedules.plateau import Plateau
from tunelab.schedules.warmup import with_warmup

__all__ = [
    "Plateau",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "exponential",
    "inverse_sqrt",
    "multistep",
    "one_cycle",
    "polynomial",
    "step",
    "warmup_stable_decay",
    "with_warmup",
]
