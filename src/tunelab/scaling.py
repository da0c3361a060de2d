"""How the lr follows the batch size. No torch."""

from __future__ import annotations

import math
from typing import Literal

Rule = Literal["linear", "sqrt", "none"]


def factor(old: float, new: float, rule: str) -> float:
    """What an lr is multiplied by when the batch size changes.

    linear: new / old        sqrt: sqrt(new / old)        none: 1

    Args:
        old: The batch size that the lr was chosen for, in examples.
        new: The batch size that it is to suit, in examples.
        rule: One of the three.

    Raises:
        ValueError: If the rule is another.

    Reference:
        linear: Goyal et al. 2017, arXiv:1706.02677, section 2.1. sqrt: Malladi et al. 2022, arXiv:2205.10287.
    """
    match rule:
        case "linear":
            return new / old
        case "sqrt":
            return math.sqrt(new / old)
        case "none":
            return 1.0
    raise ValueError(f"the rule must be linear, sqrt or none, got {rule}")


def rescaled_lr(lr: float, old: float, new: float, rule: str) -> float:
    """The lr that suits another batch size.

    Args:
        lr: That of the old batch size.
        old: In examples.
        new: In examples.
        rule: As in `factor`.
    """
    return lr * factor(old, new, rule)


def rule_of(target: str, base: str = "sgd") -> Rule:
    """The rule of an optimizer's family.

    Steps as long as the gradient: linear. Steps whose length does not follow the gradient's (the Adam family, signs,
    norms): sqrt. L-BFGS: none, as its lr is a share of Newton's step.

    Args:
        target: The optimizer's dotted path, such as torch.optim.SGD; one that is unknown follows the smaller change.
        base: What SAM steps by, `sgd` or `adamw`.
    """
    name = target.rpartition(".")[2].lower()
    if name == "lbfgs":
        return "none"
    if name == "sam":
        return "linear" if base == "sgd" else "sqrt"
    return "linear" if "sgd" in name and "sign" not in name else "sqrt"
