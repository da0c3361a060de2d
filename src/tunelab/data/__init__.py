"""Data sources, one file per kind; each is a LightningDataModule with a `spec`."""

from tunelab.data.bundled import BundledData
from tunelab.data.memory import MemoryLoader

__all__ = ["BundledData", "MemoryLoader"]
