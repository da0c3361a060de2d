"""Types and ranges of a recipe's keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunelab.errors import show


class Part(BaseModel):
    """A group of the recipe: the keys below are checked where they occur, others belong to the part itself."""

    model_config = ConfigDict(extra="allow", strict=True)


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
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
    l1_fraction: Share = Field(0.5, examples=[0.5])
    alpha: Positive = Field(1.0, examples=[0.2])
    probability: Share = Field(1.0, examples=[0.5])
    epsilon: NonNegative = Field(0.1, examples=[0.1])
    steps: Count = Field(5, examples=[5])
    step_size: Positive | None = Field(None, examples=[0.05])
    fraction: Share = Field(0.5, examples=[0.5])
    rate: Fraction = Field(0.1, examples=[0.1])
    decay: Fraction = Field(0.99, examples=[0.99])
    start_fraction: Fraction = Field(0.75, examples=[0.75])
    patience: Count = Field(10, examples=[10])
    min_delta: NonNegative = Field(0.0, examples=[0.0])


class Augmentation(Part):
    """conf/augmentation."""

    strength: NonNegative = Field(1.0, examples=[1.0])
    probability: Share = Field(0.5, examples=[0.5])
    rotation_degrees: NonNegative = Field(15.0, examples=[15.0])
    crop_fraction: Fraction = Field(0.125, examples=[0.125])
    jitter: NonNegative = Field(0.2, examples=[0.2])
    noise: NonNegative = Field(0.0, examples=[0.05])
    erase_fraction: Fraction = Field(0.0, examples=[0.2])


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

    devices: Annotated[int, Field(ge=1, le=1)] = Field(1, examples=[1])  # several need a launcher of our own
    accumulate_grad_batches: Count = Field(1, examples=[1])
    check_val_every_n_epoch: Count = Field(1, examples=[1])
    log_every_n_steps: Count = Field(50, examples=[50])
    deterministic: bool = Field(True, examples=["true"])


class Recipe(BaseModel):
    """The composed config: the dials with their ranges, and the groups."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: Annotated[str, Field(pattern=r"^[^/\\\n]*[^/\\\n.][^/\\\n]*$")] = Field(examples=["my_run"])
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(examples=[0])
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(examples=[2])
    epochs: Count = Field(examples=[30])
    batch_size: Count | Literal["full"] = Field(examples=[64])
    lr: Positive = Field(examples=[1e-3])
    weight_decay: NonNegative = Field(examples=[0.01])
    dropout: Fraction = Field(examples=[0.2])
    label_smoothing: Fraction = Field(examples=[0.1])
    stochastic_depth: Fraction = Field(examples=[0.1])
    fold: Annotated[str, Field(pattern=r"^\d+/\d+$")] | None = Field(examples=["0/5"])
    compile: bool = Field(examples=["true"])
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
    augmentation: Augmentation | None
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


def range_mistakes(values: dict[str, Any]) -> Iterator[str]:
    """A sentence for each key whose type or range is wrong.

    Args:
        values: The recipe, interpolations resolved.
    """
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
            model = next(_models_of(field.annotation), None)
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
