"""Types and ranges of a recipe's keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Part(BaseModel):
    """A group of the recipe: the keys below are checked where they occur, others belong to the part itself."""

    model_config = ConfigDict(extra="allow", strict=True)


def _fold(value: Any) -> Any:
    number, _, folds = str(value).partition("/")
    if not (isinstance(value, str) and number.isdecimal() and folds.isdecimal() and max(1, int(number)) < int(folds)):
        raise PydanticCustomError("fold", "be one of 0/k to k-1/k with k at least 2")
    return value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Fold = Annotated[str, BeforeValidator(_fold)]
Direction = Literal["minimize", "maximize"]
Precision = Literal["32-true", "64-true", "16-mixed", "bf16-mixed", "bf16-true"]
Strategy = Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"]
Limit = Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)]


class Size(Part):
    """conf/size."""

    width: Count = Field(examples=[128])
    depth: Count = Field(examples=[2])


class Model(Part):
    """conf/model."""

    normalization: Literal["none", "batch", "layer"] = Field("none", examples=["none"])
    kernel_size: Count = Field(3, examples=[3])
    stride: Count = Field(2, examples=[2])
    padding: Annotated[int, Field(ge=0)] | None = Field(None, examples=[1])
    stages: Count = Field(4, examples=[4])
    blocks: Annotated[list[Count], Field(min_length=1)] | None = Field(None, examples=["[2,2,2,2]"])
    bottleneck: bool = Field(False, examples=["true"])
    stem_kernel_size: Count = Field(3, examples=[7])
    stem_stride: Count = Field(1, examples=[2])
    stem_padding: Annotated[int, Field(ge=0)] | None = Field(None, examples=[3])
    stem_pool: bool = Field(False, examples=["true"])
    patch_size: Count | None = Field(None, examples=[4])
    heads: Count | None = Field(None, examples=[4])
    mlp_ratio: Positive = Field(2.0, examples=[2.0])
    attention_dropout: Fraction = Field(0.0, examples=[0.1])
    pooling: Literal["class_token", "mean"] = Field("class_token", examples=["mean"])


class Init(Part):
    """conf/init."""

    gain: Positive | None = Field(None, examples=["null"])
    std: Positive = Field(0.02, examples=[0.02])
    path: str | None = Field(None, examples=["outputs/my_run"])
    strict: bool = Field(True, examples=["false"])


class Optimizer(Part):
    """conf/optimizer."""

    betas: list[Fraction] = Field([0.9, 0.999], min_length=2, max_length=2, examples=["[0.9,0.999]"])
    momentum: Fraction = Field(0.9, examples=[0.9])
    eps: Positive = Field(1e-8, examples=[1e-8])
    alpha: Fraction = Field(0.99, examples=[0.99])
    rho: NonNegative = Field(0.05, examples=[0.05])
    beta2_decay: Annotated[float, Field(le=0)] = Field(-0.8, examples=[-0.8])
    d: Annotated[float, Field(ge=1)] = Field(1.0, examples=[1.0])
    adamw_lr: Positive = Field(1e-3, examples=[1e-3])
    adamw_betas: list[Fraction] = Field([0.9, 0.95], min_length=2, max_length=2, examples=["[0.9,0.95]"])
    ns_steps: Count = Field(5, examples=[5])
    base: Literal["sgd", "adamw"] = Field("sgd", examples=["sgd"])
    max_iter: Count = Field(20, examples=[20])
    history_size: Count = Field(10, examples=[10])
    line_search_fn: Literal["strong_wolfe"] | None = Field(None, examples=["strong_wolfe"])


class GroupRule(Part):
    """One of parameter_groups.rules."""

    match: str | None = None
    type: str | None = None
    lr: NonNegative = 1.0
    weight_decay: NonNegative = 1.0


class ParameterGroups(Part):
    """The parameters that share an lr and a weight decay."""

    undecayed: list[Literal["bias", "norm", "embedding"]] = Field([], examples=["[bias,norm]"])
    rules: list[GroupRule] = Field([], examples=["[{match:head.*,lr:0.1}]"])
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(1.0, examples=[0.8])
    matrices_apart: bool = Field(False, examples=["true"])


class Scheduler(Part):
    """conf/scheduler."""

    eta_min: NonNegative = Field(0.0, examples=[1e-5])
    every_epochs: Count = Field(30, examples=[30])
    milestone_fractions: list[Annotated[float, Field(gt=0, lt=1)]] = Field([0.5], examples=["[0.5,0.75]"])
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, examples=[0.1])
    power: Positive = Field(1.0, examples=[2.0])
    cycles: Count = Field(3, examples=[3])
    growth: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(1.0, examples=[2.0])
    timescale_fraction: Positive = Field(0.1, examples=[0.1])
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = Field(0.2, examples=[0.2])
    rise_fraction: Fraction = Field(0.3, examples=[0.3])
    first_fraction: Annotated[float, Field(gt=0, le=1)] = Field(0.04, examples=[0.04])
    patience: Annotated[int, Field(ge=0)] = Field(10, examples=[10])
    monitor: str = "val/loss"


class Loss(Part):
    """conf/loss."""

    class_weights: list[Positive] | Literal["balanced"] | None = Field(None, examples=["balanced"])
    gamma: NonNegative = Field(2.0, examples=[2.0])
    margin: Positive = Field(1.0, examples=[1.0])
    delta: Positive = Field(1.0, examples=[1.0])


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
    clip_factor: Positive = Field(0.01, examples=[0.01])
    eps: Positive = Field(1e-3, examples=[1e-3])
    percentile: Annotated[float, Field(gt=0, le=100)] = Field(90.0, examples=[90.0])
    window_steps: Annotated[int, Field(ge=10, le=1000)] = Field(100, examples=[100])


class BatchGrowth(Part):
    """conf/batch_growth."""

    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = Field(1.5, examples=[1.5])
    every_epochs: Count = Field(5, examples=[5])
    maximum: Count | None = Field(None, examples=[1024])
    after_epochs: Annotated[list[Count], Field(min_length=1)] = Field([10, 20], examples=["[10,20]"])
    batch_sizes: Annotated[list[Count], Field(min_length=1)] = Field([128, 256], examples=["[128,256]"])
    by: Literal["batch_size", "accumulation"] = Field("batch_size", examples=["accumulation"])
    lr_rule: Literal["auto", "linear", "sqrt", "none"] = Field("auto", examples=["auto"])


class Callback(Part):
    """conf/callbacks."""

    every_seconds: NonNegative = Field(1.0, examples=[1.0])
    every_epochs: Count = Field(1, examples=[1])
    tolerance: NonNegative = Field(1e-6, examples=[1e-6])


DecimalMark = Literal["point", "comma"]


class Data(Part):
    """conf/data."""

    val_fraction: Fraction = Field(0.1, examples=[0.1])
    test_fraction: Fraction = Field(0.1, examples=[0.1])
    split_seed: Annotated[int, Field(ge=0)] = Field(0, examples=[0])
    shuffle: bool = Field(True, examples=["true"])
    path: str | None = Field(None, examples=["my_data"])
    # tables
    target: str | int | None = Field(None, examples=["price"])
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(None, examples=["';'"])
    encoding: str = Field("utf-8", examples=["utf-8"])
    drop: list[str | int] = Field([], examples=["[id]"])
    categorical: list[str | int] = Field([], examples=["[postcode]"])
    max_categories: Count = Field(50, examples=[50])
    missing: list[str | int | float] = Field([], examples=["[unknown]"])
    not_missing: list[str | int | float] = Field([], examples=["[None]"])
    decimal: DecimalMark | dict[str, DecimalMark] | None = Field(None, examples=["comma"])
    day_first: bool | dict[str, bool] | None = Field(None, examples=["true"])
    ignore_case: bool | None = Field(None, examples=["true"])
    val_path: str | None = Field(None, examples=["val.csv"])
    test_path: str | None = Field(None, examples=["test.csv"])
    split_column: str | int | None = Field(None, examples=["part"])
    # made-up sets
    examples: Annotated[int, Field(ge=4)] = Field(1000, examples=[1000])
    noise: NonNegative = Field(0.1, examples=[0.1])
    classes: Annotated[int, Field(ge=2)] = Field(4, examples=[4])
    features: Count = Field(10, examples=[10])
    tokens: Annotated[int, Field(ge=2)] = Field(24, examples=[24])
    # images
    class_folder: Literal["first", "last"] | None = Field(None, examples=["last"])
    image_size: Count | None = Field(None, examples=[32])
    color: Literal["rgb", "grey"] = Field("rgb", examples=["rgb"])
    in_memory: bool | Literal["auto"] = Field("auto", examples=["auto"])
    memory_limit_gb: Positive = Field(4.0, examples=[4])
    workers: Annotated[int, Field(ge=0)] | None = Field(None, examples=[2])


class Trainer(Part):
    """conf/trainer."""

    accelerator: Literal["cpu", "gpu", "auto"] = Field("cpu", examples=["cpu"])
    strategy: Strategy = Field("auto", examples=["ddp"])
    devices: Count = Field(1, examples=[1])
    precision: Precision = Field("32-true", examples=["bf16-mixed"])
    accumulate_grad_batches: Count = Field(1, examples=[1])
    check_val_every_n_epoch: Count = Field(1, examples=[1])
    log_every_n_steps: Count = Field(50, examples=[50])
    limit_train_batches: Limit = Field(1.0, examples=[1.0])
    limit_val_batches: Limit = Field(1.0, examples=[1.0])
    limit_test_batches: Limit = Field(1.0, examples=[1.0])
    deterministic: bool = Field(True, examples=["true"])
    detect_anomaly: bool = Field(False, examples=["true"])
    enable_progress_bar: bool = Field(True, examples=["false"])


class Profiler(Part):
    """conf/profiler."""

    rows: Count = Field(15, examples=[15])
    wait: Annotated[int, Field(ge=0)] = Field(1, examples=[1])
    warmup: Annotated[int, Field(ge=0)] = Field(1, examples=[1])
    active: Count = Field(3, examples=[3])
    record_shapes: bool = Field(True, examples=["true"])
    profile_memory: bool = Field(True, examples=["true"])
    with_stack: bool = Field(False, examples=["true"])


class Recipe(BaseModel):
    """The composed config: the dials with their ranges, and the groups."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: Annotated[str, Field(pattern=r"^[^/\\\n]*[^/\\\n.][^/\\\n]*$")] = Field(examples=["my_run"])
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(examples=[0])
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(examples=[2])
    epochs: Count = Field(examples=[30])
    batch_size: Count | Literal["full"] = Field(examples=[64])
    lr: Positive = Field(examples=[1e-3])
    find_lr: bool = Field(examples=["true"])
    weight_decay: NonNegative = Field(examples=[0.01])
    dropout: Fraction = Field(examples=[0.2])
    label_smoothing: Fraction = Field(examples=[0.1])
    stochastic_depth: Fraction = Field(examples=[0.1])
    fold: Fold | None = Field(examples=["0/5"])
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
    batch_growth: BatchGrowth | None
    data: Data
    trainer: Trainer

    parameter_groups: ParameterGroups
    activation: Part
    init: Init
    loss: Loss
    task: Part
    callbacks: dict[str, Callback]
    logger: dict[str, Part]
    profiler: Profiler | None


class Sweep(Part):
    """conf/sweep, and what stands beside it in train.yaml."""

    n_trials: Count | None = Field(None, examples=[20])
    n_jobs: Count = Field(1, examples=[2])
    timeout: Positive | None = Field(None, examples=[3600])
    trial_timeout: Positive | None = Field(None, examples=[600])
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(0, examples=[0])
    baseline: bool = Field(True, examples=["false"])
    storage: str | None = Field(None, examples=["sqlite:///study.db"])


class Pruner(Part):
    """conf/pruner."""

    n_startup_trials: Annotated[int, Field(ge=0)] = Field(5, examples=[5])
    n_warmup_steps: Annotated[int, Field(ge=0)] = Field(0, examples=[0])
    percentile: Annotated[float, Field(ge=0, le=100)] = Field(25.0, examples=[25.0])
    min_resource: Count = Field(1, examples=[1])
    max_resource: Count = Field(30, examples=[30])
    reduction_factor: Annotated[int, Field(ge=2)] = Field(4, examples=[4])
    min_early_stopping_rate: Annotated[int, Field(ge=0)] = Field(0, examples=[0])
    patience: Annotated[int, Field(ge=0)] = Field(3, examples=[3])
    min_delta: NonNegative = Field(0.0, examples=[0.0])


class Search(Part):
    """What a -m reads."""

    sweep: Sweep
    pruner: Pruner
