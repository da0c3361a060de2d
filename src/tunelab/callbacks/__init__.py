"""Measuring and acting during a fit, one file per quantity."""

from tunelab.callbacks.batch_growth import GrowthByFactor, GrowthBySchedule
from tunelab.callbacks.checkpoint import Checkpoint
from tunelab.callbacks.clock import Clock
from tunelab.callbacks.dead_units import DeadUnits
from tunelab.callbacks.early_stopping import EarlyStopping
from tunelab.callbacks.facts import Facts
from tunelab.callbacks.finite import Finite, NotFiniteError, NotFiniteInValidationError, kind, noticed, place
from tunelab.callbacks.gradients import Gradients
from tunelab.callbacks.histograms import Histograms
from tunelab.callbacks.interrupts import Interrupted, Interrupts
from tunelab.callbacks.learning_rate import LearningRate
from tunelab.callbacks.members import MembersFile
from tunelab.callbacks.objective import Objective
from tunelab.callbacks.pinpoint import Origin, Pinpoint, ReplayEnded
from tunelab.callbacks.progress import Progress
from tunelab.callbacks.throughput import Throughput
from tunelab.callbacks.updates import Updates

__all__ = [
    "Checkpoint",
    "Clock",
    "DeadUnits",
    "EarlyStopping",
    "Facts",
    "Finite",
    "Gradients",
    "GrowthByFactor",
    "GrowthBySchedule",
    "Histograms",
    "Interrupted",
    "Interrupts",
    "LearningRate",
    "MembersFile",
    "NotFiniteError",
    "NotFiniteInValidationError",
    "Objective",
    "Origin",
    "Pinpoint",
    "Progress",
    "ReplayEnded",
    "Throughput",
    "Updates",
    "kind",
    "noticed",
    "place",
]
