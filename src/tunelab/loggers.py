"""Where metrics are written: TensorBoard events and a csv in the run's folder, both fit for a resume, and services."""

from __future__ import annotations

import csv
import importlib.util
import io
import logging
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning import Trainer
from lightning.fabric.loggers.tensorboard import TensorBoardLogger as FabricTensorBoardLogger
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor

from tunelab.errors import ConfigError
from tunelab.folder import write_atomic

Scalar = float | int | str | bool


def is_written(trainer: Trainer, step: int) -> bool:
    """Whether the metrics of a step are written: every `log_every_n_steps` steps and at the end of each epoch.

    Args:
        trainer: Whose interval it is.
        step: The optimizer step, counted from 1.
    """
    return step % trainer.log_every_n_steps == 0 or trainer.is_last_batch  # type: ignore[attr-defined]


def write(trainer: Trainer, metrics: Mapping[str, float | Tensor], step: int) -> None:
    """Writes metrics to every logger, with the epoch beside them.

    Args:
        trainer: Whose loggers.
        metrics: Scalars by name.
        step: Optimizer steps done.
    """
    if not trainer.is_global_zero:
        return
    values = {name: float(value) for name, value in metrics.items()}
    for logger in trainer.loggers:
        logger.log_metrics({**values, "epoch": trainer.current_epoch}, step)


class TensorBoard(TensorBoardLogger):
    """TensorBoard events, in `tensorboard/` of the run's folder.

    Not in the folder itself: opened alone, TensorBoard would call the run "." and find no metrics for its HParams row.

    Args:
        save_dir: The run's folder.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="tensorboard", default_hp_metric=False)

    def resume_from(self, step: int) -> None:
        """Hides what an earlier part of the run wrote after this step, which will be written again."""
        self._kwargs["purge_step"] = step + 1

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # the epoch belongs to a line of the csv; as a curve it would only be a diagonal beside the real ones
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

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

        _, session_start, session_end = hparams(dict(knobs), {})
        for summary in (session_start, session_end):
            self.experiment._get_file_writer().add_summary(summary)

    def save(self) -> None:
        FabricTensorBoardLogger.save(self)  # without an hparams.yaml

    def finalize(self, status: str) -> None:
        self.experiment.flush()  # open still: the test score comes after the fit, into the same file

    def close(self) -> None:
        """Ends the file."""
        self.experiment.close()


class Csv(Logger):
    """metrics.csv: a line per step at which something was written, a column per metric.

    Args:
        save_dir: The run's folder.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._columns = ["step", "epoch"]
        self._row: dict[str, Any] = {}
        self._saved: dict[str, Any] = {}  # the last line of the file, if this logger wrote it

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        if self._row and self._row["step"] != step:
            self.save()
        self._row["step"] = step
        for key, value in metrics.items():
            self._row[key] = int(value) if key == "epoch" else float(value)

    def save(self) -> None:
        if not self._row:
            return
        row, self._row = self._row, {}
        new = [key for key in row if key not in self._columns]
        self._columns += new
        # a save in the middle of a step, as before a checkpoint, must not end its line
        joined = self._saved if self._saved.get("step") == row["step"] else {}
        self._saved = {**joined, **row} | {key: joined[key] for key in ("epoch",) if key in joined}
        if new or joined or not self.path.exists():
            rows = self._rows()
            self._rewrite([*(rows[:-1] if joined else rows), self._saved])
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    def finalize(self, status: str) -> None:
        self.save()

    def resume_from(self, step: int) -> None:
        """Drops the lines of an earlier part of the run after this step, which will be written again."""
        rows = self._rows()
        if rows:
            self._columns = list(rows[0])
            self._rewrite([row for row in rows if int(row["step"]) <= step])

    def _rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue())


class Wandb(Logger):
    """Weights & Biases; its own files lie in `wandb/` of the run's folder.

    A resumed run goes on as the same run there: what it had written after its checkpoint is then there twice, under the
    same `step`. Offline it is a second folder with the same id: `wandb sync --append` joins them.

    Args:
        save_dir: The run's folder.
        project: Where the run belongs.
        name: Of the run.
        offline: Whether to write the files only; `wandb sync <run's folder>/wandb/<run>` sends them later.

    Raises:
        ConfigError: If wandb is not installed.
    """

    def __init__(self, save_dir: str, *, project: str, name: str, offline: bool) -> None:
        super().__init__()
        _require("wandb")
        self.folder, self.project, self.offline = Path(save_dir), project, offline
        self._name = f"{name} {self.folder.name}"
        self._run: Any = None  # begun when there is something to write

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return ""

    @property
    def run(self) -> Any:
        """The run at Weights & Biases.

        Raises:
            ConfigError: If nobody is logged in, or the service cannot be reached.
        """
        if self._run is None:
            import wandb

            before = sorted(path.name for path in self.folder.glob("wandb/*run-*-*"))  # offline-run-<time>-<id>
            try:
                self._run = wandb.init(
                    dir=str(self.folder),
                    project=self.project,
                    name=self._name,
                    id=before[-1].rsplit("-", 1)[1] if before else None,
                    resume="allow",
                    reinit="create_new",
                    mode="offline" if self.offline else None,
                    settings=wandb.Settings(quiet=True, silent=self.offline, console="off", init_timeout=30),
                )
            except wandb.errors.Error as error:
                first, *_ = str(error).splitlines()
                raise ConfigError(
                    f"`logger` must reach Weights & Biases to write to it: {first} "
                    "Type wandb login, or add logger.wandb.offline=true."
                ) from error
            self._run.define_metric("*", step_metric="step")
        return self._run

    def log_hyperparams(self, params: Mapping[str, Scalar], *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.run.config.update(dict(params), allow_val_change=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.run.log({**metrics, "step": step})

    def finalize(self, status: str) -> None:
        if status == "failed":
            self.close(exit_code=1)

    def close(self, exit_code: int = 0) -> None:
        """Ends the run, so that the next one of this process is another."""
        if self._run is not None:
            self._run.finish(exit_code)
            self._run = None


class Mlflow(Logger):
    """MLflow: a run of an experiment, in a database or on a server.

    A resumed run goes on as the same run there, under the parameters of its beginning; what it had written after its
    checkpoint is then there twice.

    Args:
        save_dir: The run's folder, which names the run.
        experiment: What it is one run of.
        tracking_uri: A server, or a database such as sqlite:///outputs/mlflow.db.

    Raises:
        ConfigError: If mlflow is not installed, or no server answers there.
    """

    def __init__(self, save_dir: str, *, experiment: str, tracking_uri: str) -> None:
        super().__init__()
        _require("mlflow")
        self.folder, self.experiment, self.uri = Path(save_dir), experiment, tracking_uri
        self._client: Any = None  # connected when there is something to write
        self._resumed = False
        self.run_id = ""
        address = urlsplit(tracking_uri)
        if address.scheme in ("http", "https"):
            _require_server(tracking_uri, address.hostname or "", address.port or socket.getservbyname(address.scheme))

    @property
    def name(self) -> str:
        return "mlflow"

    @property
    def version(self) -> str:
        return ""

    @property
    def client(self) -> Any:
        """The client of the server or database, with the run begun or taken up again."""
        if self._client is None:
            from mlflow import MlflowClient

            if database := self.uri.partition("sqlite:///")[2]:
                path = Path(database).absolute()  # MLflow keeps connections by their name
                path.parent.mkdir(parents=True, exist_ok=True)
                self.uri = f"sqlite:///{path}"
            logging.getLogger("mlflow").setLevel(logging.WARNING)  # of the tables that it makes
            logging.getLogger("alembic").setLevel(logging.WARNING)
            self._client = MlflowClient(self.uri)
            kept = self.folder / "mlflow_run_id"
            self._resumed = kept.is_file()
            if self._resumed:
                self.run_id = kept.read_text().strip()
                self._client.update_run(self.run_id, "RUNNING")
            else:
                found = self._client.get_experiment_by_name(self.experiment)
                number = found.experiment_id if found else self._client.create_experiment(self.experiment)
                tags = {"folder": str(self.folder)}
                self.run_id = self._client.create_run(number, run_name=self.folder.name, tags=tags).info.run_id
                write_atomic(kept, f"{self.run_id}\n")
        return self._client

    def log_hyperparams(self, params: Mapping[str, Scalar], *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        from mlflow.entities import Param

        client = self.client
        if not self._resumed:  # a parameter can be written once
            client.log_batch(self.run_id, params=[Param(key, str(value)) for key, value in params.items()])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        client, now = self.client, int(time.time() * 1000)
        client.log_batch(self.run_id, metrics=[Metric(key, value, now, step or 0) for key, value in metrics.items()])

    def finalize(self, status: str) -> None:
        if self._client is not None:
            self._client.set_terminated(self.run_id, "FAILED" if status == "failed" else "FINISHED")


def _require_server(uri: str, host: str, port: int) -> None:
    # MLflow itself would try for minutes
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise ConfigError(
            f"`logger.mlflow.tracking_uri` must lead to a server that answers, got {uri} ({error}). "
            "Start one with mlflow server, or try logger.mlflow.tracking_uri=sqlite:///outputs/mlflow.db."
        ) from None


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"`logger` must have {package} installed to write to it. "
            f'Type pip install "tunelab[{package}]", or leave it out.'
        )
