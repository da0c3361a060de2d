"""Rules between the keys of a recipe; each assumes that types and ranges hold. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TASK_LOSSES = {
    "tunelab.tasks.Classification": {"tunelab.losses.CrossEntropy": "cross_entropy"},
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
    for rule in (_objective, _schedule, _losses, _fractions, _patience, _precision, _kernel, _one_folder):
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


def _precision(values: dict[str, Any]) -> Iterator[str]:
    if str(values["trainer"].get("precision")).startswith("16") and values["optimizer"].get("fused"):
        yield (
            f"`trainer.precision` must not be {values['trainer']['precision']} with a fused optimizer, which unscales "
            "the gradients only after they are clipped. Try optimizer.fused=false or trainer.precision=bf16-mixed."
        )


def _kernel(values: dict[str, Any]) -> Iterator[str]:
    if values["model"].get("kernel_size", 1) % 2 == 0:
        size = values["model"]["kernel_size"]
        yield f"`model.kernel_size` must be odd, got {size}. Try model.kernel_size={size + 1}."


def _one_folder(values: dict[str, Any]) -> Iterator[str]:
    if values["repeat"] and values["resume"]:
        yield "`repeat` and `resume` must not be given together. Leave one of them out."


def _patience(values: dict[str, Any]) -> Iterator[str]:
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
