"""The batch size of a recipe: the search in memory, the knee in speed, the lr that follows, and the tool."""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from swept import left_behind
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_command import REPOSITORY, refused, typed

import tunelab
from tunelab.errors import ConfigError, RunFailed
from tunelab.scaling import factor, rescaled_lr, rule_of
from tunelab.tuning import free_memory
from tunelab.tuning.attempt import Made, _ended, peak_of, ran_out
from tunelab.tuning.batch_size_answer import BatchSize, Before
from tunelab.tuning.largest import Largest, largest, most_tries
from tunelab.tuning.memory import GpuMemory, steps_in_child
from tunelab.tuning.steps import make_steps, training_of
from tunelab.tuning.throughput import Speed, knee, speeds

SCRIPT = "scripts/find_batch_size.py"
SMALL = ("data=iris", "size=tiny")
QUICK = (*SMALL, "min_batch_size=16", "max_batch_size=32", "repeats=1", "seconds=0.001")


# ---- how the lr follows


def test_the_lr_follows_in_proportion_or_by_the_square_root() -> None:
    assert rescaled_lr(0.1, 32, 128, "linear") == pytest.approx(0.4)
    assert rescaled_lr(0.1, 32, 128, "sqrt") == pytest.approx(0.2)
    assert rescaled_lr(0.1, 32, 128, "none") == 0.1


@pytest.mark.parametrize("rule", ["linear", "sqrt", "none"])
def test_two_changes_of_the_batch_size_are_one(rule: str) -> None:
    assert factor(10, 30, rule) * factor(30, 70, rule) == pytest.approx(factor(10, 70, rule))
    assert factor(7, 7, rule) == 1


def test_an_unknown_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be linear, sqrt or none, got cubic"):
        factor(1, 2, "cubic")


LINEAR = {"sgd", "momentum", "nesterov", "sam", "schedule_free_sgd"}


@pytest.mark.parametrize("path", sorted((tunelab.conf_folder() / "optimizer").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_sgd_family_follows_in_proportion_and_the_others_by_the_root(path: Path) -> None:
    optimizer = OmegaConf.load(path).optimizer
    rule = "linear" if path.stem in LINEAR else "none" if path.stem == "lbfgs" else "sqrt"
    assert rule_of(optimizer._target_, optimizer.get("base", "sgd")) == rule


def test_sam_follows_as_its_base_does() -> None:
    assert rule_of("tunelab.optimizers.sam.SAM", "adamw") == "sqrt"


# ---- the largest batch, of a device in closed form


class Line:
    """A device on which training takes fixed + per_example * batch_size bytes."""

    def __init__(self, fixed: int, per_example: int, limit: int) -> None:
        self.fixed, self.per_example, self.limit = fixed, per_example, limit
        self.asked: list[int] = []

    def peak(self, batch_size: int) -> int | None:
        self.asked.append(batch_size)
        bytes_taken = self.fixed + self.per_example * batch_size
        return bytes_taken if bytes_taken <= self.limit else None


@pytest.mark.parametrize("headroom", [0.0, 0.1, 0.25])
@pytest.mark.parametrize(("fixed", "per_example"), [(0, 1000), (300_000, 777), (50_000, 12_345)])
@pytest.mark.parametrize("first", [1, 3, 8])
def test_what_is_found_is_the_floor_of_the_closed_form(
    headroom: float, fixed: int, per_example: int, first: int
) -> None:
    device = Line(fixed, per_example, 1_000_000)
    found = largest(device, first=first, most=10**6, headroom_fraction=headroom)
    exact = (math.floor(1_000_000 * (1 - headroom)) - fixed) // per_example
    assert found.batch_size == found.estimate == exact


def test_it_doubles_and_then_bisects_and_asks_nothing_twice() -> None:
    device = Line(0, 10, 1000)
    assert largest(device, first=8, most=10**6, headroom_fraction=0).batch_size == 100
    assert device.asked == [8, 16, 32, 64, 128, 96, 112, 104, 100, 102, 101]
    for limit in range(10, 2000, 7):
        device = Line(0, 1, limit)
        largest(device, first=3, most=1500, headroom_fraction=0)
        assert len(device.asked) == len(set(device.asked)) <= most_tries(3, 1500)


def test_it_ends_at_all_examples_when_they_fit() -> None:
    device = Line(0, 1, 10**9)
    assert largest(device, first=8, most=100, headroom_fraction=0).batch_size == 100
    assert device.asked == [8, 16, 32, 64, 100]


def test_a_smallest_batch_that_does_not_fit_is_refused_with_both_figures() -> None:
    with pytest.raises(ConfigError) as refusal:
        largest(Line(2 * 10**8, 10**7, 3 * 10**8), first=8, most=100, headroom_fraction=0.1)
    assert str(refusal.value) == (
        "`min_batch_size` must fit in memory, got 8, which takes 0.28 GB, with 0.3 GB, of which 10% are to stay free. "
        "Try min_batch_size=1, or memory_limit_gb=0.35 if there is so much."
    )
    with pytest.raises(ConfigError, match=r"got 1, which takes more than there is, with 0\.3 GB\. Try a smaller model"):
        largest(Line(10**9, 1, 3 * 10**8), first=1, most=100, headroom_fraction=0)


def test_there_is_no_estimate_where_small_batches_do_not_differ() -> None:
    flat = Largest(16, {8: 100, 16: 100}, 200, 200, 16)
    assert flat.line is None
    assert flat.estimate is None


# ---- the memory of a GPU, without one


@pytest.fixture
def _quick_collections() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_quick_collections")
def test_a_gpu_that_runs_out_gives_back_what_was_held() -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    called: list[str] = []

    def steps(batch_size: int) -> None:
        tensor = torch.zeros(batch_size)
        held.append(weakref.ref(tensor))
        cycle: list[Any] = [tensor]
        cycle.append(cycle)  # as a trainer and its parts are
        if batch_size > 20:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
        if batch_size > 10:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    def empty_cache() -> None:
        called.append(f"empty_cache with {sum(ref() is not None for ref in held)} of {len(held)} held")

    fake = {
        "empty_cache": empty_cache,
        "reset_peak_memory_stats": lambda: called.append("reset"),
        "memory_allocated": lambda: 100,
        "max_memory_allocated": lambda: 500,
        "mem_get_info": lambda: (3 * 10**9, 8 * 10**9),
    }
    with mock.patch.multiple(torch.cuda, **fake):
        memory = GpuMemory(steps, None)
        assert [memory.peak(size) for size in (20, 30, 5)] == [None, None, 400]
        assert memory.limit == 3 * 10**9
        with mock.patch.object(torch.cuda, "mem_get_info", return_value=(10**9, 8 * 10**9)):
            assert memory.limit == 3 * 10**9  # one limit for all tries
        assert GpuMemory(steps, 2.0).limit == 2 * 10**9
        assert GpuMemory(steps, 9.0).limit == 3 * 10**9
    assert called[:4] == [
        *("empty_cache with 0 of 0 held", "reset", "empty_cache with 0 of 1 held"),
        "empty_cache with 0 of 1 held",
    ]
    assert called[8] == "empty_cache with 0 of 3 held"


@pytest.mark.usefixtures("_quick_collections")
def test_another_error_of_a_gpu_is_not_taken_for_its_memory() -> None:
    def steps(batch_size: int) -> None:
        raise RuntimeError("shapes do not match")

    nothing = dict.fromkeys(("empty_cache", "reset_peak_memory_stats", "memory_allocated"), lambda: 0)
    with mock.patch.multiple(torch.cuda, **nothing), pytest.raises(RuntimeError, match="shapes do not match"):
        GpuMemory(steps, None).peak(1)


def test_an_error_that_came_from_a_lack_of_memory_is_known_by_its_cause() -> None:
    error = ValueError("the part cannot be built")
    error.__cause__ = MemoryError()
    assert ran_out(error)
    assert ran_out(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"))
    assert not ran_out(ValueError("a wrong key"))


# ---- the knee


def rates(sizes: list[int], fixed: float, each: float) -> list[float]:
    return [size / (fixed + each * size) for size in sizes]


SIZES = [2**power for power in range(3, 14)]


@pytest.mark.parametrize("gain", [1.2, 1.5, 1.8])
@pytest.mark.parametrize("each", [1e-6, 1e-5, 7e-5, 3e-4])
def test_the_knee_of_a_step_of_fixed_and_proportional_time_is_its_closed_form(each: float, gain: float) -> None:
    fixed = 2e-3
    bound = fixed * (2 - gain) / (2 * each * (gain - 1))
    assert knee(SIZES, rates(SIZES, fixed, each), gain) == next((b for b in SIZES if b > bound), SIZES[-1])


def test_the_knee_is_the_first_size_where_nothing_grows_and_the_last_where_all_does() -> None:
    assert knee(SIZES, [5.0] * len(SIZES)) == SIZES[0]
    assert knee(SIZES, [float(size) for size in SIZES]) == SIZES[-1]


def test_one_slow_measurement_does_not_end_the_climb() -> None:
    clean = rates(SIZES, 2e-3, 1e-5)  # the knee is at 128
    assert knee(SIZES, clean) == 128
    for slow in range(1, 4):
        assert knee(SIZES, [r * (0.6 if i == slow else 1) for i, r in enumerate(clean)]) == 128


def test_under_noise_of_five_percent_the_knee_is_nearly_always_within_a_doubling() -> None:
    random = np.random.default_rng(0)
    clean = rates(SIZES, 2e-3, 1e-5)
    found = [knee(SIZES, [r * float(np.exp(0.05 * random.normal())) for r in clean]) for _ in range(500)]
    assert sum(size in (64, 128, 256) for size in found) >= 490


def test_repeats_take_turns_and_end_where_doubling_twice_has_not_paid() -> None:
    asked: list[int] = []

    def measure(size: int) -> Speed:
        asked.append(size)
        return Speed(size / (1.0 + 0.05 * size), 1.0)  # the knee is above 10

    found = speeds(measure, first=4, most=10_000, repeats=3, doubling_gain=1.5)
    assert asked == [4, 8, 16, 32, 64, 64, 32, 16, 8, 4, 4, 8, 16, 32, 64]
    assert list(found) == [4, 8, 16, 32, 64]


def test_a_first_round_that_ended_too_soon_is_gone_on_with() -> None:
    asked: list[int] = []

    def measure(size: int) -> Speed:
        asked.append(size)
        slow = asked.count(size) == 1 and size in (8, 16)
        return Speed(size * (0.3 if slow else 1.0), 1.0)

    found = speeds(measure, first=4, most=64, repeats=3, doubling_gain=1.5)
    assert {size: speed.samples_per_second for size, speed in found.items()} == {4: 4, 8: 8, 16: 16, 32: 32, 64: 64}


def test_a_size_that_does_not_fit_ends_the_sizes() -> None:
    found = speeds(lambda size: Speed(size, 1.0) if size < 32 else None, first=4, most=64, repeats=1, doubling_gain=1.5)
    assert list(found) == [4, 8, 16]


# ---- what is said


ANSWER = BatchSize(
    Before(64, {"lr": 0.001}, 1437),
    {32: Speed(100.0, 320.0), 64: Speed(190.0, 337.0), 128: Speed(370.0, 346.0), 256: Speed(400.0, 640.0)},
    1.5,
    "sqrt",
    None,
)


def test_the_answer_says_the_knee_first_and_ends_in_what_to_type() -> None:
    lines = ANSWER.said().splitlines()
    assert (
        lines[0]
        == "knee     batch_size=128: 370 samples per second; doubling it gives 1.08 times that, and was to give 1.5"
    )
    assert lines[1] == "largest  not looked for: a CPU's memory is the machine's. To know, add memory_limit_gb=<GB>."
    assert lines[-2] == "An epoch then has 12 steps instead of 23: fewer if the epochs stay."
    assert lines[-1] == "batch_size=128 lr=0.00141"


@pytest.mark.parametrize(
    ("limit", "accumulated", "line"),
    [
        (0.5, 1, "An epoch then has 6 steps instead of 11: fewer if the epochs stay."),
        (15, 1, "An epoch then has 12 steps instead of 15: fewer if the epochs stay."),
        (5, 1, "From batch_size=64 to 128 the lr follows by the square root."),  # 5 steps as before
        (1.0, 4, "An epoch then has 3 steps instead of 6: fewer if the epochs stay."),
    ],
)
def test_the_steps_of_an_epoch_are_those_that_the_recipe_takes(limit: float, accumulated: int, line: str) -> None:
    before = Before(64, {"lr": 0.001}, 1437, limit, accumulated)
    assert BatchSize(before, ANSWER.speeds, 1.5, "sqrt", None).said().splitlines()[-2] == line


def test_lbfgs_is_told_to_take_all_examples() -> None:
    before = Before(1437, {"lr": 1.0}, 1437, wants_all=True)
    fits = Largest(1437, {8: 10, 1437: 1000}, 2000, 2000, 1437)
    fails = Largest(909, {8: 10, 909: 1000, 910: None}, 1000, 1000, 1437)
    said = {id(found): BatchSize(before, ANSWER.speeds, 1.5, "none", found).said() for found in (None, fits, fails)}
    for found in (None, fits):
        assert said[id(found)].splitlines()[-2:] == [
            "lbfgs learns from all examples at once: smaller batches would mislead its search, however fast.",
            "batch_size=full",
        ]
    assert said[id(fails)].splitlines()[-2:] == [
        "They do not fit: choose another optimizer, or a smaller model.",
        "optimizer=adamw",
    ]


def test_the_answer_has_what_fits_beside_the_estimate() -> None:
    found = Largest(909, {8: 52_000_000, 64: 54_800_000, 909: 89_000_000, 910: None}, 10**8, 9 * 10**7, 1437)
    answer = BatchSize(ANSWER.before, ANSWER.speeds, 1.5, "sqrt", found)
    assert answer.said().splitlines()[1:3] == [
        "largest  batch_size=909 (0.089 of 0.1 GB, 10% to stay free), after 4 tries",
        "         estimated 768: 0.0516 GB, and 0.05 MB for each example",
    ]
    rows = {row["batch_size"]: row for row in answer.rows()}
    assert rows[910] == {"batch_size": 910, "peak_bytes": None, "fits": False}
    assert rows[64]["fits"] is True
    assert ("peak_bytes", 909, 89_000_000.0) in list(answer.scalars())
    assert answer.values()["largest"]["estimate"] == 768


# ---- the tool


def test_the_tool_answers_with_a_table_curves_and_what_to_type(tmp_path: Path) -> None:
    outcome = typed(tmp_path, *QUICK, "optimizer=sgd", "hydra.run.dir=here", script=SCRIPT)
    assert outcome.code == 0, outcome.text
    answer = json.loads((tmp_path / "here" / "answer.json").read_text())
    size, lr = answer["knee"]["batch_size"], answer["knee"]["lr"]
    assert lr == pytest.approx(0.1 * size / 64)  # sgd's own lr, and the recipe's batch size
    assert f"\nbatch_size={size} lr={lr:.3g}\n" in outcome.out
    assert answer["training_examples"] == 120
    events = EventAccumulator(str(tmp_path / "here" / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("samples_per_second")][:2] == [16, 32]


@pytest.mark.slow
def test_a_full_batch_counts_its_examples_and_muons_two_lrs_both_follow() -> None:
    answer: Any = tunelab.find_batch_size(*QUICK, "batch_size=full", "optimizer=muon")
    assert answer.before.batch_size == 120
    assert answer.lrs == pytest.approx(
        {"lr": 0.02 * math.sqrt(answer.knee / 120), "optimizer.adamw_lr": 0.001 * math.sqrt(answer.knee / 120)}
    )


def test_steps_are_whole_batches_of_the_size_asked_for_and_as_many(compose: Callable[..., DictConfig]) -> None:
    recipe = compose(*SMALL, "threads=1", "regularization=[early_stopping]", "scheduler=plateau", "warmup_steps=20")
    begun: list[int] = []
    make_steps(recipe, 50, training_of(recipe).examples, 5, lambda: begun.append(1))
    assert begun == [1]
    assert recipe.batch_size == 64


@pytest.mark.parametrize("member", ["dropout", "label_smoothing", "l2"])
def test_members_that_have_no_part_of_their_own_stay(compose: Callable[..., DictConfig], member: str) -> None:
    recipe = compose(*SMALL, "threads=1", f"regularization=[{member},early_stopping]")
    made: list[int] = []
    make_steps(recipe, 50, 120, 2, lambda: made.append(1))
    assert made == [1]


def test_mistakes_are_refused_together(tmp_path: Path) -> None:
    words = ("min_batch_size=0", "headroom_fraction=1", "memory_limit_gb=-1", "doubling_gain=2", "lr=-1")
    assert refused(typed(tmp_path, *words, script=SCRIPT), 1).splitlines() == [
        "`min_batch_size` must be at least 1, got 0. Try min_batch_size=8.",
        "`memory_limit_gb` must be greater than 0, got -1. Try memory_limit_gb=4.",
        "`headroom_fraction` must be less than 1, got 1. Try headroom_fraction=0.1.",
        "`doubling_gain` must be less than 2, got 2. Try doubling_gain=1.5.",
        "`lr` must be greater than 0, got -1. Try lr=0.001.",
    ]
    assert list(tmp_path.iterdir()) == []


def test_what_needs_a_limit_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with mock.patch.object(free_memory, "free_bytes", return_value=14 * 10**9):
        text = refused(typed(tmp_path, *SMALL, "largest=true", script=SCRIPT), 1)
    assert text == (
        "`memory_limit_gb` must be given to find the largest batch that fits on a CPU, got null. "
        "Try memory_limit_gb=7, as 14.0 GB are free, or largest=auto for the speed alone.\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("memory_limit_gb=1e6",),
            "`memory_limit_gb` must be at most the 7.0 GB that are free on this machine, got 1e",
        ),
        (("min_batch_size=64", "max_batch_size=32"), "must be at least twice min_batch_size, got 32 and 64. Try max"),
        (("trainer=ddp",), "`trainer.devices` must be 1, got 2: speed and memory are those of one device. Try trainer"),
        (("min_batch_size=100",), "`min_batch_size` must be at most half of the 120 training examples, got 100. Try"),
    ],
)
def test_what_cannot_be_answered_is_refused(words: tuple[str, ...], sentence: str) -> None:
    with (
        mock.patch.object(free_memory, "free_bytes", return_value=7 * 10**9),
        pytest.raises(ConfigError, match=re.escape(sentence)),
    ):
        tunelab.find_batch_size(*SMALL, *words)


# ---- a process of its own for each try, which takes seconds to begin


def fill(megabytes: int) -> None:
    bytearray(b"1") * (megabytes * 10**6)


def refuse() -> None:
    raise ConfigError("`lr` must be small.")


def fail() -> None:
    raise ValueError("no such thing")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def abort_for_memory() -> None:
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def leave_without_a_word() -> None:
    os.write(2, b"the library is not licensed\n")
    os._exit(3)


@pytest.mark.parametrize(
    ("code", "said", "failure"),
    [
        (-signal.SIGKILL, "", ""),
        (-signal.SIGBUS, "", ""),
        (-signal.SIGABRT, "what():  std::bad_alloc", ""),
        (1, "libgomp: Thread creation failed: Resource temporarily unavailable", ""),
        (-signal.SIGSEGV, "", "The process that tried the steps was ended by SIGSEGV."),
        (3, "a\nb\n", "The process that tried the steps ended with code 3: b"),
    ],
)
def test_only_a_death_for_want_of_memory_is_taken_for_one(code: int, said: str, failure: str) -> None:
    assert _ended(code, said) == Made(None, failure=failure)


@pytest.mark.slow
def test_a_process_that_ends_for_another_reason_is_said_as_that() -> None:
    with pytest.raises(RunFailed, match="was ended by SIGSEGV"):
        peak_of(crash, limit=10**9)
    with pytest.raises(RunFailed, match="ended with code 3: the library is not licensed"):
        peak_of(leave_without_a_word, limit=10**9)
    assert peak_of(abort_for_memory, limit=10**9) is None


@pytest.mark.slow
def test_a_try_is_measured_bounded_and_leaves_nothing_behind() -> None:
    before = free_memory.free_bytes()
    for megabytes in (50, 200):
        assert peak_of(fill, megabytes, limit=10**9) == pytest.approx(megabytes * 1e6, rel=0.1, abs=5e6)
    assert peak_of(fill, 3000, limit=10**9) is None
    assert peak_of(die, limit=10**9) is None
    with pytest.raises(ConfigError, match="`lr` must be small"):
        peak_of(refuse, limit=10**9)
    with pytest.raises(RunFailed, match="ValueError: no such thing"):
        peak_of(fail, limit=10**9)
    gc.collect()
    assert multiprocessing.active_children() == []
    assert before - free_memory.free_bytes() < 10**9  # the server that they are forked from stays


INDEPENDENT = """
import sys
from pathlib import Path
from tunelab.composing import composed
from tunelab.tuning.steps import training_of, make_steps

def size(name):
    line, = [l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name + ":")]
    return int(line.split()[1]) * 1024

import tunelab.tuning.memory
recipe = composed(*sys.argv[2:]).cfg
before = size("VmRSS")
make_steps(recipe, int(sys.argv[1]), 1437, 3)
print(size("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_found_fits_by_another_measure_and_a_third_more_does_not(tmp_path: Path) -> None:
    recipe = ("model=cnn", "size=small", "threads=1")
    words = ("memory_limit_gb=0.13", "repeats=1", "seconds=0.01")
    answer: Any = tunelab.find_batch_size(*recipe, *words)
    found = answer.largest
    assert 8 < found.batch_size < 1437 / 1.3
    assert found.estimate == pytest.approx(found.batch_size, rel=0.5)

    def takes(batch_size: int) -> int:
        command = [sys.executable, "-W", "ignore", "-c", INDEPENDENT, str(batch_size), *recipe]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        return int(done.stdout.splitlines()[-1])

    # the two begin with not quite the same libraries in memory
    apart = takes(8) - found.tried[8]
    assert takes(found.batch_size) - apart <= found.limit
    assert takes(round(found.batch_size * 1.3)) - apart > found.usable


@pytest.mark.slow
def test_the_steps_of_a_try_make_the_memory_of_a_larger_batch(compose: Callable[..., DictConfig]) -> None:
    recipe = compose("model=cnn", "size=tiny", "threads=1")
    small, large = (peak_of(steps_in_child, recipe, size, 1437, limit=10**9) for size in (100, 1400))
    assert small is not None
    assert large is not None
    assert large - small > 1300 * 25_000  # the two convolutions' activations alone are about 30 kB each


@pytest.mark.slow
@pytest.mark.parametrize("words", [("memory_limit_gb=1",), ()], ids=["memory", "speed"])
def test_ctrl_c_ends_in_words_and_leaves_neither_folder_nor_process(tmp_path: Path, words: tuple[str, ...]) -> None:
    command = [sys.executable, str(REPOSITORY / SCRIPT), "model=cnn", "size=tiny", "repeats=10", *words]
    process = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert re.match(r"\d+ of \d+  batch_size=", process.stderr.readline())
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Interrupted: what was measured so far decides nothing, and is not kept." in said
    assert "Traceback" not in said
    assert list(tmp_path.glob("outputs/*/*/*")) == []
    assert left_behind(tmp_path) == []
