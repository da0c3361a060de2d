"""Rules between the keys of a recipe; each assumes that types and ranges hold. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from tunelab.rules_of_length import patience, run_length

TASK_LOSSES = {
    "tunelab.tasks.Classification": {
        "tunelab.losses.CrossEntropy": "cross_entropy",
        "tunelab.losses.Focal": "focal",
        "tunelab.losses.Hinge": "hinge",
    },
    "tunelab.tasks.Regression": {
        "torch.nn.MSELoss": "mse",
        "torch.nn.L1Loss": "mae",
        "torch.nn.HuberLoss": "huber",
    },
}
"""The losses known to fit each of our tasks; a loss of the user's own is not judged."""


def logged_metrics(values: dict[str, Any]) -> list[str]:
    """The names of the validation metrics that a run of this recipe will log."""
    return ["val/loss", *(f"val/{metric}" for metric in values["task"].get("metrics", {}))]


def contradictions(values: dict[str, Any]) -> Iterator[str]:
    """A sentence for each rule that the recipe breaks."""
    for rule in (
        _objective,
        _schedule,
        _schedule_free,
        _several_gradients,
        _groups,
        _losses,
        _fractions,
        _table,
        _path,
        run_length,
        patience,
        _clipping,
        _precision,
        _devices,
        _growth,
        _sharded,
        _mixing,
        _kernel,
        _heads,
        _pretrained,
        _one_folder,
    ):
        yield from rule(values)


def _objective(values: dict[str, Any]) -> Iterator[str]:
    metrics = logged_metrics(values)
    if "metrics" in values["task"] and values["objective"] not in metrics:
        yield (
            f"`objective` must be a metric that this run logs, got {values['objective']}. "
            f"Try objective={' or '.join(metrics)}."
        )


def _losses(values: dict[str, Any]) -> Iterator[str]:
    task, loss = values["task"].get("_target_"), values["loss"].get("_target_")
    judged = {target: name for losses in TASK_LOSSES.values() for target, name in losses.items()}
    if task in TASK_LOSSES and loss in judged and loss not in TASK_LOSSES[task]:
        fitting = " or ".join(f"loss={name}" for name in TASK_LOSSES[task].values())
        yield f"`loss` must fit the task, got loss={judged[loss]} with {task.split('.')[-1].lower()}. Try {fitting}."


def _fractions(values: dict[str, Any]) -> Iterator[str]:
    data = values["data"]
    if data.get("val_fraction", 0) + data.get("test_fraction", 0) >= 1:
        yield (
            "`data.val_fraction` + `data.test_fraction` must be less than 1, "
            f"got {data['val_fraction']} + {data['test_fraction']}. Try data.val_fraction=0.1 data.test_fraction=0.1."
        )


def _table(values: dict[str, Any]) -> Iterator[str]:
    data = values["data"]
    if "target" not in data:
        return
    if ungiven := [key for key in ("path", "target") if data.get(key) in (None, "")]:
        what = {"path": "<file>", "target": "<column>"}
        yield from (f"`data.{key}` must be given. Write data.{key}={what[key]}." for key in ungiven)
        return
    files = [f"data.{key}" for key in ("val_path", "test_path") if data.get(key)]
    if data.get("split_column") is not None and files:
        yield f"`data.split_column` must not be given with {' and '.join(files)}. Leave one of them out."
    if values["fold"] and data.get("val_path"):
        yield f"`fold` must not be given with data.val_path, got {values['fold']}. Leave one of them out."
    if repeated := [key for key in files if data[key.removeprefix("data.")] == data["path"]]:
        yield f"`{repeated[0]}` must be another file than data.path, got {data['path']} for both. Leave it out."
    uses = {f"data.{key}": [str(name) for name in data.get(key) or []] for key in ("drop", "categorical")}
    uses |= {f"data.{key}": [str(data[key])] for key in ("target", "split_column") if data.get(key) is not None}
    for first, second in combinations(uses, 2):
        for name in set(uses[first]) & set(uses[second]):
            yield f"`{first}` must not have a column of {second}, got {name} in both. Take it out of one of them."


def _path(values: dict[str, Any]) -> Iterator[str]:
    data = values["data"]
    if "path" in data and "target" not in data and not data["path"]:
        yield "`data.path` must be given. Write data.path=<folder>."


def _clipping(values: dict[str, Any]) -> Iterator[str]:
    """Lightning's own keys, which do nothing where the task clips."""
    trainer = values["trainer"]
    size, how = trainer.get("gradient_clip_val"), trainer.get("gradient_clip_algorithm")
    option, key = ("value", "clip_value") if how == "value" else ("norm", "max_norm")
    limit = f" clipping.{key}={size}" if size else ""
    for name, given in (("gradient_clip_val", size), ("gradient_clip_algorithm", how)):
        if given is not None and "clipping" in values["task"]:
            yield (
                f"`trainer.{name}` must be left out, as `clipping` has its place, got {given}. "
                f"Try clipping={option}{limit}."
            )


def _precision(values: dict[str, Any]) -> Iterator[str]:
    if values["trainer"].get("precision") == "16-mixed" and values["optimizer"].get("fused"):
        yield (
            "`trainer.precision` must not be 16-mixed with a fused optimizer, which unscales the gradients only after "
            "they are clipped. Try optimizer.fused=false or trainer.precision=bf16-mixed."
        )


def _devices(values: dict[str, Any]) -> Iterator[str]:
    trainer, batch_size = values["trainer"], values["batch_size"]
    devices = trainer.get("devices", 1)
    if devices > 1 and "strategy" not in trainer:
        yield f"`trainer.devices` must be 1 without a way to share a step, got {devices}. Try trainer=ddp."
    elif isinstance(batch_size, int) and batch_size % devices:
        yield (
            f"`batch_size` must be divisible by the {devices} devices that share it, got {batch_size}. "
            f"Try batch_size={max(1, batch_size // devices) * devices}."
        )
    if devices > 1 and values["optimizer"].get("_target_") == "torch.optim.LBFGS":
        yield (
            "`optimizer` must take as many gradients a step on every device, got lbfgs, which decides by what it "
            "meets. Try optimizer=adamw or trainer=cpu."
        )


def _growth(values: dict[str, Any]) -> Iterator[str]:
    growth, size, epochs = values["batch_growth"] or {}, values["batch_size"], values["epochs"]
    if size == "full" and growth:
        yield "`batch_growth` must be none with batch_size=full, which has no more to grow to. Try batch_size=64."
    if not growth or not isinstance(size, int):  # full, or read by nothing
        return
    together, optimizer = values["trainer"].get("accumulate_grad_batches", 1), values["optimizer"].get("_target_", "")
    if growth.get("by") == "accumulation" and (together > 1 or optimizer in SEVERAL_GRADIENTS):
        name = SEVERAL_GRADIENTS.get(optimizer)
        why = f"optimizer={name}, which asks for the gradient of a batch several times a step"
        other = why if name else f"trainer.accumulate_grad_batches={together}"
        yield f"`batch_growth.by` must not be accumulation with {other}. Try batch_growth.by=batch_size."
    if (growth.get("maximum") or size) != size and growth["maximum"] < size:
        yield (
            f"`batch_growth.maximum` must be at least batch_size, got {growth['maximum']} with batch_size={size}. "
            f"Try batch_growth.maximum={4 * size}."
        )
    if growth.get("every_epochs", 0) >= epochs > 1:
        yield (
            f"`batch_growth.every_epochs` must be less than epochs, got {growth['every_epochs']} with epochs={epochs}. "
            f"Try batch_growth.every_epochs={max(1, epochs // 4)}."
        )
    if "batch_sizes" in growth and "after_epochs" in growth:
        yield from _grown_sizes(growth, size, epochs, values["trainer"].get("devices", 1))


def _grown_sizes(growth: dict[str, Any], start: int, epochs: int, devices: int) -> Iterator[str]:
    after, sizes = growth["after_epochs"], growth["batch_sizes"]
    if len(after) != len(sizes):
        yield f"`batch_growth.batch_sizes` must be one for each of after_epochs, got {sizes} and {after}. Try as many."
    if sorted(set(after)) != after or after[-1] >= epochs > 1:
        thirds = sorted({max(1, epochs // 3), max(1, 2 * epochs // 3)})
        yield (
            f"`batch_growth.after_epochs` must ascend and be less than epochs, got {after} with epochs={epochs}. "
            f"Try {_list('after_epochs', thirds)}."
        )
    if sorted({start, *sizes}) != [start, *sizes]:
        doubled = [start * 2 ** (i + 1) for i in range(len(sizes))]
        yield (
            f"`batch_growth.batch_sizes` must ascend from batch_size, got {sizes} with batch_size={start}. "
            f"Try {_list('batch_sizes', doubled)}."
        )
        return
    slow = growth.get("by") == "accumulation"
    whole, what = (start, f"batch_size={start}") if slow else (devices, f"the {devices} devices that share them")
    if wrong := [size for size in sizes if size % whole]:
        rounded = [-(-size // whole) * whole for size in sizes]
        yield (
            f"`batch_growth.batch_sizes` must be divisible by {what}, got {wrong[0]}. "
            f"Try {_list('batch_sizes', rounded)}."
        )


def _list(key: str, numbers: list[int]) -> str:
    return f"'batch_growth.{key}=[{','.join(map(str, numbers))}]'"


WHOLE_MATRICES = ("sam.SAM", "muon.Muon", "Lamb", "Adafactor")
"""The optimizers that take norms over whole weights, of which a process of fsdp has only a part."""


def _sharded(values: dict[str, Any]) -> Iterator[str]:
    if "fsdp" not in str(values["trainer"].get("strategy")):
        return
    whole = {f"regularization.{name}": "" for name in ("ema", "swa") if name in values["regularization"]}
    norms = ("gradients", "updates", "histograms")
    whole |= {f"callbacks.{name}": "" for name in norms if name in values["callbacks"]}
    whole |= {"clipping": " Try clipping=none."} if values["clipping"] else {}
    if str(values["optimizer"].get("_target_")).endswith(WHOLE_MATRICES):
        whole["optimizer"] = " Try optimizer=adamw."
    for key, remedy in whole.items():
        yield (
            f"`{key}` must be left out or changed with trainer=fsdp, where each process has a part of the weights: "
            f"it needs the whole.{remedy or ' Leave it out, or try trainer=ddp.'}"
        )


def _mixing(values: dict[str, Any]) -> Iterator[str]:
    if values["task"].get("_target_") == "tunelab.tasks.Regression":
        for name in ("mixup", "cutmix"):
            if name in values["regularization"]:
                yield (
                    f"`regularization` must fit the task, got {name} with regression: it blends classes. Leave it out."
                )


def _kernel(values: dict[str, Any]) -> Iterator[str]:
    if (size := values["model"].get("kernel_size", 1)) % 2 == 0:
        yield f"`model.kernel_size` must be odd, got {size}. Try model.kernel_size={size + 1}."


def _heads(values: dict[str, Any]) -> Iterator[str]:
    model = values["model"]
    width, heads = model.get("width"), model.get("heads")
    if str(model.get("_target_")).startswith("tunelab.models.") and heads and width % heads:
        divisors = [number for number in range(1, width + 1) if width % number == 0]
        nearest = min(divisors, key=lambda number: (abs(number - heads), -number))
        yield (
            f"`size.width` must be divisible by `model.heads`, got width={width}, heads={heads}. "
            f"Try size.width={-(-width // heads) * heads} or model.heads={nearest}."
        )


def _pretrained(values: dict[str, Any]) -> Iterator[str]:
    if values["init"].get("path", "") is None:
        yield "`init.path` must be given with init=pretrained. Try init.path=outputs/<name>/<time>."


def _one_folder(values: dict[str, Any]) -> Iterator[str]:
    if values["repeat"] and values["resume"]:
        yield "`repeat` and `resume` must not be given together. Leave one of them out."


def _schedule(values: dict[str, Any]) -> Iterator[str]:
    metrics = logged_metrics(values) if "metrics" in values["task"] else None
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


def _schedule_free(values: dict[str, Any]) -> Iterator[str]:
    target = values["scheduler"].get("_target_")
    if "ScheduleFree" in str(values["optimizer"].get("_target_")) and target != "tunelab.schedules.constant":
        yield (
            "`scheduler` must be constant with a schedule-free optimizer, whose average takes the place of a falling "
            f"lr, got {str(target).split('.')[-1]}. Try scheduler=constant warmup_fraction=0.05."
        )


SEVERAL_GRADIENTS = {"tunelab.optimizers.sam.SAM": "sam", "torch.optim.LBFGS": "lbfgs"}
"""The optimizers that ask for the loss of a batch several times a step."""


def _several_gradients(values: dict[str, Any]) -> Iterator[str]:
    name, trainer = SEVERAL_GRADIENTS.get(values["optimizer"].get("_target_", "")), values["trainer"]
    if name and trainer.get("accumulate_grad_batches", 1) > 1:
        yield (
            f"`trainer.accumulate_grad_batches` must be 1 with optimizer={name}, which asks for the gradient of a "
            f"batch several times a step, got {trainer['accumulate_grad_batches']}. Try a larger batch_size."
        )
    if name and str(trainer.get("precision")).startswith("16"):
        yield (
            f"`trainer.precision` must not be {trainer['precision']} with optimizer={name}: the loss is scaled once "
            "a step, and it asks for several gradients. Try trainer.precision=bf16-mixed."
        )


def _groups(values: dict[str, Any]) -> Iterator[str]:
    groups, optimizer = values["parameter_groups"], str(values["optimizer"].get("_target_"))
    for rule in groups.get("rules", []):
        if set(rule) - {"match", "type", "lr", "weight_decay"} or len({"match", "type"} & set(rule)) in (0, len(rule)):
            yield (
                "`parameter_groups.rules` must each have match or type, and lr or weight_decay, got "
                f"{', '.join(f'{key}: {value}' for key, value in rule.items()) or 'nothing'}. "
                "Try 'parameter_groups.rules=[{match:head.*,lr:0.1}]'."
            )
    if optimizer == "torch.optim.LBFGS" and (groups.get("rules") or groups.get("layer_decay", 1) != 1):
        yield (
            "`parameter_groups` must leave all parameters together with optimizer=lbfgs, got rules or a layer_decay. "
            "Try parameter_groups.rules=[] parameter_groups.layer_decay=1.0."
        )
    if optimizer == "tunelab.optimizers.muon.Muon" and groups and not groups.get("matrices_apart"):
        yield (
            "`parameter_groups.matrices_apart` must be true with optimizer=muon, got false. "
            "Try parameter_groups.matrices_apart=true."
        )
