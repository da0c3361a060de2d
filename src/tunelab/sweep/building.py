"""The sampler and the pruner of a search, built from their config: Optuna's and ours, and nothing else it may say."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, CmaEsSampler

from tunelab.errors import ConfigError, did_you_mean

MODULES = {
    "sweep.sampler": ("tunelab.sweep.samplers", "tunelab.sweep.evolution", "tunelab.sweep.probes", "optuna.samplers"),
    "pruner": ("optuna.pruners",),
}
"""Where each may come from. A name of such a module, none behind it."""

KINDS = {"sweep.sampler": BaseSampler, "pruner": BasePruner}


def build_chosen(key: str, config: dict[str, Any]) -> Any:
    """A sampler or a pruner.

    Args:
        key: `sweep.sampler` or `pruner`.
        config: Its `_target_` and its arguments, perhaps with others of the kind in them.

    Raises:
        ConfigError: With a sentence for each thing that it cannot be built from.
    """
    if mistakes := list(_mistakes(key, config, key)):
        raise ConfigError(*mistakes)
    allowed = tuple(f"{module}.*" for module in MODULES[key])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return instantiate(config, _execution_whitelist_=allowed, _convert_="all")
    except (InstantiationException, TypeError, ValueError) as error:
        name, reason = config["_target_"].rpartition(".")[2], error.__cause__ or error
        raise ConfigError(f"`{key}` must be what {name} can be made of: {reason}") from None


def _mistakes(kind: str, config: Any, key: str) -> Iterator[str]:
    """What is wrong with a config and those inside it: whose class it names, and the arguments that this has not."""
    target = str(config.get("_target_"))
    module, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(module), name, None) if module in MODULES[kind] else None
    if not (inspect.isclass(found) and issubclass(found, KINDS[kind])):
        group = kind.split(".")[0]
        rule = f"be a class of {' or '.join(MODULES[kind])}"
        yield f"`{key}._target_` must {rule}, got {target}. Choose {group}=<option>; --help lists them."
        return
    if found is CmaEsSampler:
        rule = "be tunelab.sweep.evolution.CmaEs, which reads its state from a study without running what is in it"
        yield f"`{key}._target_` must {rule}, got {target}. Choose sweep=cmaes."
        return
    arguments = [name for name in inspect.signature(found).parameters if not name.startswith("_")]
    for argument, value in config.items():
        if argument == "_target_":
            continue
        if argument not in arguments:
            near = did_you_mean(argument, arguments) or f" It has {', '.join(arguments)}."
            yield f"`{key}.{argument}` must be an argument of {name}, got {argument}.{near}"
        elif isinstance(value, dict) and "_target_" in value:
            yield from _mistakes(kind, value, f"{key}.{argument}")
    least, most = config.get("min_resource"), config.get("max_resource")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        yield f"`{key}.min_resource` must be at most {key}.max_resource={most}, got {least}. Try {key}.min_resource=1."
