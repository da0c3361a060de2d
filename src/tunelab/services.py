"""Services to which metrics are sent: Weights & Biases and MLflow, both fit for a resume."""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger

from tunelab.errors import ConfigError
from tunelab.folder import write_atomic

log = logging.getLogger("tunelab")

Scalar = float | int | str | bool

WRITERS_WAIT_SECONDS = 60
"""How long one run waits for another that writes into the same SQLite database."""


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
        """The run at Weights & Biases; in files alone if nobody is logged in, or the service cannot be reached."""
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
                if self.offline:
                    raise
                first, *_ = str(error).splitlines()
                log.warning(
                    "logger=wandb cannot reach Weights & Biases: %s The run is written to %s instead; send it by wandb "
                    "sync, or next time type wandb login first, or logger.wandb.offline=true.",
                    *(first, self.folder / "wandb"),
                )
                self.offline = True
                return self.run
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
        ConfigError: If mlflow is not installed.
        ConnectionError: If no server answers there.
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

            logging.getLogger("mlflow").setLevel(logging.WARNING)  # of the tables that it makes
            logging.getLogger("alembic").setLevel(logging.WARNING)
            with self._alone():
                client = MlflowClient(self.uri)
                kept = self.folder / "mlflow_run_id"
                if kept.is_file():
                    self._resumed, self.run_id = True, kept.read_text().strip()
                    client.update_run(self.run_id, "RUNNING")
                else:
                    number, tags = self._experiment(client), {"folder": str(self.folder)}
                    self.run_id = client.create_run(number, run_name=self.folder.name, tags=tags).info.run_id
                    write_atomic(kept, f"{self.run_id}\n")
            self._client = client
        return self._client

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Has runs that begin at once make the tables of a database once, one of them before the others.

        (MLflow itself looks whether they are there, and then makes them.)
        """
        database = self.uri.partition("sqlite:///")[2]
        if not database:
            yield
            return
        path = Path(database.partition("?")[0]).absolute()  # MLflow keeps connections by their name
        path.parent.mkdir(parents=True, exist_ok=True)
        # another run may be writing: it is waited for
        self.uri = f"sqlite:///{path}?timeout={WRITERS_WAIT_SECONDS}"
        with path.with_name(f".{path.name}.lock").open("a") as file:
            with suppress(OSError):  # where files cannot be locked
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _experiment(self, client: Any) -> str:
        """The number of the experiment, which is made if there is none of its name."""
        if (found := client.get_experiment_by_name(self.experiment)) is None:
            try:
                return str(client.create_experiment(self.experiment))
            except Exception:  # another run has made it meanwhile
                if (found := client.get_experiment_by_name(self.experiment)) is None:
                    raise
        return str(found.experiment_id)

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
        raise ConnectionError(
            f"`logger.mlflow.tracking_uri` must lead to a server that answers, got {uri} ({error}). "
            "Start one with mlflow server, or try logger.mlflow.tracking_uri=sqlite:///outputs/mlflow.db."
        ) from None


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"`logger` must have {package} installed to write to it. "
            f'Type pip install "tunelab[{package}]", or leave it out.'
        )
