"""One LightningModule per kind of learning."""

from tunelab.tasks.classification import Classification
from tunelab.tasks.regression import Regression
from tunelab.tasks.supervised import SupervisedTask

__all__ = ["Classification", "Regression", "SupervisedTask"]
