"""Measuring and acting during a fit, one file per quantity."""

from tunelab.callbacks.checkpoint import Checkpoint
from tunelab.callbacks.early_stopping import EarlyStopping
from tunelab.callbacks.gradient_norms import GradientNorms
from tunelab.callbacks.learning_rate import LearningRate
from tunelab.callbacks.objective import Objective
from tunelab.callbacks.progress import Progress
from tunelab.callbacks.throughput import Throughput
from tunelab.callbacks.torch_profiler import TorchProfiler

__all__ = [
    "Checkpoint",
    "EarlyStopping",
    "GradientNorms",
    "LearningRate",
    "Objective",
    "Progress",
    "Throughput",
    "TorchProfiler",
]
