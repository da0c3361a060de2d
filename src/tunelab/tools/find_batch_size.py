"""The batch size of a recipe: what fits, what is fastest, and the lr for it: model=cnn memory_limit_gb=4"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal

from omegaconf import DictConfig
from pydantic import Field

from tunelab import instrument

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Numbers(instrument.Numbers):
    """conf/find_batch_size.yaml."""

    min_batch_size: Count = Field(examples=[8])
    max_batch_size: Count | None = Field(examples=[1024])
    largest: bool | Literal["auto"] = Field(examples=["auto"])
    memory_limit_gb: Positive | None = Field(examples=[4])
    headroom_fraction: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(examples=[0.1])
    doubling_gain: Annotated[float, Field(gt=1, lt=2)] = Field(examples=[1.5])
    repeats: Count = Field(examples=[5])
    seconds: Positive = Field(examples=[0.3])
    lr_rule: Literal["auto", "linear", "sqrt", "none"] = Field(examples=["auto"])


def check(cfg: DictConfig, user_keys: Iterable[str]) -> None:
    instrument.check(cfg, user_keys, Numbers, _contradictions)


def _contradictions(cfg: DictConfig, found: Sequence[str]) -> Iterator[str]:
    if found:  # the rules between keys assume that types and ranges hold
        return
    from tunelab.tuning.free_memory import limit_mistakes

    recipe, numbers = instrument.take(cfg, Numbers)
    least, most = numbers.min_batch_size, numbers.max_batch_size
    if most is not None and most < 2 * least:
        yield (
            f"`max_batch_size` must be at least twice min_batch_size, got {most} and {least}. "
            f"Try max_batch_size={16 * least}."
        )
    if recipe.trainer.devices > 1:
        yield (
            f"`trainer.devices` must be 1, got {recipe.trainer.devices}: speed and memory are those of one device. "
            f"Try trainer=cpu or trainer=gpu; a run on {recipe.trainer.devices} may take as many times what is found."
        )
    if recipe.trainer.accelerator == "cpu":
        yield from limit_mistakes(numbers.largest, numbers.memory_limit_gb)


def measure(cfg: DictConfig) -> instrument.Answer:
    from tunelab.tuning.batch_size import find_batch_size

    recipe, numbers = instrument.take(cfg, Numbers)
    return find_batch_size(recipe, **numbers.model_dump())
