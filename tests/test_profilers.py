"""Where a fit spends its time: the phases add up, are charged what they took, and looking changes nothing."""

from __future__ import annotations

import cProfile
import io
import json
import logging
import pstats
import re
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import Start, _composed, options
from lightning import LightningModule
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tunelab.callbacks import Checkpoint, Gradients
from tunelab.checkpoints import read_checkpoint
from tunelab.data.memory import MemoryLoader
from tunelab.errors import ConfigError
from tunelab.fitting import build
from tunelab.loggers import LOGGING, Csv
from tunelab.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from tunelab.profilers.advanced import function_name
from tunelab.profilers.fit import Report, table_of, timed
from tunelab.profilers.pytorch import asking, size, summed
from tunelab.profilers.simple import LOOP, PHASES, classified
from tunelab.run import train
from tunelab.tasks import SupervisedTask

STEPS = 23  # of an epoch of digits
SHORT = ("size=tiny", "epochs=2", "trainer.enable_progress_bar=false")


def table(folder):
    """Phase or part -> (time per step, share, calls) of a run's profile.txt, in its unit."""
    found = {}
    for line in (folder / "profile.txt").read_text().splitlines():
        row = re.fullmatch(r" *([\d,.]+) +([\d.]+)% +([\d,]*) {2,}(\S.*)", line)
        if row:
            numbers = [float(number.replace(",", "") or 0) for number in row.groups()[:3]]
            found[row[4].strip()] = tuple(numbers)
    return found


class Clock:
    """Stands still but where a test lets it go on."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tunelab.profilers.simple.time", SimpleNamespace(perf_counter=clock))
    return clock


def test_every_profiler_file_builds_its_class(compose):
    kinds = {name: type(build(compose(f"profiler={name}").profiler)) for name in options("profiler")}
    assert kinds == {
        "none": type(None),
        "simple": SimpleProfiler,
        "advanced": AdvancedProfiler,
        "pytorch": PyTorchProfiler,
    }


# ---- looking changes nothing


@pytest.mark.slow
def test_every_bit_of_a_run_is_the_same_under_every_profiler(fit):
    rows, weights = {}, {}
    for profiler in options("profiler"):
        _, folder = fit(*SHORT, "dropout=0.1", f"profiler={profiler}")
        rows[profiler] = (folder / "metrics.csv").read_text()
        weights[profiler] = read_checkpoint(folder / "checkpoints" / "last.ckpt", "resume")["state_dict"]
    for profiler in options("profiler"):
        assert rows[profiler] == rows["none"]
        assert all(torch.equal(weights[profiler][name], tensor) for name, tensor in weights["none"].items())


# ---- simple


PLACES = {
    "data": (MemoryLoader, "__iter__"),
    "forward": (SupervisedTask, "training_loss"),
    "backward": (torch.Tensor, "backward"),
    "optimizer": (torch.optim.AdamW, "_init_group"),
    "callbacks": (Gradients, "on_before_optimizer_step"),
    "logging": (Csv, "log_metrics"),
    "validation": (SupervisedTask, "validation_step"),
    "checkpoints": (Checkpoint, "on_train_epoch_end"),
    LOOP: (_LoggerConnector, "update_train_step_metrics"),
}


def test_there_is_a_place_for_each_phase():
    assert tuple(PLACES) == PHASES


@pytest.mark.parametrize("phase", PHASES)
def test_time_that_passes_in_a_phase_is_charged_to_it_alone(fit, clock, monkeypatch, phase):
    owner, name = PLACES[phase]
    original = getattr(owner, name)

    def batches(self):
        for batch in original(self):
            clock.now += 0.001
            yield batch

    def slower(*args, **kwargs):
        clock.now += 0.001
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, batches if phase == "data" else slower)
    _, folder = fit(*SHORT, "profiler=simple", "trainer.limit_val_batches=0" if phase == "data" else "test=false")
    rows = table(folder)
    if phase == LOOP:  # what it does after the two steps before a validation is counted as the validation's
        assert (rows[LOOP][0], rows["loop"][0]) == (round(1000 * 43 / 45, 1), round(1000 * 2 / 45, 1))
        return
    assert rows[phase][1] == rows["together"][1] == 100.0
    assert {rows[other][0] for other in PHASES if other in rows and other != phase} == {0.0}
    if phase in ("data", "forward", "backward"):
        assert rows[phase][0] == 1000.0  # µs in each of the 45 steps


def test_what_is_nested_in_an_action_is_charged_to_itself(clock):
    profiler = watching()
    with profiler.profile("[EpochLoop].train_dataloader_next"):
        clock.now += 1
    with profiler.profile("run_training_batch"):
        clock.now += 2
        with profiler.profile("[LightningModule]Task.optimizer_step"):
            clock.now += 4
            with profiler.profile("[Strategy]Single.training_step"):
                clock.now += 8
            with profiler.profile("[Strategy]Single.backward"):
                clock.now += 16
                with profiler.profile("[Callback]Mine.on_after_backward"):
                    clock.now += 32
            clock.now += 64
    with profiler.profile("[LightningModule]Task.on_train_batch_end"), profiler.profile(LOGGING):
        clock.now += 128
    profiler.finish()
    seconds = {phase: sum(row.seconds for row in parts.values()) for phase, parts in profiler.phases().items()}
    assert seconds == {
        **{"data": 1, "forward": 8, "backward": 16, "optimizer": 68, "callbacks": 32, "logging": 128},
        LOOP: 2,
    }


def watching(device="cpu"):
    """A simple profiler in a fit that is only pretended."""
    profiler = SimpleProfiler()
    profiler.trainer = SimpleNamespace(
        validating=False, strategy=SimpleNamespace(root_device=torch.device(device)), loggers=[]
    )
    profiler.prepare(profiler.trainer)
    return profiler


def test_a_device_that_works_beside_the_processor_is_waited_for_where_a_phase_ends(clock, monkeypatch):
    asked_for = [0.0]

    def synchronize():
        clock.now += asked_for[0]
        asked_for[0] = 0.0

    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    profiler = watching("cuda")
    with profiler.profile("[EpochLoop].train_dataloader_next"):
        pass
    with profiler.profile("run_training_batch"):
        for action, seconds in (("training_step", 1.0), ("backward", 2.0)):
            with profiler.profile(f"[Strategy]Single.{action}"):
                asked_for[0] += seconds  # kernels are queued; the call returns at once
    profiler.finish()
    phases = profiler.phases()
    assert phases["forward"]["training_step"].seconds == 1.0
    assert phases["backward"]["backward"].seconds == 2.0
    assert "device was waited for" in str(profiler.report())


def test_on_the_cpu_nothing_is_waited_for(monkeypatch):
    def synchronize():
        raise AssertionError

    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    profiler = watching()
    with profiler.profile("[EpochLoop].train_dataloader_next"):
        pass
    profiler.finish()


def test_a_phase_is_called_once_a_step_and_the_first_step_is_left_out(fit):
    _, folder = fit(*SHORT, "profiler=simple")
    rows = table(folder)
    steps = 2 * STEPS - 1
    assert (folder / "profile.txt").read_text().startswith(f"Where {steps} steps spent ")
    calls = {phase: rows[phase][2] for phase in ("data", "forward", "backward", "optimizer", "validation")}
    assert calls == {**dict.fromkeys(("data", "forward", "backward", "optimizer"), steps), "validation": 2}
    assert not re.search(r"% +0 ", (folder / "profile.txt").read_text())  # what is not called has no number


def test_when_gradients_accumulate_the_optimizer_is_called_less_often(fit):
    _, folder = fit(*SHORT, "profiler=simple", "trainer.accumulate_grad_batches=2")
    rows = table(folder)
    assert rows["forward"][2] == 2 * STEPS - 1
    assert rows["optimizer"][2] == 2 * ((STEPS + 1) // 2)  # the last batch of an epoch makes a step of its own


def test_the_phases_add_up_to_the_time_of_the_fit(fit, monkeypatch):
    # processor time, which others on the machine do not lengthen; the fit is timed by the same clock
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    result, folder = fit("size=tiny", "epochs=6", "trainer.enable_progress_bar=false", "profiler=simple")
    rows, text = table(folder), (folder / "profile.txt").read_text()
    first = float(re.search(r"The first step is left out: it took ([\d.,]+) ms", text)[1].replace(",", "")) / 1e3
    whole = rows["together"][0] * (6 * STEPS - 1) / (1e6 if "µs/step" in text else 1e3)
    assert whole + first == pytest.approx(result["seconds"], rel=0.05)
    assert sum(rows[phase][0] for phase in PHASES if phase in rows) == pytest.approx(rows["together"][0], rel=1e-3)
    assert sum(rows[phase][1] for phase in PHASES if phase in rows) == pytest.approx(100, abs=0.5)


def test_a_run_of_one_step_says_that_it_is_warming_up(fit):
    _, folder = fit("debug=one_batch", "trainer.enable_progress_bar=false", "profiler=simple")
    text = (folder / "profile.txt").read_text()
    assert text.startswith("Where 1 step spent ")
    assert "The only step: what is set up in a first step is in it." in text


@pytest.mark.parametrize(
    ("action", "validating", "phase", "part"),
    [
        ("[EpochLoop].train_dataloader_next", False, "data", "train_dataloader_next"),
        ("[Strategy]SingleDeviceStrategy.batch_to_device", True, "validation", "batch_to_device"),
        (
            "[Callback]ModelCheckpoint{'monitor': 'val.loss'}.on_train_epoch_end",
            False,
            "checkpoints",
            "ModelCheckpoint",
        ),
        ("[Callback]Mine{'every': 0.5}.on_train_batch_end", False, "callbacks", "Mine"),
        ("[LightningModule]Mine.configure_gradient_clipping", False, "optimizer", "configure_gradient_clipping"),
        ("[LightningModule]Mine.on_train_batch_end", False, "callbacks", "Mine"),
        ("[Strategy]DDPStrategy.on_train_batch_start", False, LOOP, "on_train_batch_start"),
        ("run_training_epoch", True, "validation", "loop"),
        (LOGGING, True, "logging", "logging"),
        ("my own", False, "my own", "my own"),
    ],
)
def test_an_action_belongs_to_the_phase_that_its_name_says(action, validating, phase, part):
    assert classified(action, validating) == (phase, part)


def test_an_action_that_the_user_profiles_has_a_row_of_its_own(fit, clock, monkeypatch):
    original = SupervisedTask.training_loss

    def mine(self, batch):
        with self.trainer.profiler.profile("my loss"):
            clock.now += 0.001
            return original(self, batch)

    monkeypatch.setattr(SupervisedTask, "training_loss", mine)
    _, folder = fit(*SHORT, "profiler=simple", "trainer.limit_val_batches=0", "objective=val/loss", "test=false")
    assert table(folder)["my loss"] == (1000.0, 100.0, 2 * STEPS - 1)


# ---- advanced


def test_all_functions_of_all_steps_but_the_first_are_in_a_file_that_pstats_opens(fit):
    _, folder = fit(*SHORT, "profiler=advanced")
    stats = pstats.Stats(str(folder / "profile.prof"), stream=io.StringIO()).stats
    calls = {name: found[1] for (_, _, name), found in stats.items()}
    assert calls["training_loss"] == 2 * STEPS - 1
    assert calls["on_validation_epoch_end"] % 2 == 0
    rows = table(folder)
    assert len(rows) == 15
    times = [row[0] for row in rows.values()]
    assert times == sorted(times, reverse=True)


def test_the_table_has_as_many_functions_as_asked_for(fit):
    _, folder = fit(*SHORT, "profiler=advanced", "profiler.rows=4")
    assert len(table(folder)) == 4


def test_a_second_profiler_of_python_is_refused(fit, monkeypatch):
    watched = "`profiler` must not be advanced where another profiler of Python watches .* try profiler=simple"
    sys.setprofile(lambda *_: None)
    try:
        with pytest.raises(ConfigError, match=watched):
            fit(*SHORT, "profiler=advanced")
    finally:
        sys.setprofile(None)

    class Taken(cProfile.Profile):  # what Python does from 3.12 on
        def enable(self):
            raise ValueError("Another profiling tool is already active")

    monkeypatch.setattr(cProfile, "Profile", Taken)
    with pytest.raises(ConfigError, match=watched):
        fit(*SHORT, "profiler=advanced")


def test_functions_are_named_so_that_they_can_be_found():
    assert function_name("<built-in method torch._C._nn.linear>") == "torch._C._nn.linear"
    assert function_name("<method 'append' of 'list' objects>") == "list.append"
    here = LightningModule.training_step.__code__
    line = here.co_firstlineno
    assert function_name(here) == f"LightningModule.training_step  lightning/pytorch/core/module.py:{line}"


# ---- pytorch


def trace(folder):
    return json.loads((folder / "trace.json").read_text())["traceEvents"]


def test_the_steps_kept_are_those_after_waiting_and_warming_up(fit):
    _, folder = fit(*SHORT, "profiler=pytorch", "profiler.wait=2", "profiler.active=4")
    steps = [event["name"] for event in trace(folder) if event["name"].startswith("ProfilerStep")]
    assert sorted(set(steps)) == [f"ProfilerStep#{number}" for number in (3, 4, 5, 6)]  # from 0
    assert (folder / "profile.txt").read_text().startswith("Where steps 4 to 7 spent ")


def test_the_trace_marks_the_actions_of_the_loop_and_the_layers(fit):
    _, folder = fit(*SHORT, "profiler=pytorch")
    names = [event["name"] for event in trace(folder)]
    assert sum(name.endswith(".training_step") for name in names) == 3
    assert sum(name.endswith("Linear: model.head") for name in names) == 3


def test_an_operation_is_counted_with_what_it_allocates(fit):
    _, folder = fit(*SHORT, "profiler=pytorch", "profiler.rows=100")
    row = next(line for line in (folder / "profile.txt").read_text().splitlines() if "addmm [32] [64,64]" in line)
    # the first layer of the mlp: 64 examples of 64 pixels to 32 units, 4 bytes each
    assert re.fullmatch(r" *[\d,.]+ +[\d.]+% +1 +8 kB +addmm \[32\] \[64,64\] \[64,32\]", row)


@pytest.mark.parametrize(("steps", "which"), [(1, "step 1"), (2, "step 2"), (4, "steps 3 to 4"), (5, "steps 3 to 5")])
def test_a_run_too_short_for_the_schedule_keeps_what_there_is_and_says_so(fit, caplog, steps, which):
    caplog.set_level(logging.INFO, "tunelab")
    short = ("size=tiny", "epochs=1", "trainer.enable_progress_bar=false", f"trainer.limit_train_batches={steps}")
    _, folder = fit(*short, "profiler=pytorch")
    assert (folder / "profile.txt").read_text().startswith(f"Where {which} spent ")
    assert any("addmm" in event["name"] for event in trace(folder))
    assert ("is shorter than the 5 of profiler.wait, warmup and active" in caplog.text) == (steps < 5)


@pytest.mark.slow
def test_with_stacks_an_operation_is_named_with_the_line_that_asked_for_it(fit):
    _, folder = fit(*SHORT, "profiler=pytorch", "profiler.with_stack=true", "profiler.active=1")
    text = (folder / "profile.txt").read_text()
    assert re.search(r"addmm \[32\] \[64,64\] \[64,32\] +\S*tunelab/models/mlp.py\(\d+\): forward", text)


def test_the_innermost_line_that_is_not_pytorchs_asked():
    stack = ["<built-in function linear>", "torch/nn/modules/linear.py(130): forward", "nn.Module: Linear_0"]
    assert asking([*stack, "mlp.py(40): forward", "task.py(9): step"]) == "mlp.py(40): forward"
    assert asking(stack) == ""


def test_operations_are_summed_by_name_and_shape_and_functions_of_python_left_out():
    def event(name, shapes, microseconds, kind="cpu_op", allocated=0):
        return SimpleNamespace(
            **{"name": name, "input_shapes": shapes, "self_cpu_time_total": microseconds, "activity_type": kind},
            **{"self_cpu_memory_usage": allocated, "self_device_memory_usage": 0, "self_device_time_total": 0},
            stack=[],
        )

    events = [
        event("aten::mm", [[2, 3], [3, 4]], 10, allocated=32),
        event("aten::mm", [[2, 3], [3, 4]], 30, allocated=-32),
        event("aten::mm", [[4, 3], [3, 4]], 5),
        event("forward", [], 1000, kind="python_function"),
    ]
    found = {o.name: (round(o.seconds * 1e6), o.bytes, o.calls) for o in summed(events, by_shape=True)}
    assert found == {"mm [2,3] [3,4]": (40, 32, 2), "mm [4,3] [3,4]": (5, 0, 1)}
    assert [(o.name, o.calls) for o in summed(events, by_shape=False)] == [("mm", 3)]


# ---- shown and kept


def test_bytes_and_times_are_in_the_unit_that_suits_them():
    assert [size(count) for count in (0, 12, 999, 1000, 8192, 5e6, 2e9)] == [
        *("", "12 B", "999 B", "1 kB", "8 kB", "5 MB", "2 GB"),
    ]
    assert (timed(123e-6, 0.001), timed(0.0123, 0.02)) == ("123.0", "12.30")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_numbers_stay_whole_in_a_narrow_terminal_and_names_give_way(width):
    rows = table_of("function", "µs/step", "share", "calls/step")
    rows.add_row("1,234.5", "100.0%", "12,345.6", "a.very.long.name" * 10)
    text = io.StringIO()
    Report("Where it went", rows, []).print(Console(file=text, width=width))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert re.match(r"1,234.5 +100.0% +12,345.6  a.very.long", lines[-1].strip())


@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_the_report_is_shown_in_the_terminal_and_kept_in_the_folder_and_in_tensorboard(fit, capsys, profiler):
    _, folder = fit(*SHORT, f"profiler={profiler}")
    text = (folder / "profile.txt").read_text()
    assert capsys.readouterr().out.count(text.splitlines()[0]) == 1
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    (written,) = events.Tensors("profile/text_summary")
    assert written.step == 2 * STEPS
    shown = written.tensor_proto.string_val[0].decode()
    assert shown == "\n".join(f"    {line}" for line in text.splitlines())


@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_an_interrupted_run_shows_what_it_did_and_a_resumed_one_what_it_did_after(
    fit, monkeypatch, capsys, tmp_path, profiler
):
    original, steps = Gradients.on_before_optimizer_step, []

    def interrupted(self, *args):
        steps.append(1)
        if len(steps) == 10:
            signal.raise_signal(signal.SIGINT)
        original(self, *args)

    monkeypatch.setattr(Gradients, "on_before_optimizer_step", interrupted)
    first = {"simple": "Where 9 steps", "advanced": "Where 9 steps", "pytorch": "Where steps 3 to 5"}[profiler]
    rest = f"Where {2 * STEPS - 10 - 1} steps"
    with pytest.raises(SystemExit) as stop:
        fit(*SHORT, f"profiler={profiler}", "callbacks=[checkpoint,gradients]")
    assert stop.value.code == 130
    out = capsys.readouterr().out
    assert out.count(first) == out.count("Where ") == 1
    monkeypatch.undo()
    cfg, choices = _composed((*SHORT, f"profiler={profiler}"))
    folder = tmp_path / "run1"
    train(cfg, folder, Start("python train.py", [], choices), checkpoint=folder / "checkpoints" / "last.ckpt")
    assert capsys.readouterr().out.count(rest if profiler != "pytorch" else first) == 1


def test_a_fit_that_ends_before_its_first_step_shows_nothing(fit, monkeypatch, capsys):
    def fails(*_):
        raise ConfigError("`x` must not.")

    monkeypatch.setattr(Gradients, "on_fit_start", fails, raising=False)
    with pytest.raises(ConfigError):
        fit(*SHORT, "profiler=simple", "callbacks=[gradients]")
    assert "Where" not in capsys.readouterr().out
