"""The batch size of a recipe: the largest that fits, the one from which speed no longer grows, and the lr for it."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from omegaconf import DictConfig

from tunelab.errors import ConfigError
from tunelab.instrument import progress
from tunelab.scaling import rule_of
from tunelab.tuning.attempt import ran_out
from tunelab.tuning.batch_size_answer import BatchSize, Before
from tunelab.tuning.free_memory import limit_mistakes
from tunelab.tuning.largest import Memory, most_tries
from tunelab.tuning.largest import largest as search
from tunelab.tuning.memory import STEPS, CpuMemory, GpuMemory
from tunelab.tuning.steps import Training, fit_with_batch_size, make_steps, training_of
from tunelab.tuning.throughput import Speed, Timed, speeds

log = logging.getLogger("tunelab")


def find_batch_size(
    recipe: DictConfig,
    *,
    min_batch_size: int = 8,
    max_batch_size: int | None = None,
    largest: bool | str = "auto",
    memory_limit_gb: float | None = None,
    headroom_fraction: float = 0.1,
    doubling_gain: float = 1.5,
    repeats: int = 5,
    seconds: float = 0.3,
    lr_rule: str = "auto",
) -> BatchSize:
    """Measures memory and speed of a recipe's training steps over batch sizes.

    Args:
        recipe: A validated recipe.
        min_batch_size: That it begins with.
        max_batch_size: That it ends with; None for all training examples.
        largest: Whether to look for the largest batch that fits; `auto` where the memory has a limit.
        memory_limit_gb: Of a CPU what training may take beside Python and its libraries, in 10^9 bytes; of a GPU less
            than is free.
        headroom_fraction: Of the memory, that is to stay free, in [0, 1).
        doubling_gain: Times the samples per second that a doubled batch must bring, in (1, 2).
        repeats: Of each measurement of speed.
        seconds: Of each.
        lr_rule: linear, sqrt, none, or `auto` for that of the optimizer's family.

    Raises:
        ConfigError: If the data, the model or the memory does not allow it.
    """
    training = training_of(recipe)
    most = _most(min_batch_size, max_batch_size, training.examples)
    limited = training.device == "cuda" or memory_limit_gb is not None
    wanted = largest is True or (largest == "auto" and limited)
    if training.device != "cuda" and (mistakes := list(limit_mistakes(largest, memory_limit_gb))):
        raise ConfigError(*mistakes)
    rule = rule_of(recipe.optimizer.get("_target_", ""), recipe.optimizer.get("base", "sgd"))
    found = None
    with _interrupted_in_words():
        if wanted:
            with progress(most_tries(min_batch_size, most)) as said:
                memory = _memory(recipe, training, memory_limit_gb)
                found = search(memory, first=min_batch_size, most=most, headroom_fraction=headroom_fraction, said=said)
        upto = most if found is None else found.batch_size
        with progress(repeats * (1 + int(math.log2(upto / min_batch_size)))) as said:
            measure = partial(_speed, recipe, training.examples, seconds, said)
            measured = speeds(measure, first=min_batch_size, most=upto, repeats=repeats, doubling_gain=doubling_gain)
    return BatchSize(
        _before(recipe, training.examples), measured, doubling_gain, rule if lr_rule == "auto" else lr_rule, found
    )


@contextmanager
def _interrupted_in_words() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # between steps, and in them
        log.info("Interrupted: what was measured so far decides nothing, and is not kept.")
        raise


def _most(least: int, most: int | None, examples: int | None) -> int:
    """The largest batch size to try: training takes none that has more than all its examples."""
    if examples is None:
        if most is None:
            raise ConfigError(
                "`max_batch_size` must be given for data that does not say how many examples it has, got null. "
                f"Try max_batch_size={64 * least}."
            )
        return most
    if 2 * least > examples:
        raise ConfigError(
            f"`min_batch_size` must be at most half of the {examples} training examples, got {least}. "
            f"Try min_batch_size={max(1, examples // 16)}."
        )
    return min(most or examples, examples)


def _memory(recipe: DictConfig, training: Training, limit_gb: float | None) -> Memory:
    if training.device == "cuda":
        return GpuMemory(lambda size: make_steps(recipe, size, training.examples, STEPS), limit_gb)
    if training.device != "cpu" or limit_gb is None:
        raise ConfigError(f"`largest` must be false on {training.device}, whose memory is the system's. Leave it out.")
    alone = recipe.copy()
    alone.name = recipe.name  # asks Hydra what is chosen, which nobody answers in another process
    return CpuMemory(alone, training.examples, limit_gb)


def _speed(
    recipe: DictConfig, examples: int | None, seconds: float, said: Callable[[str], None], batch_size: int
) -> Speed | None:
    """The speed at a batch size; None if memory runs out, which is given back."""
    timed = Timed(seconds)
    try:
        fit_with_batch_size(recipe, batch_size, examples, timed)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        timed.speed = None
    gc.collect()
    said(
        f"batch_size={batch_size}: "
        + (f"{timed.speed.samples_per_second:,.0f} samples per second" if timed.speed else "out of memory")
    )
    return timed.speed


def _before(recipe: DictConfig, examples: int | None) -> Before:
    """What the recipe says; `full` counts the examples."""
    size = examples if recipe.batch_size == "full" and examples else recipe.batch_size
    others = {f"optimizer.{key}": float(value) for key, value in recipe.optimizer.items() if str(key).endswith("_lr")}
    return Before(
        size,
        {"lr": float(recipe.lr), **others},
        examples,
        recipe.trainer.limit_train_batches,
        recipe.trainer.accumulate_grad_batches,
        str(recipe.optimizer.get("_target_")).endswith(".LBFGS"),
    )
