"""What a zoo of faulty runs builds that no override makes: images in a wrong order, or a bias that kills its units."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from tunelab.data import BundledData
from tunelab.data.memory import Parts
from tunelab.spec import DataSpec


class FaultyImages(BundledData):
    """A bundled data set whose parts have been spoilt, as a user's own data module may.

    Args:
        fault: labels_shuffled (of the training and the validation part), sorted (by label), few (50 training examples)
            or val_in_train (the first training examples validate).
        **bundled: What `BundledData` takes.
    """

    def __init__(self, fault: str, **bundled: Any) -> None:
        super().__init__(**bundled)
        self.fault = fault

    def read(self) -> tuple[DataSpec, Parts]:
        spec, parts = super().read()
        (inputs, labels), (val_inputs, val_labels) = parts["train"], parts["val"]
        drawn = np.random.default_rng(self.seed)
        if self.fault == "labels_shuffled":
            parts["train"] = inputs, labels[torch.from_numpy(drawn.permutation(len(labels)))]
            parts["val"] = val_inputs, val_labels[torch.from_numpy(drawn.permutation(len(val_labels)))]
        elif self.fault == "sorted":
            order = labels.argsort(stable=True)
            parts["train"] = inputs[order], labels[order]
        elif self.fault == "few":
            chosen = torch.from_numpy(drawn.permutation(len(labels))[:50])
            parts["train"] = inputs[chosen], labels[chosen]
        else:
            parts["val"] = inputs[: len(val_inputs)], labels[: len(val_inputs)]
        return spec, parts


def biased(model: nn.Module, bias: float) -> None:
    """Leaves weights as they were built and sets the bias of each layer but the last.

    Args:
        model: Any module.
        bias: The value.
    """
    biases = [m.bias for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for found in biases[:-1]:
        if found is not None:
            nn.init.constant_(found, bias)
