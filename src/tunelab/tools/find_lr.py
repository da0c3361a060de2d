"""A learning rate for a recipe, by a range test over several seeds: model=cnn optimizer=sgd"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

from omegaconf import DictConfig
from pydantic import Field

from tunelab import instrument
from tunelab.config import plain

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

STEPS_PER_DECADE = 10
"""At least: fewer tell no slope from noise."""


class Numbers(instrument.Numbers):
    """conf/find_lr.yaml."""

    min_lr: Positive = Field(examples=[1e-7])
    max_lr: Positive = Field(examples=[10])
    steps: Annotated[int, Field(ge=1)] = Field(examples=[200])
    seeds: Annotated[int, Field(ge=1)] = Field(examples=[5])


def check(cfg: DictConfig, user_keys: Iterable[str]) -> None:
    instrument.check(cfg, user_keys, Numbers, _mistakes)


def _mistakes(cfg: DictConfig, found: Sequence[str]) -> Iterator[str]:
    if any(mistake.startswith(tuple(f"`{key}`" for key in Numbers.model_fields)) for mistake in found):
        return  # they cannot be compared
    own = plain(cfg, resolve=False)
    low, high, steps = own["min_lr"], own["max_lr"], own["steps"]
    if low >= high:
        yield f"`min_lr` must be less than max_lr, got min_lr={low:g}, max_lr={high:g}. Try min_lr={high / 1e4:g}."
        return
    least = max(20, math.ceil(STEPS_PER_DECADE * math.log10(high / low)))
    if steps < least:
        yield (
            f"`steps` must be at least {least} from lr {low:g} to {high:g}, "
            f"{STEPS_PER_DECADE} for each tenfold, got {steps}. Try steps={least}."
        )


def measure(cfg: DictConfig, asked: instrument.Asked) -> instrument.Answer:
    from tunelab.tuning.lr_answer import answer
    from tunelab.tuning.lr_range import Plan

    recipe, numbers = instrument.take(cfg, Numbers)
    return answer(recipe, Plan(**numbers.model_dump()), asked.overrides)
