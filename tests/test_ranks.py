"""Several processes for one run: the same numbers as one, one record, and no process left behind however it ends."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_command import REPOSITORY, refused, typed
from test_resume import assert_the_same_run, scalars

from tunelab import ranks
from tunelab.data.memory import EpochOrder
from tunelab.errors import ConfigError
from tunelab.predictor import evaluate

PLAIN = (  # without dropout; 142 examples for training: each rank has 71 of them
    *("data=wine", "size=tiny", "batch_size=16", "epochs=3", "optimizer=sgd", "lr=0.05", "threads=2"),
    *("clipping=norm", "clipping.max_norm=0.5", "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false"),
)


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def result(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


def best_validation(folder: Path) -> dict[str, float]:
    """What the validation wrote when the best checkpoint was made."""
    epoch = result(folder)["objective"]["epoch"]
    row = next(row for row in rows(folder) if row["epoch"] == epoch - 1 and "val/loss" in row)
    return {name: value for name, value in row.items() if name.startswith("val/")}


def weights(folder: Path, which: str = "last") -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / f"{which}.ckpt", weights_only=True)[
        "state_dict"
    ]
    return content


def running(folder: Path) -> list[int]:
    """The processes whose command names this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(folder) in command and state != "Z":
            found.append(int(entry.name))
    return found


def all_gone(folder: Path, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while running(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run folders of the same recipe, trained by one process and by two."""
    folder = tmp_path_factory.mktemp("a folder with spaces")
    for name, trainer in (("one", "cpu"), ("two", "ddp")):
        outcome = typed(folder, *PLAIN, f"trainer={trainer}", f"hydra.run.dir={name}")
        assert outcome.code == 0, outcome.text
    return folder / "one", folder / "two"


# ---- the same numbers


def test_two_ranks_take_the_steps_of_one_process(one_and_two: tuple[Path, Path]) -> None:
    one, two = (weights(folder) for folder in one_and_two)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6)


def test_two_ranks_write_the_losses_norms_and_scores_of_one_process(one_and_two: tuple[Path, Path]) -> None:
    one, two = (rows(folder) for folder in one_and_two)
    assert [row.keys() for row in one] == [row.keys() for row in two]
    assert {"train/loss", "gradients/norm", "lr", "val/loss", "val/accuracy", "test/loss"} <= set().union(*one)
    for first, second in zip(one, two, strict=True):
        assert second == pytest.approx(first, rel=1e-5)
    assert max(row["gradients/norm"] for row in two) > 0.5  # so the clipping was at work


def test_two_ranks_leave_one_record_with_the_files_of_one_process(one_and_two: tuple[Path, Path]) -> None:
    one, two = (sorted(p.name for p in folder.rglob("*") if "tfevents" not in p.name) for folder in one_and_two)
    assert two == one
    assert len(list((one_and_two[1] / "tensorboard").iterdir())) == 1
    assert scalars(one_and_two[0]) == scalars(one_and_two[1])


def test_the_speed_counts_the_examples_of_both_ranks(one_and_two: tuple[Path, Path]) -> None:
    of_two = result(one_and_two[1])
    assert of_two["steps"] == 3 * 9  # 142 examples, 16 a step
    assert of_two["samples_per_second"] * of_two["seconds"] == pytest.approx(3 * 142, abs=0.5 * of_two["seconds"] + 1)


def test_no_example_is_scored_twice_by_two_ranks(one_and_two: tuple[Path, Path], tmp_path: Path) -> None:
    two = one_and_two[1]
    alone = tmp_path / "alone"  # whoever trained, one process evaluates
    shutil.copytree(two, alone)
    for part, scores in (("test", result(two)["test"]), ("val", best_validation(two))):
        assert evaluate(alone, "best", part) == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize("examples", [18, 17, 3, 2])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_a_part_of_the_data_so_that_each_example_is_scored_once(examples: int, world_size: int) -> None:
    orders = [EpochOrder(examples, 0, False, rank, world_size, even=False) for rank in range(world_size)]
    scored = sorted(index for order in orders for index in order.indices().tolist())
    if examples >= world_size:
        assert scored == list(range(examples))
    else:  # a rank without a batch would wait for ever: one of them meets an example again
        assert set(scored) == set(range(examples))
        assert all(len(order) == 1 for order in orders)


@pytest.mark.parametrize("examples", [142, 143])
def test_the_batches_of_two_ranks_together_are_those_of_one_process(examples: int) -> None:
    alone = EpochOrder(examples, 7, True).indices().split(16)
    both = [EpochOrder(examples, 7, True, rank, 2).indices().split(8) for rank in range(2)]
    assert len(both[0]) == len(both[1]) == len(alone)
    together = [sorted(torch.cat(pair).tolist()) for pair in zip(*both, strict=True)]
    assert together[:-1] == [sorted(batch.tolist()) for batch in alone[:-1]]
    # where they do not come out even, the first example of the epoch makes the last step's halves equal
    again = [alone[0][0].item()] if examples % 2 else []
    assert together[-1] == sorted([*alone[-1].tolist(), *again])


# ---- together with everything else

OWN = """
import os
from pathlib import Path

import torch
from lightning import Callback

class Watcher(Callback):
    '''Notes whether the ranks have the same weights and other dropout masks; perhaps does some harm.'''
    def __init__(self, fail_on=None, epoch=0, how="raise"):
        self.fail_on, self.epoch, self.how = fail_on, epoch, how

    def on_train_epoch_start(self, trainer, pl_module):
        failed = Path(trainer.default_root_dir, "failed")
        if trainer.global_rank == self.fail_on and trainer.current_epoch == self.epoch and not failed.exists():
            failed.touch()
            if self.how == "raise":
                raise OSError("the disk of this rank has gone")
            os.kill(os.getpid(), 9)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.fail_on is None and batch_idx == 0:
            pl_module._seed_step(batch_idx)
            self.mask = torch.rand(1000)

    def on_train_end(self, trainer, pl_module):
        if self.fail_on is None:
            own = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
            for mine, same in ((own, True), (self.mask, False)):
                both = [torch.empty_like(mine) for _ in range(2)]
                torch.distributed.all_gather(both, mine)
                assert torch.equal(*both) is same, same
            if trainer.is_global_zero:
                Path(trainer.default_root_dir, "watched").write_text(os.environ["TUNELAB_TRUST"])
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A callback of the user's own, which a module beside the run gives."""
    (tmp_path / "own_watcher.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TUNELAB_TRUST", "own_watcher")
    return ("+callbacks.own._target_=own_watcher.Watcher", "trainer=ddp", "trainer.enable_progress_bar=false")


MIXES = {
    "ema, mixup, dropout": ("size=tiny", "regularization=[ema,mixup,dropout]", "optimizer=adamw"),
    "batch norm, swa, stochastic depth": ("data=digits", "model=resnet", "size=tiny", "regularization=[swa]"),
    "sam, pgd": ("size=tiny", "optimizer=sam", "regularization=[pgd]"),
    "lamb, elastic net": ("size=tiny", "optimizer=lamb", "regularization=[elastic_net]"),
    "muon, dropconnect": ("size=tiny", "optimizer=muon", "regularization=[dropconnect]"),
    "schedule-free, cutmix": (
        *("data=digits", "model=cnn", "size=tiny", "model.normalization=batch", "regularization=[cutmix]"),
        *("optimizer=schedule_free_sgd", "scheduler=constant"),
    ),
    "plateau, lsuv, the whole data at once": (
        "size=tiny",
        "scheduler=plateau",
        "scheduler.patience=1",
        "init=lsuv",
        "batch_size=full",
    ),
    "blocks skipped by chance": ("data=digits", "model=resnet", "size=tiny", "stochastic_depth=0.5"),
    "accumulated": ("size=tiny", "trainer.accumulate_grad_batches=3"),
}


@pytest.mark.slow
@pytest.mark.parametrize("words", [pytest.param(words, id=name) for name, words in MIXES.items()])
def test_ranks_end_with_the_same_weights_and_draw_masks_of_their_own(
    tmp_path: Path, own: tuple[str, ...], words: tuple[str, ...]
) -> None:
    given = {word.split("=")[0] for word in words}
    few = () if "data" in given else ("data=wine",)
    few += () if "batch_size" in given else ("batch_size=32",)
    outcome = typed(tmp_path, *few, *words, *own, "epochs=2", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.text + "".join(p.read_text() for p in (tmp_path / "run").glob("rank*.log"))
    assert (tmp_path / "run" / "watched").read_text() == "own_watcher"
    assert evaluate(tmp_path / "run") == pytest.approx(result(tmp_path / "run")["test"], abs=1e-6)


@pytest.mark.slow
def test_early_stopping_ends_both_ranks(tmp_path: Path) -> None:
    stopping = ("regularization=[early_stopping]", "regularization.early_stopping.patience=2", "lr=1e-7", "epochs=50")
    outcome = typed(tmp_path, *PLAIN, "trainer=ddp", *stopping, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.text
    assert result(tmp_path / "run")["epochs"] < 10
    assert result(tmp_path / "run")["status"] == "finished"


@pytest.mark.slow
def test_hydras_own_sweep_over_several_processes_makes_each_run_once(tmp_path: Path) -> None:
    sweep = ("-m", "hydra/sweeper=basic", "lr=1e-3,1e-2", "hydra.sweep.dir=sweep")
    outcome = typed(tmp_path, *PLAIN[:2], "trainer=ddp", "epochs=1", *sweep)
    assert outcome.code == 0, outcome.text
    assert sorted(path.parent.name for path in tmp_path.rglob("config.yaml")) == ["0", "1"]
    assert [result(tmp_path / "sweep" / job)["steps"] for job in ("0", "1")] == [3, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}


@pytest.mark.slow
def test_fewer_validation_examples_than_ranks_do_not_hang(tmp_path: Path) -> None:
    few = ("data=iris", "data.val_fraction=0.02", "data.test_fraction=0.02", "trainer.devices=4", "batch_size=16")
    outcome = typed(tmp_path, *few, "size=tiny", "epochs=1", "trainer=ddp", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.text
    assert result(tmp_path / "run")["status"] == "finished"


# ---- continued and repeated


@pytest.mark.slow
def test_a_run_of_two_ranks_resumes_and_repeats_bit_for_bit(tmp_path: Path, own: tuple[str, ...]) -> None:
    dropout = "regularization=[dropout]"
    assert typed(tmp_path, *PLAIN, dropout, "trainer=ddp", "epochs=5", "hydra.run.dir=whole").code == 0
    harm = ("+callbacks.own.fail_on=0", "+callbacks.own.epoch=3")
    outcome = typed(tmp_path, *PLAIN, dropout, *own, *harm, "epochs=5", "hydra.run.dir=cut")
    assert outcome.code == 1, outcome.text
    assert all_gone(tmp_path / "cut")
    (last,) = (tmp_path / "cut" / "checkpoints").glob("last.ckpt")
    assert 0 < torch.load(last, weights_only=True)["global_step"] <= 3 * 9
    shutil.copytree(tmp_path / "cut", tmp_path / "by_one")
    outcome = typed(tmp_path, "resume=cut")
    assert outcome.code == 0, outcome.text
    assert_the_same_run(tmp_path / "whole", tmp_path / "cut")
    assert typed(tmp_path, "repeat=whole", "hydra.run.dir=again").code == 0
    assert_the_same_run(tmp_path / "whole", tmp_path / "again")
    by_one = typed(tmp_path, "resume=by_one", "trainer=cpu", "epochs=5")
    assert by_one.code == 0, by_one.text
    assert (result(tmp_path / "by_one")["status"], result(tmp_path / "by_one")["epochs"]) == ("finished", 5)


# ---- however it ends


@pytest.mark.slow
@pytest.mark.parametrize(("how", "said"), [("raise", "OSError: the disk of this rank has gone"), ("kill", "SIGKILL")])
def test_a_rank_that_dies_ends_the_run_in_words(tmp_path: Path, own: tuple[str, ...], how: str, said: str) -> None:
    harm = ("+callbacks.own.fail_on=1", "+callbacks.own.epoch=1", f"+callbacks.own.how={how}")
    outcome = typed(tmp_path, *PLAIN, *own, *harm, "epochs=100000", "hydra.run.dir=run")
    text = refused(outcome, 1).split("It came from here")[0] if how == "kill" else outcome.text
    assert "`trainer.devices` must be processes that all go on, but rank1" in text
    assert said in text
    assert all_gone(tmp_path / "run")


@pytest.mark.slow
def test_a_mistake_of_rank_0_is_told_as_that_of_a_single_process(tmp_path: Path, own: tuple[str, ...]) -> None:
    outcome = typed(tmp_path, *PLAIN, *own, "+callbacks.own.fail_on=0", "hydra.run.dir=run")
    assert "OSError: the disk of this rank has gone" in outcome.text
    assert "rank1" not in outcome.text
    assert all_gone(tmp_path / "run")


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts a long run of two ranks in a process of its own, and returns when it has a checkpoint."""
    command = [sys.executable, str(REPOSITORY / "train.py"), *PLAIN, "trainer=ddp", "epochs=100000", *arguments]
    process = subprocess.Popen(
        [*command, f"hydra.run.dir={folder / 'run'}"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    while not (folder / "run" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.05)
    return process


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """begin(), and nothing of it is left after the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        processes.append(begin(tmp_path, *arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    for left in running(tmp_path):
        os.kill(left, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("to_all", [True, False], ids=["to the group", "to rank 0"])
def test_a_signal_ends_all_ranks_and_the_run_can_be_continued(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]], sent: signal.Signals, code: int, to_all: bool
) -> None:
    process = started()
    (os.killpg if to_all else os.kill)(process.pid, sent)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert "Interrupted. To continue: python train.py resume=run" in said
    assert all_gone(tmp_path / "run")
    assert result(tmp_path / "run")["status"] == "interrupted"
    done = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] + 1
    resumed = typed(tmp_path, "resume=run", f"epochs={done + 1}", "trainer=ddp")
    assert resumed.code == 0, resumed.text


@pytest.mark.slow
def test_a_killed_leader_leaves_no_follower(tmp_path: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
    process = started()
    assert len(running(tmp_path / "run")) == 2
    process.kill()
    process.communicate()
    assert all_gone(tmp_path / "run")


@pytest.mark.slow
def test_a_follower_that_fails_before_it_joins_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the leader waits for it outside of Python, where no signal is heard
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif os.environ.get('LOCAL_RANK') == '1': sys.exit('no such library')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, str(REPOSITORY / "train.py"), *PLAIN, "trainer=ddp", "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "rank1 failed" in done.stderr
    assert "Traceback" not in done.stderr.split("rank1 failed")[0]


# ---- refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("trainer=ddp", "batch_size=33"),
            "`batch_size` must be divisible by the 2 devices that share it, got 33. Try batch_size=32.",
        ),
        (
            ("trainer.devices=2",),
            "`trainer.devices` must be 1 without a way to share a step, got 2. Try trainer=ddp.",
        ),
        (
            ("trainer=ddp", "optimizer=lbfgs"),
            "`optimizer` must take as many gradients a step on every device, got lbfgs",
        ),
        (
            ("trainer=fsdp",),
            "`trainer=fsdp` must have a GPU that PyTorch can use, but there is none. "
            "Try trainer=ddp trainer.accelerator=cpu.",
        ),
        (("trainer=gpu",), "`trainer=gpu` must have a GPU that PyTorch can use, but there is none. Try trainer=cpu."),
    ],
)
def test_what_cannot_be_shared_is_refused(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in refused(typed(tmp_path, *arguments, "size=tiny"), 1)
    assert list(tmp_path.glob("outputs/*/*")) == []


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("clipping=norm",), "clipping"),
        (("regularization=[ema]",), "regularization.ema"),
        (("optimizer=muon",), "optimizer"),
        (("callbacks=[checkpoint,gradients]",), "callbacks.gradients"),
        (("callbacks=[checkpoint,updates]",), "callbacks.updates"),
    ],
)
def test_what_needs_whole_weights_is_refused_where_each_process_has_a_part(
    tmp_path: Path, arguments: tuple[str, ...], key: str
) -> None:
    text = refused(typed(tmp_path, "trainer=fsdp", *arguments), 1)
    assert f"`{key}` must be left out or changed with trainer=fsdp" in text


def test_what_cannot_be_shared_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\nsys.argv = ['train.py', 'trainer=ddp', 'batch_size=33']\n"
        f"try: runpy.run_path({str(REPOSITORY / 'train.py')!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_more_processes_than_gpus_are_refused(
    tmp_path: Path, compose: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunelab.prepare import check_devices

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(compose("trainer=ddp"))
    check_devices(compose("trainer=ddp", "trainer.devices=4", "trainer.accelerator=cpu"))
    with pytest.raises(ConfigError, match=r"at most the 2 GPUs of this machine, got 4\. Try trainer\.devices=2"):
        check_devices(compose("trainer=ddp", "trainer.devices=4"))


def test_a_run_that_another_program_started_several_times_is_refused(
    tmp_path: Path, compose: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ConfigError, match="Type python, not torchrun"):
        ranks.for_run(compose("trainer=ddp"), tmp_path, None)


def test_the_ranks_share_the_threads(compose: Callable[..., Any]) -> None:
    from tunelab.prepare import prepare_process

    for words, threads in ((("threads=4",), 4), (("threads=4", "trainer=ddp"), 2), (("threads=1", "trainer=ddp"), 1)):
        prepare_process(compose(*words))
        assert torch.get_num_threads() == threads
