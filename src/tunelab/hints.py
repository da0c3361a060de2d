"""What was probably meant: names that other programs have for ours, and arguments that cannot be read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

ALSO_CALLED = {
    **dict.fromkeys(("learning_rate", "learningrate", "rate", "eta"), "lr"),
    **dict.fromkeys(("max_epochs", "num_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("bs", "batch"), "batch_size"),
    **dict.fromkeys(("wd", "l2_penalty"), "weight_decay"),
}
"""What other programs call our dials."""

OPTIONS_ALSO_CALLED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "sweep": {
        **dict.fromkeys(("bayes", "bayesian", "bo"), ("tpe", "gp")),
        "optuna": ("tpe",),
        **dict.fromkeys(("gaussian", "gaussian_process"), ("gp",)),
        **dict.fromkeys(("sobol", "halton"), ("qmc",)),
        **dict.fromkeys(("genetic", "evolution"), ("nsgaii", "cmaes")),
    },
    "pruner": {"asha": ("successive_halving",), "sha": ("successive_halving",)},
}
"""What other programs, and books, call what we have."""

CHOSEN_BY = {"sampler": "sweep", "sweep.sampler": "sweep", "sweep.pruner": "pruner"}
"""Keys that an option is easily written to, and the group of which it is one."""

NUMBER = r"\s*([^\s,()]+)\s*"
SCALES = {
    r"tag\(\s*log\s*,": "tag(log,interval({},{}))",
    r"(?:log_?|log_?uniform|reciprocal)\(": "tag(log,interval({},{}))",
    r"(?:log_?int|int_?log|log_?rand_?int)\(": "tag(log,int(interval({},{})))",
    r"(?:uniform|float|between)\(": "interval({},{})",
    r"(?:int|rand_?int|int_?uniform)\(": "int(interval({},{}))",
}
"""What other programs, and one's memory, have for a range of numbers."""


def remedy(argument: str) -> str:
    """What to type instead of an argument that cannot be read.

    Args:
        argument: As it was typed.
    """
    key, equals, value = argument.partition("=")
    if not equals and Path(argument).is_dir():
        return f"Write {shlex.quote(f'run={argument}')}."
    if not equals:
        return f"Write {argument}=<value>."
    for beginning, written in SCALES.items():
        if found := re.fullmatch(f"{beginning}{NUMBER},{NUMBER}\\)+", value):
            return f"Write '{key}={written.format(*found.groups())}'."
    if (missing := value.count("(") - value.count(")")) > 0:
        return f"Close what is open: '{argument}{')' * missing}'."
    if missing < 0 and value.endswith(")" * -missing):
        return f"Leave out what closes nothing: '{argument[:missing]}'."
    return f"Quote the value: '{key}=\"{value}\"'."
