"""Where a fit spends its time, one file per way to look."""

from tunelab.profilers.advanced import AdvancedProfiler
from tunelab.profilers.pytorch import PyTorchProfiler
from tunelab.profilers.simple import SimpleProfiler

__all__ = ["AdvancedProfiler", "PyTorchProfiler", "SimpleProfiler"]
