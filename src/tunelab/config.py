"""What a recipe must satisfy before anything runs: the schema, the whitelist, and rules between keys. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tunelab.errors import ConfigError, did_you_mean, show
from tunelab.schema import Recipe, range_mistakes
from tunelab.whitelist import untrusted_targets

MEMBER_GROUPS = ("regularization", "callbacks", "logger")
"""The groups of which several options are chosen at once."""

TASK_LOSSES = {
    "tunelab.tasks.Classification": {"tunelab.losses.CrossEntropy": "cross_entropy"},
    "tunelab.tasks.Regression": {
        "torch.nn.MSELoss": "mse",
        "torch.nn.L1Loss": "mae",
        "torch.nn.HuberLoss": "huber",
    },
}
"""The losses known to fit each of our tasks; a loss of the user's own is not judged."""


READ_BY_RUN = {
    "name",
    "seed",
    "threads",
    "objective",
    "objective_direction",
    "test",
    "repeat",
    "resume",
    "epochs",
    "profiler",
}
"""Dials that the run itself reads; every other one must be read by a chosen part."""

READERS = {"label_smoothing": "loss=cross_entropy", "dropout": "model=mlp", "weight_decay": "optimizer=adamw"}
"""Where dials that not every part reads belong, for the message."""

OFF_AT_ZERO = {"weight_decay", "dropout", "label_smoothing", "warmup_steps", "warmup_fraction"}
"""Dials that an option may set too (`regularization=dropout`): turned up, they must be read, whoever set them."""


def plain(cfg: DictConfig, *, resolve: bool) -> dict[str, Any]:
    """A config as plain dicts and lists, interpolations followed or left as they stand."""
    values = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def validate(cfg: DictConfig, user_keys: Iterable[str] = (), *, recorded: bool = False) -> None:
    """Checks a composed recipe and raises all its mistakes at once.

    Args:
        cfg: The composed config, without the `hydra` node, interpolations unresolved.
        user_keys: The value keys that the user typed; one that nothing reads is refused.
        recorded: Whether it is a run's record, whose interpolations are resolved: who reads a key can't be seen there.

    Raises:
        ConfigError: With a sentence for each mistake.
    """
    raw = plain(cfg, resolve=False)
    if missing := [key for key in Recipe.model_fields if key not in raw]:
        raise ConfigError(*(f"`{key}` must be given. Choose one: --help lists what there is." for key in missing))
    try:
        values = plain(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"`{error.full_key}` cannot be resolved: {str(error).splitlines()[0]}") from None
    mistakes = [
        *range_mistakes(values),
        *([] if recorded else _unread_keys(raw, user_keys)),
        *untrusted_targets(values),
    ]
    if not mistakes:
        mistakes = list(_contradictions(values))
    if mistakes:
        raise ConfigError(*mistakes)


def logged_metrics(values: dict[str, Any]) -> list[str]:
    """The names of the validation metrics that a run of this recipe will log."""
    return ["val/loss", *(f"val/{metric}" for metric in values["task"].get("metrics", {}))]


def _references(node: Any) -> Iterator[str]:
    """The keys that interpolations below this node read."""
    if isinstance(node, dict):
        for child in node.values():
            yield from _references(child)
    elif isinstance(node, list):
        for child in node:
            yield from _references(child)
    elif isinstance(node, str):
        for path in re.findall(r"\$\{(?:oc\.select:)?([\w.]+)", node):
            yield path.split(".")[0]


def _unread_keys(raw: dict[str, Any], user_keys: Iterable[str]) -> Iterator[str]:
    read = set(_references(raw)) | READ_BY_RUN
    ours = set(Recipe.model_fields)
    for key in raw:
        if key not in ours and key not in read:
            yield f"`{key}` must be a key of the recipe; no part reads it.{did_you_mean(key, ours)}"
    typed = set(user_keys)
    for key in ours & set(raw) - read:
        if (key in typed and not isinstance(raw[key], dict)) or (key in OFF_AT_ZERO and raw[key]):
            yield (
                f"`{key}` must be read by a chosen part, got {key}={show(raw[key])}, but none of them reads it. "
                f"Leave it out, or choose {READERS.get(key, f'a part whose file has ${{{key}}}')}."
            )


def validate_targets(cfg: DictConfig) -> None:
    """Checks only that a config builds nothing outside the whitelist; for one that comes from a file.

    Raises:
        ConfigError: Naming each target that is not trusted.
    """
    if mistakes := list(untrusted_targets(plain(cfg, resolve=True))):
        raise ConfigError(*mistakes)


def _contradictions(values: dict[str, Any]) -> Iterator[str]:
    """Rules between keys; each assumes that types and ranges hold."""
    metrics = logged_metrics(values)
    known = "task" in values and "metrics" in values["task"]
    if known and values["objective"] not in metrics:
        yield (
            f"`objective` must be a metric that this run logs, got {values['objective']}. "
            f"Try objective={' or '.join(metrics)}."
        )
    yield from _schedule_contradictions(values, metrics if known else None)

    task, loss = values["task"].get("_target_"), values["loss"].get("_target_")
    judged = {target: name for losses in TASK_LOSSES.values() for target, name in losses.items()}
    if task in TASK_LOSSES and loss in judged and loss not in TASK_LOSSES[task]:
        fitting = " or ".join(f"loss={name}" for name in TASK_LOSSES[task].values())
        yield f"`loss` must fit the task, got loss={judged[loss]} with {task.split('.')[-1].lower()}. Try {fitting}."

    data = values["data"]
    if data.get("val_fraction", 0) + data.get("test_fraction", 0) >= 1:
        yield (
            "`data.val_fraction` + `data.test_fraction` must be less than 1, "
            f"got {data['val_fraction']} + {data['test_fraction']}. Try data.val_fraction=0.1 data.test_fraction=0.1."
        )
    yield from _patience_contradictions(values)
    if str(values["trainer"].get("precision")).startswith("16") and values["optimizer"].get("fused"):
        yield (
            f"`trainer.precision` must not be {values['trainer']['precision']} with a fused optimizer, which unscales "
            "the gradients only after they are clipped. Try optimizer.fused=false or trainer.precision=bf16-mixed."
        )
    if values["model"].get("kernel_size", 1) % 2 == 0:
        size = values["model"]["kernel_size"]
        yield f"`model.kernel_size` must be odd, got {size}. Try model.kernel_size={size + 1}."
    if values["repeat"] and values["resume"]:
        yield "`repeat` and `resume` must not be given together. Leave one of them out."


def _patience_contradictions(values: dict[str, Any]) -> Iterator[str]:
    """Parts that watch validations: their patience ends before the run does, and there are validations to watch."""
    members = {f"regularization.{name}": member for name, member in values["regularization"].items()}
    trainer = values["trainer"]
    validated = trainer.get("limit_val_batches") != 0 and values["data"].get("val_fraction") != 0
    validations = values["epochs"] // trainer.get("check_val_every_n_epoch", 1) if validated else 0
    for key, part in {"scheduler": values["scheduler"], **members}.items():
        if part.get("monitor") and not validations:
            what, instead = ("scheduler=plateau", "scheduler=cosine") if key == "scheduler" else (key, "leave it out")
            yield (
                f"`{what}` must have validations to watch {part['monitor']} in, but there are none. "
                f"Try data.val_fraction=0.1 and trainer.limit_val_batches=1.0, or {instead}."
            )
        elif values["epochs"] > 1 and validations and part.get("patience", 0) >= validations:
            yield (
                f"`{key}.patience` must be shorter than the run, got patience={part['patience']} "
                f"with epochs={values['epochs']}. Try {key}.patience={max(1, validations // 3)}."
            )


def _schedule_contradictions(values: dict[str, Any], metrics: list[str] | None) -> Iterator[str]:
    scheduler = values["scheduler"]
    if values["warmup_steps"] and values["warmup_fraction"]:
        yield (
            f"`warmup_steps` and `warmup_fraction` must not be given together, got {values['warmup_steps']} and "
            f"{values['warmup_fraction']}. Leave one of them out."
        )
    if scheduler.get("eta_min", 0.0) >= values["lr"]:
        yield (
            f"`scheduler.eta_min` must be less than lr, got eta_min={scheduler['eta_min']}, lr={values['lr']}. "
            f"Try scheduler.eta_min={values['lr'] / 100:g}."
        )
    monitor = scheduler.get("monitor")
    if monitor and metrics and monitor not in metrics and monitor != values["objective"]:
        yield (
            f"`scheduler.monitor` must be a metric that this run logs, got {monitor}. "
            f"Try scheduler.monitor={' or '.join(metrics)}."
        )


def required(cfg: DictConfig, *keys: str) -> None:
    """Refuses a script's config in which a key has no value.

    Raises:
        ConfigError: Naming each key that is missing.
    """
    missing = [f"`{key}` must be given. Write {key}=<path>." for key in keys if not cfg[key]]
    if missing:
        raise ConfigError(*missing)


def one_of(cfg: DictConfig, key: str, values: list[str]) -> None:
    """Refuses a script's config in which a key has none of the values it may have.

    Raises:
        ConfigError: Naming the values.
    """
    if cfg[key] not in values:
        raise ConfigError(f"`{key}` must be {' or '.join(values)}, got {show(cfg[key])}. Try {key}={values[0]}.")
