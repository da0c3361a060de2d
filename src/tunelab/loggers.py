"""Where metrics are written: TensorBoard events and a csv in the run's folder, both fit for a resume."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import Trainer
from lightning.fabric.loggers.tensorboard import TensorBoardLogger as FabricTensorBoardLogger
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from tunelab.metrics_csv import Csv

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import FileWriter

Scalar = float | int | str | bool

LOGGING = "[tunelab]logging"
"""What profilers know the writing of metrics by."""

CHARTS = {
    "training and validation": {
        "loss": ["Multiline", ["train/loss", "val/loss"]],
        "scores": ["Multiline", ["val/(?!loss$).*"]],
    },
    "optimization": {
        "learning rate": ["Multiline", ["lr$", "lr/.*"]],
        "gradient norm, all layers": ["Multiline", ["gradients/norm$"]],
    },
    "layer by layer": {
        "gradient norm": ["Multiline", ["layers/gradient_norm/.*"]],
        "update ratio (healthy near 1e-3)": ["Multiline", ["layers/update_ratio/.*"]],
        "share of dead units": ["Multiline", ["layers/dead_share/.*"]],
    },
    "speed": {"samples per second": ["Multiline", ["throughput/samples_per_second$"]]},
}
"""What TensorBoard's Custom Scalars tab draws together: the metrics that match, of all runs."""


def is_written(trainer: Trainer, step: int) -> bool:
    """Whether the metrics of a step are written: every `log_every_n_steps` steps and at the end of each epoch.

    Args:
        trainer: Whose interval it is.
        step: The optimizer step, counted from 1.
    """
    return step % trainer.log_every_n_steps == 0 or trainer.is_last_batch  # type: ignore[attr-defined]


def write(trainer: Trainer, metrics: Mapping[str, float | Tensor], step: int, *, timed: bool = False) -> None:
    """Writes metrics to every logger, with the epoch beside them.

    Args:
        trainer: Whose loggers.
        metrics: Scalars by name.
        step: Optimizer steps done.
        timed: Whether they depend on the clock: they stay out of metrics.csv, which a repeat must equal bit for bit.
    """
    if not trainer.is_global_zero:
        return
    with trainer.profiler.profile(LOGGING):  # type: ignore[attr-defined]
        values = {name: float(value) for name, value in metrics.items()}
        for logger in trainer.loggers:
            if not (timed and isinstance(logger, Csv)):
                logger.log_metrics({**values, "epoch": trainer.current_epoch}, step)


class TensorBoard(TensorBoardLogger):
    """TensorBoard events, in `tensorboard/` of the run's folder.

    Not in the folder itself: opened alone, TensorBoard would call the run "." and find no metrics for its HParams row.

    The scalars of a step make one event: each costs 50 µs, whatever is in it.

    Args:
        save_dir: The run's folder.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="tensorboard", default_hp_metric=False)
        self._values: dict[str, float] = {}  # of a step, not yet an event
        self._step, self._time = 0, 0.0  # its number, and when its first value came
        self._kept: tuple[int, set[str]] = (-1, set())  # a resumed step, and what has been written of it

    def resume_from(self, step: int) -> None:
        """Hides what an earlier part of the run wrote after this step, which will be written again.

        What it wrote at the step stays, and is not written twice.
        """
        self._kept = step, _tags_at(step, Path(self.log_dir))
        self._kwargs["purge_step"] = step + 1
        # TensorBoard reads the files in the order of their names, which begin with the second
        while any(path.name.split(".")[3] == str(int(time.time())) for path in Path(self.log_dir).glob("events.*")):
            time.sleep(0.02)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = step or 0
        if self._values and step != self._step:
            self._write_event()
        if not self._values:
            self._step, self._time = step, time.time()
        kept = self._kept[1] if step == self._kept[0] else ()
        # the epoch belongs to a line of the csv; as a curve it would only be a diagonal beside the real ones
        self._values.update({name: value for name, value in metrics.items() if name != "epoch" and name not in kept})

    def log_histogram(self, name: str, values: Tensor, step: int) -> None:
        """Writes how values are spread; those that are not finite have no place in it.

        Args:
            name: Its tag.
            values: Any shape.
            step: Optimizer steps done.
        """
        finite = values.detach().float().flatten()
        finite = finite[finite.isfinite()]
        if finite.numel() and not (step == self._kept[0] and name in self._kept[1]):
            self.experiment.add_histogram(name, finite, step)

    def _write_event(self) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values, self._values = self._values, {}
        if values:
            scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            self._events.add_summary(Summary(value=scalars), self._step, self._time)

    @cached_property
    def _events(self) -> FileWriter:
        """The event file, with what the Custom Scalars tab draws at its beginning."""
        self.experiment.add_custom_scalars(CHARTS)
        writer: FileWriter = self.experiment._get_file_writer()
        return writer

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `log_knobs` writes them, with the objective beside them."""

    def log_knobs(self, knobs: Mapping[str, Scalar]) -> None:
        """Writes the run's row of the HParams tab; its metrics are the scalars of the same run.

        Without the summary that lists one experiment's columns: TensorBoard reads that of an arbitrary run and hides
        what only the others have, but without any it shows the columns of all runs.

        Args:
            knobs: Plain values by name.
        """
        from torch.utils.tensorboard.summary import hparams

        _, *session = hparams(dict(knobs), {})
        if self._kept[0] < 0:
            for summary in session:
                self._events.add_summary(summary)
        else:
            _write_before_the_others(Path(self.log_dir), session)

    def save(self) -> None:
        self._write_event()
        FabricTensorBoardLogger.save(self)  # without an hparams.yaml

    def finalize(self, status: str) -> None:
        self._write_event()
        self.experiment.flush()  # open still: the test score comes after the fit, into the same file

    def close(self) -> None:
        """Ends the file."""
        self._write_event()
        self.experiment.close()


def _write_before_the_others(folder: Path, summaries: list[Any]) -> None:
    """Writes an event file that is read before the others: of a row that is there twice TensorBoard takes the first."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "events.out.tfevents.0.resumed").open("wb") as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for summary in summaries:
            records.write(Event(wall_time=time.time(), summary=summary).SerializeToString())


def _tags_at(step: int, folder: Path) -> set[str]:
    """The tags that the event files of a folder have at a step and do not hide."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    tags: set[str] = set()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            if event.HasField("session_log") and event.step <= step:
                tags.clear()  # an earlier resume wrote it again
            elif event.step == step:
                tags.update(value.tag for value in event.summary.value)
    return tags
