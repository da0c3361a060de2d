"""CMA-ES, whose state is read from a study without running what is in it."""

from __future__ import annotations

import io
import pickle
from typing import Any

from optuna.samplers import CmaEsSampler

from tunelab.errors import ConfigError

STATE = {
    ("cmaes._cma", "CMA"),
    ("cmaes._sepcma", "SepCMA"),
    ("cmaes._cmawm", "CMAwM"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.random._pickle", "__randomstate_ctor"),
    ("numpy.random._pickle", "__bit_generator_ctor"),
    ("numpy.random._mt19937", "MT19937"),
}
"""What the state of a CMA-ES is made of."""


class CmaEs(CmaEsSampler):
    """Optuna's CMA-ES.

    It keeps its state in the study as a pickle, which may run anything when it is read. A study may come from
    elsewhere, so one that names more than such a state is made of is refused.
    """

    def _concat_optimizer_attrs(self, optimizer_attrs: dict[str, str]) -> str:
        text = super()._concat_optimizer_attrs(optimizer_attrs)  # which Optuna unpickles next
        _State(io.BytesIO(bytes.fromhex(text))).load()
        return text


class _State(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STATE:
            raise ConfigError(
                f"`sweep.storage` must hold a study of your own, got one whose CMA-ES would run {module}.{name}. "
                "Do not use it."
            )
        return super().find_class(module, name)
