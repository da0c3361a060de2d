"""Rules of how long a run is, and of what waits for its validations. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def run_length(values: dict[str, Any]) -> Iterator[str]:
    """A sentence for each key that would make a run shorter or longer than it is announced, or leave it unvalidated."""
    trainer, epochs = values["trainer"], values["epochs"]
    if trainer.get("max_epochs") is None:
        yield "`trainer.max_epochs` must be given, or Lightning trains 1,000. Write max_epochs: ${epochs} in its file."
    for name, instead in (("fast_dev_run", "one_batch"), ("overfit_batches", "overfit")):
        if trainer.get(name):
            yield (
                f"`trainer.{name}` must be left out, as it changes what is trained after all else is said, got "
                f"{trainer[name]}. Try debug={instead}."
            )
    if (steps := trainer.get("max_steps")) is not None and (not isinstance(steps, int) or steps == 0 or steps < -1):
        yield f"`trainer.max_steps` must be a whole number of 1 or more, got {steps}. Leave it out for none."
    if trainer.get("limit_train_batches") == 0:
        yield "`trainer.limit_train_batches` must be greater than 0, got 0. Try trainer.limit_train_batches=1.0."
    if (least := trainer.get("min_epochs")) and least > epochs > 1:
        yield f"`trainer.min_epochs` must be at most epochs, got {least} with epochs={epochs}. Try epochs={least}."
    seldom = trainer.get("check_val_every_n_epoch") or 1
    if seldom > epochs > 1 and trainer.get("limit_val_batches") != 0 and values["data"].get("val_fraction") != 0:
        yield (
            f"`trainer.check_val_every_n_epoch` must be at most epochs, or there is no validation, got {seldom} with "
            f"epochs={epochs}. Try trainer.check_val_every_n_epoch=1, or trainer.limit_val_batches=0 for none."
        )


def patience(values: dict[str, Any]) -> Iterator[str]:
    """A sentence for each part that watches validations of which there are none, or too few for its patience."""
    members = {f"regularization.{name}": member for name, member in values["regularization"].items()}
    trainer = values["trainer"]
    data = values["data"]
    given = values["fold"] or data.get("val_path") or data.get("split_column") is not None
    validated = trainer.get("limit_val_batches") != 0 and (given or data.get("val_fraction") != 0)
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
