"""What a recipe must satisfy before anything runs: types, ranges and rules between keys. Imports no torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

MOST_LINES = 8

WHITELIST = (
    *(
        f"tunelab.{part}.*"
        for part in (
            *("activations", "callbacks", "data", "inits", "loggers", "losses", "models"),
            *("optimizers", "regularizers", "schedules", "tasks"),
        )
    ),
    "torch.optim.*",
    "torch.nn.*",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.*",
    "lightning.pytorch.loggers.*",
    "lightning.pytorch.profilers.*",
    "torchmetrics.*",
)
"""The targets that a config may build. Narrow on purpose: `torch.*` would let it run torch.load or torch.hub.load."""

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


class ConfigError(Exception):
    """One or more mistakes in what the user asked for, each a sentence that says what to type instead.

    Args:
        mistakes: The sentences. All are kept; the text shows the first eight.
    """

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = mistakes
        shown = list(mistakes[:MOST_LINES])
        if len(mistakes) > MOST_LINES:
            shown.append(f"and {len(mistakes) - MOST_LINES} more")
        super().__init__("\n".join(shown))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence with the closest known words, or an empty string."""
    close = get_close_matches(word, list(dict.fromkeys(known)), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def whitelist() -> list[str]:
    """The targets that may be built: ours, and the packages named in the environment variable TUNELAB_TRUST."""
    trusted = [name.strip() for name in os.environ.get("TUNELAB_TRUST", "").split(",")]
    return [*WHITELIST, *(f"{name}.*" for name in trusted if name)]


class Part(BaseModel):
    """A group of the recipe: the keys below are checked where they occur, others belong to the part itself."""

    model_config = ConfigDict(extra="allow", strict=True)


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Direction = Literal["minimize", "maximize"]


class Size(Part):
    """conf/size."""

    width: Count = Field(examples=[128])
    depth: Count = Field(examples=[2])


class Model(Part):
    """conf/model."""

    kernel_size: Count = Field(3, examples=[3])
    normalization: Literal["none", "batch", "layer"] = Field("none", examples=["none"])


class Optimizer(Part):
    """conf/optimizer."""

    betas: list[Fraction] = Field([0.9, 0.999], min_length=2, max_length=2, examples=["[0.9,0.999]"])
    momentum: Fraction = Field(0.9, examples=[0.9])
    eps: Positive = Field(1e-8, examples=[1e-8])


class Scheduler(Part):
    """conf/scheduler."""

    eta_min: NonNegative = Field(0.0, examples=[1e-5])
    every_epochs: Count = Field(30, examples=[30])
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, examples=[0.1])
    patience: Annotated[int, Field(ge=0)] = Field(10, examples=[10])
    monitor: str = "val/loss"


class Regularizer(Part):
    """One member of conf/regularization."""

    strength: NonNegative = Field(0.0, examples=[1e-4])
    patience: Count = Field(10, examples=[10])
    min_delta: NonNegative = Field(0.0, examples=[0.0])


class Clipping(Part):
    """conf/clipping."""

    max_norm: Positive = Field(1.0, examples=[1.0])
    norm_type: Positive = Field(2.0, examples=[2.0])
    clip_value: Positive = Field(0.5, examples=[0.5])


class Data(Part):
    """conf/data."""

    val_fraction: Fraction = Field(0.1, examples=[0.1])
    test_fraction: Fraction = Field(0.1, examples=[0.1])
    split_seed: Annotated[int, Field(ge=0)] = Field(0, examples=[0])
    shuffle: bool = Field(True, examples=["true"])


class Trainer(Part):
    """conf/trainer."""

    devices: int | str | list[int] = Field(1, examples=[1])
    accumulate_grad_batches: Count = Field(1, examples=[1])
    check_val_every_n_epoch: Count = Field(1, examples=[1])
    log_every_n_steps: Count = Field(50, examples=[50])
    deterministic: bool = Field(True, examples=["true"])


class Recipe(BaseModel):
    """The composed config: the dials with their ranges, and the groups."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: Annotated[str, Field(pattern=r"^[^/\\\n]+$")] = Field(examples=["my_run"])
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(examples=[0])
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(examples=[2])
    epochs: Count = Field(examples=[30])
    batch_size: Count | Literal["full"] = Field(examples=[64])
    lr: Positive = Field(examples=[1e-3])
    weight_decay: NonNegative = Field(examples=[0.01])
    dropout: Fraction = Field(examples=[0.2])
    label_smoothing: Fraction = Field(examples=[0.1])
    warmup_steps: Annotated[int, Field(ge=0)] = Field(examples=[100])
    warmup_fraction: Fraction = Field(examples=[0.05])
    objective: str = Field(examples=["val/loss"])
    objective_direction: Direction | None = Field(examples=["minimize"])
    test: bool = Field(examples=["true"])
    repeat: str | None
    resume: str | None

    size: Size
    model: Model
    optimizer: Optimizer
    scheduler: Scheduler
    regularization: dict[str, Regularizer]
    clipping: Clipping | None
    data: Data
    trainer: Trainer

    parameter_groups: Part
    activation: Part
    init: Part
    loss: Part
    task: Part
    callbacks: dict[str, Part]
    logger: dict[str, Part]
    profiler: Part | None


READ_BY_RUN = {"name", "seed", "threads", "objective", "objective_direction", "test", "repeat", "resume", "epochs"}
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


def validate(cfg: DictConfig, user_keys: Iterable[str] = ()) -> None:
    """Checks a composed recipe and raises all its mistakes at once.

    Args:
        cfg: The composed config, without the `hydra` node, interpolations unresolved.
        user_keys: The value keys that the user typed; one that nothing reads is refused.

    Raises:
        ConfigError: With a sentence for each mistake.
    """
    try:
        values = plain(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"`{error.full_key}` cannot be resolved: {str(error).splitlines()[0]}") from None
    raw = plain(cfg, resolve=False)
    mistakes = [*_range_mistakes(values), *_unread_keys(raw, user_keys), *_untrusted_targets(values)]
    if not mistakes:
        mistakes = list(_contradictions(values))
    if mistakes:
        raise ConfigError(*mistakes)


def logged_metrics(values: dict[str, Any]) -> list[str]:
    """The names of the validation metrics that a run of this recipe will log."""
    return ["val/loss", *(f"val/{metric}" for metric in values["task"].get("metrics", {}))]


RULES = {
    "greater_than": "be greater than {gt:g}",
    "greater_than_equal": "be at least {ge:g}",
    "less_than": "be less than {lt:g}",
    "less_than_equal": "be at most {le:g}",
    "finite_number": "be a finite number",
    "int_type": "be a whole number",
    "float_type": "be a number",
    "bool_type": "be true or false",
    "string_type": "be text",
    "list_type": "be a list",
    "dict_type": "be a group of keys",
    "model_type": "be a group of keys",
    "literal_error": "be {expected}",
    "string_pattern_mismatch": "be a folder's name without a slash",
    "too_short": "have {min_length} numbers",
    "too_long": "have {max_length} numbers",
    "missing": "be given",
}


def _range_mistakes(values: dict[str, Any]) -> Iterator[str]:
    try:
        Recipe.model_validate(values)
    except ValidationError as error:
        # A union (batch_size: a count or `full`) reports each alternative: one sentence a key.
        by_key: dict[tuple[str, ...], list[Any]] = {}
        for detail in error.errors():
            key, field = _key_and_field(detail["loc"])
            by_key.setdefault(key, []).append((detail, field))
        for key, found in by_key.items():
            rules = dict.fromkeys(
                RULES.get(detail["type"], detail["msg"]).format(**detail.get("ctx", {})) for detail, _ in found
            )
            name = ".".join(key)
            if found[0][0]["type"] == "missing":
                yield f"`{name}` must be given. Choose one: --help lists what there is."
                continue
            example = next((field.examples[0] for _, field in found if field is not None and field.examples), None)
            remedy = f" Try {name}={example}." if example is not None else ""
            yield f"`{name}` must {' or '.join(rules)}, got {show(found[0][0]['input'])}.{remedy}"


def _key_and_field(location: tuple[Any, ...]) -> tuple[tuple[str, ...], Any]:
    """Splits pydantic's location into the key that the user typed and its field; union tags and indices drop out."""
    model: Any = Recipe
    key: list[str] = []
    field = None
    for step in location:
        fields = getattr(model, "model_fields", {})
        if isinstance(step, str) and step in fields:
            field = fields[step]
            key.append(step)
            model = next((m for m in _models_of(field.annotation)), None)
        elif isinstance(step, str) and model is not None and field is not None and "dict" in str(field.annotation):
            key.append(step)
        else:
            break
    return tuple(key), field


def _models_of(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_of(argument)


def show(value: Any) -> str:
    """A value as the user would type it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


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


def _targets(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, child in node.items():
            path = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                yield key, str(child)
            else:
                yield from _targets(child, path)
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _targets(child, f"{key}.{index}")


def _untrusted_targets(values: dict[str, Any]) -> Iterator[str]:
    allowed = whitelist()
    seen = set()
    for key, target in _targets(values):
        if not any(target.startswith(p[:-1]) if p.endswith(".*") else target == p for p in allowed):
            if target in seen:
                continue  # the task repeats the parts that it uses
            seen.add(target)
            package = target.split(".")[0]
            yield f"`{key}._target_` must be in a trusted package, got {target}. " + (
                "Configs build tunelab's parts, torch.optim.*, torch.nn.*, torchmetrics.* and Lightning's callbacks."
                if package in {*sys.stdlib_module_names, *(trusted.split(".")[0] for trusted in WHITELIST)}
                else f'If {package} is your own, say tunelab.main(trust=["{package}"]) in its train.py '
                f"or set TUNELAB_TRUST={package}."
            )


def validate_targets(cfg: DictConfig) -> None:
    """Checks only that a config builds nothing outside the whitelist; for one that comes from a file.

    Raises:
        ConfigError: Naming each target that is not trusted.
    """
    if mistakes := list(_untrusted_targets(plain(cfg, resolve=True))):
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
    for name, member in values["regularization"].items():
        if member.get("patience", 0) >= values["epochs"]:
            yield (
                f"`regularization.{name}.patience` must be shorter than the run, got patience={member['patience']} "
                f"with epochs={values['epochs']}. Try regularization.{name}.patience={max(1, values['epochs'] // 3)}."
            )
    if values["model"].get("kernel_size", 1) % 2 == 0:
        size = values["model"]["kernel_size"]
        yield f"`model.kernel_size` must be odd, got {size}. Try model.kernel_size={size + 1}."
    if values["repeat"] and values["resume"]:
        yield "`repeat` and `resume` must not be given together. Leave one of them out."


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
    without_validation = values["trainer"].get("limit_val_batches") == 0 or values["data"].get("val_fraction") == 0
    if monitor and without_validation:
        yield (
            f"`scheduler=plateau` must have validations to watch {monitor} in, but there are none. "
            "Try data.val_fraction=0.1 and trainer.limit_val_batches=1.0, or scheduler=cosine."
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
