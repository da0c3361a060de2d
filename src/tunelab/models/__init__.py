"""Models, one file each; every one takes width, depth, activation and dropout, and names the data that it takes."""

from tunelab.models.cnn import CNN
from tunelab.models.mlp import MLP

__all__ = ["CNN", "MLP"]
