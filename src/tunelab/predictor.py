"""Using a trained model: without its training data, without executing code from its files."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning import Callback, Trainer
from numpy.typing import ArrayLike, NDArray
from omegaconf import DictConfig

from tunelab.callbacks.members import Watch
from tunelab.checkpoints import read_checkpoint
from tunelab.config import validate_targets
from tunelab.data.columns import encode
from tunelab.data.files import read_file
from tunelab.data.folders import ENDINGS
from tunelab.data.images import read_images
from tunelab.data.memory import SplitData
from tunelab.data.scales import too_far
from tunelab.data.values import first_of, on_one_line
from tunelab.errors import ConfigError
from tunelab.fitting import build
from tunelab.folder import RunFolder
from tunelab.hashing import Passing
from tunelab.prepare import prepare_process
from tunelab.run import has_examples
from tunelab.same_data import WORDS, settle
from tunelab.spec import DataSpec
from tunelab.tasks.parts import check_weights
from tunelab.tasks.supervised import SupervisedTask

log = logging.getLogger("tunelab")

ROWS_AT_ONCE = 1024

Rows = ArrayLike | pd.DataFrame | pd.Series | Mapping[str, Any] | list[Mapping[str, Any]]


@dataclass(frozen=True)
class Predictor:
    """A trained task in evaluation mode, with what its data said of itself.

    Args:
        task: The LightningModule; `task.model` is the nn.Module.
        spec: Shapes, names and preprocessing statistics.
    """

    task: SupervisedTask
    spec: DataSpec

    def predict(self, rows: Rows) -> pd.DataFrame:
        """Predictions for raw rows: preprocessing is done here.

        Args:
            rows: A DataFrame with the columns that the model was trained on, in any order and with others beside them;
                one row of it; a dict with the value of each column, or a list of such; or rows without names, shape
                (examples, columns) or (examples, *input_shape).

        Returns:
            A row for each example: `prediction`, and for classes `p(<class>)`, their probabilities.

        Raises:
            ConfigError: If columns are missing, or hold what they did not in training.
        """
        inputs = torch.from_numpy(self._inputs(rows))
        columns: dict[str, list[Any]] = {}
        with torch.inference_mode():
            for batch in inputs.split(ROWS_AT_ONCE):
                for name, values in self.task.predictions(self.task(batch)).items():
                    columns.setdefault(name, []).extend(values)
        return pd.DataFrame(columns)

    def takes_images(self, path: Path) -> bool:
        """Whether a path is for `predict_images`: an image or a folder, and the model was trained on images."""
        return self.spec.kind == "image" and (path.is_dir() or path.suffix.lower() in ENDINGS)

    def predict_images(self, path: str) -> pd.DataFrame:
        """Predictions for image files, for a model that was trained on images: what `predict` returns, after `file`.

        Args:
            path: A folder of images, or one image.

        Raises:
            ConfigError: If there is none, or some cannot be read.
        """
        found = [self.predict(values).assign(file=names) for names, values in read_images(path, self.spec)]
        predictions = pd.concat(found, ignore_index=True)
        return predictions[["file", *predictions.columns.drop("file")]]

    def _inputs(self, rows: Rows) -> NDArray[np.float32]:
        frame = _named_rows(rows)
        if frame is not None:
            return encode(frame.reset_index(drop=True), self.spec)
        if isinstance(rows, (str, bytes, Path)) or np.ndim(rows) == 0:  # type: ignore[arg-type]
            raise ConfigError(
                f"`input` must be rows, got {on_one_line(rows)}. Give a DataFrame, a dict of column and value, or a "
                "list of rows; for a file, predict(read_rows(<file>)) with read_rows from tunelab.predictor."
            )
        if self.spec.columns:
            return encode(self._named(rows), self.spec)
        values = self._values(rows)
        with np.errstate(over="ignore"):
            inputs = self.spec.normalize(values)
        if len(far := too_far(inputs)):
            raise ConfigError(
                f"`input` must have numbers of the size that they have in training, but {len(far)} "
                f"{'row has' if len(far) == 1 else 'rows have'} others: {first_of(far + 1)}. Mend them."
            )
        return inputs

    def _named(self, rows: Any) -> pd.DataFrame:
        names = list(self.spec.raw_names)
        try:
            return pd.DataFrame(rows, columns=names)
        except ValueError as error:
            raise ConfigError(
                f"`input` must have {len(names)} values in each row, in this order: {first_of(names)}; but {error}. "
                "Or give a DataFrame with names."
            ) from None

    def _values(self, rows: Any) -> NDArray[np.float64]:
        try:
            values = np.asarray(rows, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"`input` must have numbers in rows of equal length, but {error}.") from None
        if len(values) == 0:
            raise ConfigError("`input` must have at least one row, got none.")
        size = math.prod(self.spec.input_shape)
        if values.ndim < 2 or values[0].size != size:
            raise ConfigError(f"`input` must have {size} values in each row, got shape {values.shape}.")
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        if len(bad):
            raise ConfigError(f"`input` must have finite numbers, but {len(bad)} rows have not: {first_of(bad + 1)}.")
        return values


def _named_rows(rows: Any) -> pd.DataFrame | None:
    """Rows with names for their values as a frame; None where they have none."""
    if isinstance(rows, pd.DataFrame):
        return rows
    if isinstance(rows, pd.Series):
        return None if isinstance(rows.index, pd.RangeIndex) else rows.to_frame().T
    several = [rows] if isinstance(rows, Mapping) else rows
    if isinstance(several, (list, tuple)) and several and all(isinstance(row, (Mapping, pd.Series)) for row in several):
        return pd.DataFrame(list(several))
    return None


def read_rows(
    path: str, *, separator: str | None = None, encoding: str = "utf-8", spec: DataSpec | None = None
) -> pd.DataFrame:
    """Raw rows of a csv or, by its ending, a parquet file, as `Predictor.predict` takes them.

    Args:
        path: The file.
        separator: Between the values of a csv; by default what its header has most of.
        encoding: Of a csv.
        spec: No longer needed: `Predictor.predict` reads the values as those of the training file were.

    Raises:
        ConfigError: If it cannot be read.
    """
    return read_file(path, "input", separator=separator, encoding=encoding)


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
    path = run.checkpoint(checkpoint)
    content = read_checkpoint(path, "checkpoint")
    if "data_spec" not in content:
        raise ConfigError(
            f"`run` must have a task that is or builds on one of tunelab.tasks, got {folder} with {cfg.task._target_}, "
            "whose checkpoints do not say what its data is like. Load them in Python, with its load_from_checkpoint."
        )
    task: SupervisedTask = build(cfg.task)
    task.spec = DataSpec.from_json(content["data_spec"])
    task.configure_model()
    check_weights(content["state_dict"], task.state_dict(), path)
    task.load_state_dict(content["state_dict"])
    return Predictor(task.eval(), task.spec)


def evaluate(
    folder: str | Path,
    checkpoint: str = "best",
    part: str = "test",
    *,
    changed: str = "refuse",
    paths: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Scores a run's checkpoint on a part of its data, as the run itself did. Each look is noted in the run's folder.

    Args:
        folder: The run's folder.
        checkpoint: `best` or `last`.
        part: `test` or `val`.
        changed: What to do if the data is not what the run had: `refuse`; score the examples that are `unseen`, that
            neither trained the model nor chose its checkpoint; or `ignore` it, and score the part as it is dealt now.
        paths: Where the data is now, by `path`, `val_path` or `test_path`, if it was moved.

    Returns:
        Each metric by name, such as test/accuracy.

    Raises:
        ConfigError: If the folder is not a run's, its checkpoint is damaged, or its data has no such part or has
            changed.
    """
    run = RunFolder.find(folder, "run")
    cfg = run.config
    if changed not in WORDS:
        raise ConfigError(f"`changed` must be {' or '.join(WORDS)}, got {changed}. Try changed=unseen.")
    _move(cfg, paths or {})
    prepare_process(cfg)
    task = load(folder, checkpoint).task
    data = build(cfg.data)
    if isinstance(data, SplitData):
        data.known = task.spec  # examples are encoded as in training, whatever they are now
    data.prepare_data()
    data.setup("test")
    passing = None if hasattr(data, "members") else Passing()
    if passing is None:
        _tell(settle(run, cfg, data, part, changed))
    if not has_examples(data, part):
        raise ConfigError(f"`part` must have examples, got {part}, of which this run's data has none.")
    trainer = _trainer(cfg, [] if passing is None else [Watch(passing)])
    (trainer.test if part == "test" else trainer.validate)(task, datamodule=data, verbose=False)
    if passing is not None:
        found = passing.members()
        _tell(settle(run, cfg, data, part, changed, {} if found is None else {part: found}))
    scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
    look = {"time": datetime.now().astimezone().isoformat(timespec="seconds"), "checkpoint": checkpoint, **scores}
    if changed != "refuse":
        look["changed"] = changed
    with (run.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(look) + "\n")
    return scores


def _trainer(cfg: DictConfig, callbacks: list[Callback]) -> Trainer:
    """One that only scores, on one device: each example once, whoever trained."""
    if not torch.cuda.is_available():
        cfg.trainer.accelerator = "cpu"
    cfg.trainer.devices, cfg.trainer.strategy = 1, "auto"
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer: Trainer = build(cfg.trainer, callbacks=callbacks, **dict.fromkeys(silent, False))
    return trainer


def _move(cfg: DictConfig, paths: Mapping[str, str]) -> None:
    """Has a recipe read its data from where it is now."""
    for key, path in paths.items():
        if cfg.data.get(key) is None:
            named = [f"data.{name}" for name in ("path", "val_path", "test_path") if cfg.data.get(name)]
            raise ConfigError(
                f"`data.{key}` must be of this run's data, which has {', '.join(named) or 'no path'}. Leave it out."
            )
        cfg.data[key] = str(Path(path).expanduser().absolute())


def _tell(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        log.warning("%s", sentence)
