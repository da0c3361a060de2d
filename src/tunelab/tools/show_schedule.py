"""The lr of every step of a recipe, without training: scheduler=cosine warmup_fraction=0.1"""

from collections.abc import Iterable

from omegaconf import DictConfig

from tunelab import instrument


class Numbers(instrument.Numbers):
    """conf/show_schedule.yaml: it has none of its own."""


def check(cfg: DictConfig, user_keys: Iterable[str]) -> None:
    instrument.check(cfg, user_keys, Numbers)


def measure(cfg: DictConfig, asked: instrument.Asked) -> instrument.Answer:
    from tunelab.tuning.schedule import show_schedule

    recipe, _ = instrument.take(cfg, Numbers)
    return show_schedule(recipe, asked.overrides)
