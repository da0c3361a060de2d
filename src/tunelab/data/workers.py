"""Batches read by worker processes, for examples that do not fit in memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from multiprocessing import forkserver
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from tunelab.data.memory import Batch, EpochOrder
from tunelab.errors import ConfigError


class BatchReader(Protocol):
    """Examples that are read when they are asked for; it travels to the worker processes."""

    def __len__(self) -> int: ...

    def read(self, indices: list[int]) -> Batch:
        """The inputs and targets of some examples, as the model takes them."""


class WorkerLoader:
    """An iterable of (inputs, targets) batches: those that `MemoryLoader` would yield, read as they are needed.

    Args:
        reader: Reads the examples of a batch.
        batch_size: Examples per batch of this process.
        order: Which example comes when.
        workers: Processes that read ahead, two batches each, with one thread each; 0 reads in this one.
        pin_memory: Whether batches wait in memory from which a GPU copies without holding up the CPU.
    """

    def __init__(
        self, reader: BatchReader, batch_size: int, order: EpochOrder, *, workers: int, pin_memory: bool
    ) -> None:
        self.sampler, self.batch_size = order, batch_size
        self.batch_sampler = None  # Lightning looks for it beside a sampler
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more than cores: the user's choice
            self.loader: DataLoader[Batch] = DataLoader(
                _Batches(reader),
                batch_size,
                sampler=order,
                num_workers=workers,
                collate_fn=_as_read,
                pin_memory=pin_memory,
                worker_init_fn=_belong_to_the_run,
                # not a fork of this process, whose other threads may hold locks that nobody would release in it
                multiprocessing_context=worker_context() if workers else None,
                persistent_workers=workers > 0,
                generator=torch.Generator(),  # leaves the random state of the run alone
            )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if isinstance(batch, ConfigError):
                raise batch
            yield batch

    def set_batch_size(self, batch_size: int) -> None:
        """Has the epochs from the next on in batches of another size."""
        self.batch_size = batch_size
        sampler: Any = self.loader.batch_sampler
        sampler.batch_size = batch_size  # what the loader goes by; its own attribute cannot be set

    def skip(self, batches: int) -> None:
        """Begins the next epoch behind its first batches."""
        self.sampler.skipped = batches * self.batch_size

    def close(self) -> None:
        """Ends the worker processes, which otherwise wait for another epoch."""
        del self.loader


def worker_context() -> Any:
    """Where workers come from: a server process that has imported this module, and forks one in milliseconds.

    The first call starts the server, which takes seconds to import it: call it before there is something to wait for.
    """
    context = torch.multiprocessing.get_context("forkserver")
    library = [name for name in ("datasets",) if name in sys.modules]  # if readers travel as objects of it
    context.set_forkserver_preload(["__main__", __name__, *library])
    # the server and its workers never hear Ctrl-C, not even while they begin: what is ignored stays so in a new process
    alone = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if alone else None
    try:
        forkserver.ensure_running()
    finally:
        if alone:
            signal.signal(signal.SIGINT, before)
    return context


class _Batches(Dataset[Any]):
    def __init__(self, reader: BatchReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitems__(self, indices: list[int]) -> Batch | ConfigError:  # torch's name: a whole batch at once
        try:
            return self.reader.read(indices)
        except ConfigError as error:  # raised here, it would arrive as a traceback
            return error


def _as_read(batch: Any) -> Any:
    return batch


def _belong_to_the_run(worker: int) -> None:
    """Leaves Ctrl-C, which reaches all processes, to the run, and ends the worker with it, should it be killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    run = multiprocessing.parent_process()
    if run is not None:
        run.join()  # torch asks after the server, which lives as long as its workers do
        os._exit(1)
