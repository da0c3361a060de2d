"""Train neural networks from composable Hydra configs on PyTorch Lightning."""

from pathlib import Path
from typing import Any

__version__ = "0.1.0"
INSTRUMENTS = ("compare_inits", "find_batch_size", "find_lr", "sensitivity", "show_schedule")
"""The tools that measure a recipe: `tunelab.find_lr("model=cnn", "optimizer=sgd")` gives what the command prints."""

__all__ = ["INSTRUMENTS", "__version__", "conf_folder", "diagnose", "load", "main", "trust"]


def conf_folder() -> Path:
    """The catalogue: conf/ of a checkout or editable install, or its copy inside the wheel."""
    package = Path(__file__).resolve().parent
    in_wheel = package / "conf"
    return in_wheel if in_wheel.is_dir() else package.parents[1] / "conf"


def __getattr__(name: str) -> Any:
    # Only when asked for: `load` needs torch, which takes seconds to import.
    if name == "main":
        from tunelab.command import main

        return main
    if name == "load":
        from tunelab.predictor import load

        return load
    if name == "diagnose":
        from tunelab.tools.diagnose import diagnose

        return diagnose
    if name == "trust":
        from tunelab.own_code import trust

        return trust
    if name in INSTRUMENTS:
        from functools import partial

        from tunelab import instrument, tools

        return partial(instrument.ask, tools.load(name))
    raise AttributeError(f"module 'tunelab' has no attribute {name!r}")
