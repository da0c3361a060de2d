"""Data sources, one file per kind; each is a LightningDataModule with a `spec`."""

from tunelab.data.bundled import BundledData
from tunelab.data.hub import HubData
from tunelab.data.images import ImageFolderData
from tunelab.data.memory import MemoryLoader
from tunelab.data.synthetic import SyntheticData
from tunelab.data.table import CsvData, ParquetData

__all__ = ["BundledData", "CsvData", "HubData", "ImageFolderData", "MemoryLoader", "ParquetData", "SyntheticData"]
