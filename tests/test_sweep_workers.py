"""A trial that breaks harms no other: its worker is replaced, its cause recorded, and nothing of it stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FrozenTrial
from swept import end, left_behind, processes

from tunelab.errors import RunFailed
from tunelab.sweep.journal import Journal
from tunelab.sweep.slots import Died, Slots, TimedOut
from tunelab.sweep.worker import Call, Ended

FAULTS = """
import ctypes, os, resource, signal, subprocess, sys, threading, time
import numpy as np, torch
from lightning import Callback


def deeper(depth):
    return deeper(depth + 1) + 1


class Endless(BaseException):
    pass


class Fault(Callback):
    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if trainer.current_epoch:
            return
        print(f"about to {self.how}", flush=True)
        getattr(self, self.how)()

    def go(self): pass
    def exit_at_once(self): os._exit(3)
    def segfault(self): ctypes.string_at(0)
    def kill(self): os.kill(os.getpid(), signal.SIGKILL)
    def abort(self): os.abort()
    def memory(self):
        resource.setrlimit(resource.RLIMIT_AS, (2**33, resource.RLIM_INFINITY))
        torch.zeros(2**34)
    def recurse(self): deeper(0)
    def leave(self): sys.exit(7)
    def interrupt(self): raise KeyboardInterrupt
    def escape(self): raise Endless("from Exception")
    def close(self):
        sys.stdout.close()
        for number in (0, 1, 2): os.close(number)
    def close_all(self): os.closerange(0, 4096)
    def hang(self): time.sleep(1000)
    def hold(self): ctypes.PyDLL(None).sleep(1000)  # without letting go of Python
    def threads(self): threading.Thread(target=time.sleep, args=(1000,)).start()
    def daemon(self): subprocess.Popen(["sleep", "987"])
    def write(self):
        for _ in range(300): print("x" * 100_000)
    def set_all(self):
        os.environ["OMP_NUM_THREADS"] = "7"
        os.chdir("/")
        sys.path.insert(0, "/")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        np.seterr(all="raise")
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.set_grad_enabled(True)
        torch.set_flush_denormal(True)
"""

SCRIPT = """
import pathlib, sys, tunelab
with open("ran.txt", "a") as file:
    file.write("once ")
tunelab.main(config_path="conf", trust="faults")  # without asking for __main__
"""

TRIAL = ("data=iris", "size=tiny", "epochs=2", "threads=1", "callbacks=[checkpoint,fault]")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose callback breaks as it is told to."""
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "__init__.py").write_text(FAULTS)
    (tmp_path / "conf" / "callbacks").mkdir(parents=True)
    (tmp_path / "conf" / "callbacks" / "fault.yaml").write_text("fault:\n  _target_: faults.Fault\n  how: go\n")
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def started(project: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def swept(project: Path, *arguments: str, code: int = 0) -> list[FrozenTrial]:
    """The trials of a sweep in a process of its own."""
    process = started(project, "-m", "name=swept", *TRIAL, *arguments)
    out, _ = process.communicate(timeout=1800)
    assert process.returncode == code, out
    return trials(project)


def trials(project: Path) -> list[FrozenTrial]:
    storage = optuna.storages.JournalStorage(Journal(project / "outputs" / "sweeps" / "swept" / "study.journal"))
    return optuna.load_study(study_name=None, storage=storage).get_trials()


def weights(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])


# ---- what a trial does to its process


@pytest.mark.slow
def test_a_trial_that_breaks_harms_no_other_and_its_cause_is_recorded(project: Path) -> None:
    causes = {
        "exit_at_once": "its process ended by itself with exit code 3, 3 times",
        "segfault": "its process was ended by SIGSEGV, 3 times",
        "kill": "its process was ended by SIGKILL: the machine may have been out of memory, 3 times",
        "abort": "its process was ended by SIGABRT, 3 times",
        "memory": "can't allocate memory",
        "recurse": "RecursionError: maximum recursion depth exceeded",
        "leave": "SystemExit: 7",
        "interrupt": "KeyboardInterrupt",
        "escape": "Endless: from Exception",
    }
    healthy = ["close", "close_all", "threads", "daemon", "write", "set_all", "go"]
    hows = ["go", *(how for pair in zip(causes, healthy, strict=False) for how in pair), *list(causes)[len(healthy) :]]
    ended = swept(project, f"callbacks.fault.how={','.join(hows)}", "seed=1")
    assert {t.params["callbacks.fault.how"] for t in ended if t.state.name == "COMPLETE"} == {*healthy}
    for failed in (t for t in ended if t.state.name != "COMPLETE"):
        how = failed.params["callbacks.fault.how"]
        assert causes[how] in failed.user_attrs["cause"], how
        said = (project / "outputs" / "sweeps" / "swept" / str(failed.number) / "train.log").read_text()
        assert f"about to {how}" in said, how
        assert said.rstrip().endswith(failed.user_attrs["log"].rstrip()), how  # its last lines
    assert len({t.value for t in ended if t.state.name == "COMPLETE"}) == 1  # each did the same
    assert (project / "ran.txt").read_text() == "once "  # the script, which the workers do not run


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hang", "hold"])
def test_nothing_of_a_sweep_outlives_its_kill(project: Path, how: str) -> None:
    process = started(project, "-m", "name=swept", *TRIAL, "sweep.n_jobs=2", "seed=1,2", f"callbacks.fault.how={how}")
    logs = [project / "outputs" / "sweeps" / "swept" / str(number) / "train.log" for number in (0, 1)]
    try:
        until = time.monotonic() + 600
        while not all(log.is_file() and f"about to {how}" in log.read_text() for log in logs):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        # the command, the server of its workers, the tracker that Python starts, two workers
        assert len(processes(project)) == 5
        process.kill()
        process.wait()
        assert left_behind(project) == []
    finally:
        process.kill()
        end(processes(project))
        process.communicate()


@pytest.mark.slow
def test_a_trial_that_hangs_without_letting_go_of_python_is_ended(project: Path) -> None:
    first, second = swept(project, "callbacks.fault.how=hold,go", "sweep.trial_timeout=20")
    assert first.user_attrs["cause"] == "It took longer than sweep.trial_timeout=20 seconds."
    assert (first.state.name, second.state.name) == ("FAIL", "COMPLETE")


@pytest.mark.slow
def test_a_trial_of_two_processes_runs_in_a_worker(project: Path) -> None:
    several = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "callbacks.fault.how=go")
    (one, two) = swept(project, *several, "seed=1,2")
    assert (one.state.name, two.state.name) == ("COMPLETE", "COMPLETE")
    alone = subprocess.run(
        [sys.executable, "train.py", *TRIAL, *several, "seed=1", "test=false", "hydra.run.dir=alone"],
        cwd=project,
        timeout=900,
        check=True,
    )
    assert alone.returncode == 0
    for name, weight in weights(project / "alone").items():
        assert torch.equal(weight, weights(project / "outputs" / "sweeps" / "swept" / "0")[name])


@pytest.mark.slow
def test_a_trial_is_bit_for_bit_the_single_run_whatever_ran_before(project: Path) -> None:
    recipe = [*TRIAL, "seed=3", "dropout=0.2"]
    process = subprocess.run(
        [sys.executable, "train.py", *recipe, "test=false", "hydra.run.dir=alone"], cwd=project, timeout=900, check=True
    )
    assert process.returncode == 0
    done = swept(
        project,
        "seed=3",
        "dropout=0.2",
        "optimizer=adamw,sam,sgd",
        "trainer.precision=bf16-true,32-true",
        "callbacks.fault.how=set_all,go",
    )
    same = [
        t.number
        for t in done
        if (t.params["optimizer"], t.params["trainer.precision"]) == ("adamw", "32-true") and t.state.name == "COMPLETE"
    ]
    assert len(same) == 2
    for number in same:
        folder = project / "outputs" / "sweeps" / "swept" / str(number)
        assert (folder / "metrics.csv").read_text() == (project / "alone" / "metrics.csv").read_text()
        for name, weight in weights(project / "alone").items():
            assert torch.equal(weight, weights(folder)[name])


@pytest.mark.slow
def test_a_worker_does_not_grow(project: Path) -> None:
    """Within 200 trials by less than 16 MiB after the first 20, and by no open file."""
    (project / "faults" / "__init__.py").write_text(
        FAULTS
        + """
    def go(self):
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        with open(os.environ["SIZES"], "a") as file:
            file.write(f"{os.getpid()} {pages} {len(os.listdir('/proc/self/fd'))} {threading.active_count()}\\n")
"""
    )
    sizes = project / "sizes.txt"
    environment = os.environ | {"SIZES": str(sizes)}
    arguments = ["-m", "name=swept", *TRIAL, "epochs=1", "sweep=random", "sweep.n_trials=200", "lr=interval(1e-4,1e-2)"]
    done = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=project, env=environment, timeout=1800, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    rows = np.loadtxt(sizes, dtype=int)
    assert len(rows) == 200
    assert len(set(rows[:, 0])) == 1  # one worker
    assert (rows[-10:, 1].max() - rows[10:30, 1].max()) * os.sysconf("SC_PAGE_SIZE") < 16 * 2**20
    assert rows[-1, 2] == rows[20, 2]
    assert rows[-1, 3] == rows[20, 3]


class Asked:
    """A slot whose worker is ready, and what it was asked."""

    is_ready, is_busy = True, False
    asked: tuple[Any, ...] = ()

    def ask(self, *what: Any) -> None:
        self.asked = what


@pytest.mark.parametrize("said", [Ended("done", 0.5), Died("it broke"), TimedOut()], ids=["done", "died", "late"])
def test_a_call_is_answered_by_the_worker_that_was_asked_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Ended | Died | TimedOut
) -> None:
    slots, asked, idle = Slots(2, tmp_path / "workers.log"), Asked(), Asked()
    slots._all = [asked, idle]  # type: ignore[list-item]
    monkeypatch.setattr(slots, "events", lambda seconds: [(idle, Died("of itself")), (asked, said)])
    if isinstance(said, Ended):
        assert slots.call("test_score", 1, seconds=7.0) == 0.5
    else:
        with pytest.raises(RunFailed, match="it broke" if isinstance(said, Died) else "longer than 7 seconds"):
            slots.call("test_score", 1, seconds=7.0)
    assert (asked.asked, idle.asked) == ((Call("test_score", (1,)), 7.0), ())


def test_the_hash_of_the_code_is_that_of_the_files_as_the_workers_import_them() -> None:
    script = (
        "import tunelab.record as record; record.code_hash = lambda: 'as imported'; import tunelab.sweep.trial; "
        "record.code_hash = lambda: 'as edited since'; print(record.own_hash())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "as imported\n"
