"""Batches read by worker processes are those from memory, in every epoch and rank, and nothing outlives a run."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback
from PIL import Image

from tunelab.data.memory import EpochOrder, MemoryLoader
from tunelab.data.pictures import PictureReader
from tunelab.data.workers import WorkerLoader
from tunelab.errors import ConfigError
from tunelab.fitting import build

TRAIN = Path(__file__).parents[1] / "train.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """15 pictures of 6 x 6 in each of three classes."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (root / name).mkdir()
        for number in range(15):
            pixels = random.integers(0, 256, (6, 6, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def source(compose, folder):
    def make(*overrides):
        cfg = compose("data=image_folder", "batch_size=8", "seed=3", *overrides)
        cfg.data.path = str(folder)
        data = build(cfg.data)
        data.setup("fit")
        return data

    return make


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for ours_batch, theirs_batch in zip(ours, theirs, strict=True):
        for mine, other in zip(ours_batch, theirs_batch, strict=True):
            assert mine.dtype == other.dtype
            assert torch.equal(mine, other)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_read_the_batches_that_memory_has_in_every_epoch(source, workers):
    kept, read = source(), source("data.in_memory=false", f"data.workers={workers}")
    for part in ("train", "val", "test"):
        ours, theirs = (getattr(data, f"{part}_dataloader")() for data in (kept, read))
        assert isinstance(ours, MemoryLoader)
        assert isinstance(theirs, WorkerLoader)
        for epoch in range(2 if part == "train" else 1):
            for loader in (ours, theirs):
                loader.sampler.set_epoch(epoch)
            same(list(ours), list(theirs))
    read.teardown("fit")
    assert multiprocessing.active_children() == []


def test_two_ranks_share_the_batches_as_they_do_from_memory(source):
    kept, read = source(), source("data.in_memory=false", "data.workers=0")
    for rank in range(2):
        inputs, targets = kept.parts["train"]
        ours = MemoryLoader(inputs, targets, 4, EpochOrder(len(inputs), 3, True, rank, 2))
        order = EpochOrder(len(inputs), 3, True, rank, 2)
        theirs = WorkerLoader(read.parts["train"][0], 4, order, workers=0, pin_memory=False)
        same(list(ours), list(theirs))


def test_auto_keeps_what_the_limit_allows(source):
    size = 45 * 3 * 6 * 6 * 4 / 1e9  # of all parts, as float32
    assert isinstance(source(f"data.memory_limit_gb={1.01 * size}").train_dataloader(), MemoryLoader)
    assert isinstance(source(f"data.memory_limit_gb={0.99 * size}").train_dataloader(), WorkerLoader)
    assert isinstance(source("data.in_memory=true", "data.memory_limit_gb=1e-9").train_dataloader(), MemoryLoader)


def test_workers_are_as_many_as_the_run_has_threads_unless_said(source):
    torch.set_num_threads(1)
    assert source().workers == 1
    assert source("threads=3").workers == 3
    assert source("data.workers=0").workers == 0


def test_reading_leaves_the_random_state_of_the_run_alone(source):
    loader = source("data.in_memory=false", "data.workers=0").train_dataloader()
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_more_workers_than_cores_are_no_warning(source):
    data = source("data.in_memory=false", f"data.workers={os.cpu_count() + 1}")
    assert data.train_dataloader().loader.num_workers == os.cpu_count() + 1  # made without a warning, an error here


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_damaged_after_the_start_is_said_in_words(source, folder, workers):
    data = source("data.in_memory=false", f"data.workers={workers}")
    reader, _ = data.parts["train"]
    assert isinstance(reader, PictureReader)
    path = folder / reader.files.name(int(reader.numbers[0]))
    whole = path.read_bytes()
    path.write_bytes(b"gone")
    try:
        with pytest.raises(ConfigError, match=rf"cannot: {path.parent.name}/{path.name} \(not an image\)\. Replace"):
            list(data.train_dataloader())
    finally:
        path.write_bytes(whole)
        data.teardown("fit")


@pytest.mark.slow
def test_a_run_through_workers_ends_as_the_one_from_memory_and_leaves_no_process(fit, folder):
    same_run = ("data=image_folder", f"data.path='{folder}'", "model=cnn", "size=tiny", "epochs=3", "batch_size=8")
    kept, _ = fit(*same_run)
    read, _ = fit(*same_run, "data.in_memory=false", "data.workers=2")
    assert read["test"] == kept["test"]
    assert read["train_loss"] == kept["train_loss"]
    assert read["objective"] == kept["objective"]
    assert multiprocessing.active_children() == []


def _command(folder, *overrides):
    recipe = ["data=image_folder", f"data.path={folder}", "data.in_memory=false", "data.workers=2", "threads=1"]
    small = ["model=cnn", "size=tiny", "batch_size=8", "logger=[]"]
    return [sys.executable, str(TRAIN), *recipe, *small, *overrides]


@pytest.mark.slow
def test_a_resumed_run_through_workers_is_the_uninterrupted_one(folder, tmp_path):
    def run(*arguments):
        subprocess.run(arguments, cwd=tmp_path, check=True, capture_output=True, timeout=900)

    run(*_command(folder, "epochs=4", "scheduler=constant", "hydra.run.dir=whole"))
    run(*_command(folder, "epochs=2", "scheduler=constant", "hydra.run.dir=parts"))
    run(sys.executable, str(TRAIN), "resume=parts", "epochs=4")
    whole, parts = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"]
    for name, weights in whole["state_dict"].items():
        assert torch.equal(weights, parts["state_dict"][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("all_at_once", [True, False], ids=["from a terminal", "to the run alone"])
def test_an_interrupt_ends_the_run_and_its_workers_within_seconds(folder, tmp_path, all_at_once):
    command = _command(folder, "epochs=100000", "hydra.run.dir=run")
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    until = time.monotonic() + 600
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "no checkpoint"
        time.sleep(0.05)
    group = os.getpgid(process.pid)
    (os.killpg if all_at_once else os.kill)(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "To continue: " in said
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("processes of the run are still alive")


@pytest.mark.slow
def test_recalibrating_batch_norms_starts_workers_once_and_not_in_each_epoch(fit_with, folder):
    counts = []

    class Count(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            counts.append(len(multiprocessing.active_children()))

    words = ("data=image_folder", f"data.path='{folder}'", "data.in_memory=false", "data.workers=1", "model=cnn")
    fit_with([Count()], *words, "size=tiny", "optimizer=schedule_free", "batch_size=8", "epochs=5")
    assert max(counts) == counts[2] == counts[-1]
