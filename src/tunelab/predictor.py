"""Using a trained model: without its training data, without executing code from its files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from tunelab.checkpoints import read_checkpoint
from tunelab.config import validate_targets
from tunelab.errors import ConfigError, did_you_mean
from tunelab.folder import RunFolder
from tunelab.run import build, has_examples, prepare_process
from tunelab.spec import DataSpec
from tunelab.tasks.supervised import SupervisedTask, check_weights

ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Predictor:
    """A trained task in evaluation mode, with what its data said of itself.

    Args:
        task: The LightningModule; `task.model` is the nn.Module.
        spec: Shapes, names and preprocessing statistics.
    """

    task: SupervisedTask
    spec: DataSpec

    def predict(self, rows: ArrayLike | pd.DataFrame) -> pd.DataFrame:
        """Predictions for raw rows: preprocessing is done here.

        Args:
            rows: A DataFrame with the feature names as columns, in any order and with others beside them, or an array
                of shape (examples, features) or (examples, *input_shape).

        Returns:
            A row for each example: `prediction`, and for classes `p(<class>)`, their probabilities.

        Raises:
            ConfigError: If columns are missing, or values are not finite numbers.
        """
        inputs = torch.from_numpy(self.spec.normalize(self._values(rows)))
        columns: dict[str, list[Any]] = {}
        with torch.inference_mode():
            for batch in inputs.split(ROWS_AT_ONCE):
                for name, values in self.task.predictions(self.task(batch)).items():
                    columns.setdefault(name, []).extend(values)
        return pd.DataFrame(columns)

    def _values(self, rows: ArrayLike | pd.DataFrame) -> np.ndarray[Any, Any]:
        names = self.spec.feature_names
        if isinstance(rows, pd.DataFrame):
            missing = [name for name in names if name not in rows.columns]
            if missing:
                hint = did_you_mean(missing[0], [str(c) for c in rows.columns])
                raise ConfigError(
                    f"`input` must have the {len(names)} columns that the model was trained on, but {len(missing)} are "
                    f"missing: {_first(missing)}.{hint} It needs {_first(names)}."
                )
            rows = rows[list(names)]
            if rows.empty:
                raise ConfigError("`input` must have at least one row below its header, got none.")
            wrong = [str(c) for c in rows.columns if not pd.api.types.is_numeric_dtype(rows[c])]
            if wrong:
                raise ConfigError(f"`input` must have numbers in its columns, got text in {_first(wrong)}.")
        try:
            values = np.asarray(rows, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"`input` must have numbers in rows of equal length, but {error}.") from None
        if len(values) == 0:
            raise ConfigError("`input` must have at least one row, got none.")
        if values.ndim < 2 or values[0].size != len(names):
            raise ConfigError(f"`input` must have {len(names)} values in each row, got shape {values.shape}.")
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        if len(bad):
            raise ConfigError(f"`input` must have finite numbers, but {len(bad)} rows have not: {_first(bad + 1)}.")
        return values


def _first(names: Iterable[Any]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:3]) + (f", … ({len(shown)})" if len(shown) > 3 else "")


def load(folder: str | Path, checkpoint: str = "best") -> Predictor:
    """A run's model, ready to use.

    Args:
        folder: The run's folder.
        checkpoint: `best` or `last`.

    Raises:
        ConfigError: If the folder is not a run's, or its checkpoint is damaged or of another model.
    """
    run = RunFolder.find(folder, "run")
    cfg = run.config
    validate_targets(cfg)
    content = read_checkpoint(run.checkpoint(checkpoint), "checkpoint")
    task: SupervisedTask = build(cfg.task)
    task.spec = DataSpec.from_json(content["data_spec"])
    task.configure_model()
    check_weights(content["state_dict"], task.state_dict())
    task.load_state_dict(content["state_dict"])
    return Predictor(task.eval(), task.spec)


def evaluate(folder: str | Path, checkpoint: str = "best", part: str = "test") -> dict[str, float]:
    """Scores a run's checkpoint on a part of its data, as the run itself did. Each look is noted in the run's folder.

    Args:
        folder: The run's folder.
        checkpoint: `best` or `last`.
        part: `test` or `val`.

    Returns:
        Each metric by name, such as test/accuracy.

    Raises:
        ConfigError: If the folder is not a run's, its checkpoint is damaged, or its data has no such part.
    """
    run = RunFolder.find(folder, "run")
    cfg = run.config
    prepare_process(cfg)
    task = load(folder, checkpoint).task
    data = build(cfg.data)
    data.setup("test")
    if not has_examples(data, part):
        raise ConfigError(f"`part` must have examples, got {part}, of which this run's data has none.")
    if not torch.cuda.is_available():
        cfg.trainer.accelerator = "cpu"
    trainer = build(
        cfg.trainer,
        **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False},
    )
    (trainer.test if part == "test" else trainer.validate)(task, datamodule=data, verbose=False)
    scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
    look = {"time": datetime.now().astimezone().isoformat(timespec="seconds"), "checkpoint": checkpoint, **scores}
    with (run.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(look) + "\n")
    return scores
