"""Which init lets the signal through and trains best: model=mlp size.depth=20 'activations=[relu,tanh]'"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Annotated

from omegaconf import DictConfig
from pydantic import Field

from tunelab import instrument
from tunelab.config import plain, validate
from tunelab.errors import did_you_mean, show

PRETRAINED = "pretrained"  # asks for a file


class Numbers(instrument.Numbers):
    """The keys of conf/compare_inits.yaml beside those of the recipe."""

    inits: list[str] | None = Field(examples=["[default,kaiming_normal]"])
    activations: list[str] | None = Field(examples=["[relu,tanh]"])
    depths: list[Annotated[int, Field(ge=1)]] | None = Field(examples=["[2,20]"])
    seeds: Annotated[int, Field(ge=1, examples=[3])]


def check(cfg: DictConfig, user_keys: Iterable[str]) -> None:
    instrument.check(_without_patience(cfg), user_keys, Numbers, _list_mistakes)


def _without_patience(cfg: DictConfig) -> DictConfig:
    """A copy to check, in which no patience is longer than these few epochs: nothing here waits for a validation."""
    checked = cfg.copy()
    parts = (checked.get("scheduler"), *(checked.get("regularization") or {}).values())
    for part in parts:
        if isinstance(part, DictConfig) and isinstance(part.get("patience"), int) and part.patience > 1:
            part.patience = 1
    checked.trainer.check_val_every_n_epoch = 1
    return checked


def _list_mistakes(cfg: DictConfig, _: Sequence[str]) -> Iterator[str]:
    """What is wrong with the names and depths to compare."""
    model = str(plain(cfg, resolve=False)["model"])
    examples = {key: field.examples[0] for key, field in Numbers.model_fields.items() if field.examples}
    for key, group in (("inits", "init"), ("activations", "activation"), ("depths", None)):
        values = cfg[key] if isinstance(cfg[key], Sequence) and not isinstance(cfg[key], str) else None
        if values is None:
            continue
        if not len(values):
            yield f"`{key}` must have one or more of what is to be compared, got []. Try '{key}={examples[key]}'."
        for twice in sorted({str(value) for value in values if list(values).count(value) > 1}):
            yield f"`{key}` must name each once, got {twice} twice. Leave one of them out."
        known = instrument.options(group) if group else []
        for name in values if group else []:
            if name not in known:
                near = did_you_mean(str(name), known) or f" Try '{key}={examples[key]}'."
                yield f"`{key}` must be options of {group} ({', '.join(known)}), got {show(name)}.{near}"
    if cfg.depths is not None and ("${size.depth}" not in model or cfg.model.get("blocks")):
        yield "`depths` must be left out: this model does not follow size.depth. Leave it out."
    if cfg.activations is not None and "${activation}" not in model:
        yield "`activations` must be left out: this model does not follow activation. Leave it out."
    if PRETRAINED in (cfg.inits or []) and not cfg.init.get("path"):
        yield "`init.path` must be given to compare pretrained. Add init=pretrained init.path=<a run's folder>."


def measure(cfg: DictConfig, asked: instrument.Asked) -> instrument.Answer:
    from tunelab.tuning.inits import compare

    recipe, own = instrument.take(cfg, Numbers)
    init, activation, depth = asked.choices["init"], asked.choices["activation"], int(recipe.size.depth)
    names = own.inits or [init, *(name for name in instrument.options("init") if name not in (init, PRETRAINED))]
    recipes = []
    for other, depths, name in product(own.activations or [activation], own.depths or [depth], names):
        changes = {"init": name, "activation": other, "size.depth": depths}
        here = {"init": init, "activation": activation, "size.depth": depth}
        changed = {key: value for key, value in changes.items() if value != here[key]}
        # the keys of an option that was typed belong to it alone
        kept = [o for o in asked.overrides if not _sets(o, changed)]
        variant, _ = instrument.take(asked.variant([*kept, *(f"{k}={v}" for k, v in changed.items())]), Numbers)
        validate(_without_patience(variant))
        recipes.append((name, other, variant))
    return compare(recipes, own.seeds, (init, activation, depth), asked.overrides, list(Numbers.model_fields))


def _sets(override: str, keys: Iterable[str]) -> bool:
    """Whether an override sets one of these keys or something in it."""
    typed = override.split("=")[0].lstrip("+~")
    return any(typed == key or typed.startswith(f"{key}.") for key in keys)
