"""Models, one file each; every one takes width, depth, activation and dropout, and names the data that it takes."""

from tunelab.models.cnn import CNN
from tunelab.models.mlp import MLP
from tunelab.models.resnet import ResNet
from tunelab.models.transformer import Transformer
from tunelab.models.vit import ViT

__all__ = ["CNN", "MLP", "ResNet", "Transformer", "ViT"]
