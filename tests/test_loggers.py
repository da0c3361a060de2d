"""One line per step in the csv, the same values in TensorBoard, and a HParams tab with every run's real objective."""

import csv
import random
import re
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import options
from lightning.pytorch.profilers import PassThroughProfiler
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

from tunelab.fitting import build
from tunelab.loggers import Csv, TensorBoard, is_written, write
from tunelab.services import Mlflow, Wandb

SMALL = ("data=breast_cancer", "size=tiny", "epochs=2")


def _lines(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def _rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _scalars(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_every_logger_file_builds_its_class(compose, tmp_path):
    kinds = {name: type(build(compose(f"logger=[{name}]").logger[name])(str(tmp_path))) for name in options("logger")}
    assert kinds == {"csv": Csv, "mlflow": Mlflow, "tensorboard": TensorBoard, "wandb": Wandb}


# ---- csv


def test_values_of_one_step_make_one_line(tmp_path):
    logger = Csv(str(tmp_path))
    logger.log_metrics({"train/loss": 0.5, "epoch": 0}, 10)
    logger.log_metrics({"lr": 0.1, "epoch": 0}, 10)
    logger.log_metrics({"train/loss": 0.25, "epoch": 1}, 20)
    logger.save()
    assert _lines(tmp_path) == [
        ["step", "epoch", "train/loss", "lr"],
        ["10", "0", "0.5", "0.1"],
        ["20", "1", "0.25", ""],
    ]


def test_a_metric_that_comes_later_adds_a_column_to_the_lines_before(tmp_path):
    logger = Csv(str(tmp_path))
    for step, metrics in enumerate([{"a": 1.0}, {"b": 2.0}, {"a": 3.0, "c": 4.0}], start=1):
        logger.log_metrics({**metrics, "epoch": 0}, step)
    logger.finalize("success")
    assert _lines(tmp_path) == [
        ["step", "epoch", "a", "b", "c"],
        ["1", "0", "1.0", "", ""],
        ["2", "0", "", "2.0", ""],
        ["3", "0", "3.0", "", "4.0"],
    ]


def test_a_metric_written_twice_at_a_step_has_its_last_value(tmp_path):
    logger = Csv(str(tmp_path))
    logger.log_metrics({"a": 1.0}, 1)
    logger.log_metrics({"a": 2.0}, 1)
    logger.save()
    assert _lines(tmp_path)[1:] == [["1", "", "2.0"]]


def test_saving_twice_writes_a_line_once(tmp_path):
    logger = Csv(str(tmp_path))
    logger.log_metrics({"a": 1.0}, 1)
    logger.save()
    logger.save()
    assert len(_lines(tmp_path)) == 2


def test_values_of_a_step_that_was_saved_before_join_its_line(tmp_path):
    # a checkpoint saves at the end of an epoch; the test score comes at the same step
    logger = Csv(str(tmp_path))
    logger.log_metrics({"val/loss": 1.0, "epoch": 0}, 5)
    logger.save()
    logger.log_metrics({"test/loss": 2.0, "epoch": 0}, 5)
    logger.save()
    assert [row["step"] for row in _rows(tmp_path)] == ["5"]
    assert _rows(tmp_path)[0]["val/loss"] == "1.0"
    assert _rows(tmp_path)[0]["test/loss"] == "2.0"


def test_lines_wait_for_a_second_to_be_written_together(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("tunelab.loggers.time.monotonic", lambda: now)
    logger = Csv(str(tmp_path))
    for step, seconds in enumerate([0.0, 0.5, 0.75, 1.5, 1.75], start=1):
        now = 100.0 + seconds
        logger.log_metrics({"a": float(step)}, step)
    assert [line[0] for line in _lines(tmp_path)[1:]] == ["1", "2", "3"]
    logger.save()
    assert [line[0] for line in _lines(tmp_path)[1:]] == ["1", "2", "3", "4", "5"]


def test_a_number_is_read_back_as_it_was_written(tmp_path):
    logger = Csv(str(tmp_path))
    values = [1 / 3, 1e-300, 123456789.123456789, float("inf")]
    for step, value in enumerate(values):
        logger.log_metrics({"a": value}, step)
    logger.save()
    assert [float(row["a"]) for row in _rows(tmp_path)] == values


def test_a_resume_drops_the_lines_after_its_step_and_writes_them_again(tmp_path):
    first = Csv(str(tmp_path))
    for step in (10, 20, 30, 40):
        first.log_metrics({"a": float(step), "epoch": step // 20}, step)
    first.save()
    second = Csv(str(tmp_path))
    second.resume_from(20)
    assert [row["step"] for row in _rows(tmp_path)] == ["10", "20"]
    second.log_metrics({"a": -30.0, "b": 1.0, "epoch": 1}, 30)
    second.save()
    assert _lines(tmp_path) == [
        ["step", "epoch", "a", "b"],
        ["10", "0", "10.0", ""],
        ["20", "1", "20.0", ""],
        ["30", "1", "-30.0", "1.0"],
    ]


def test_a_resume_from_the_middle_of_a_step_completes_its_line(tmp_path):
    # interrupted between the last step of an epoch and its validation, or in it
    for before in ({"train/loss": 1.0}, {"train/loss": 1.0, "val/loss": 7.0}):
        (tmp_path / "metrics.csv").unlink(missing_ok=True)
        first = Csv(str(tmp_path))
        first.log_metrics({"train/loss": 2.0, "epoch": 0}, 10)
        first.log_metrics({**before, "epoch": 0}, 20)
        first.finalize("failed")
        second = Csv(str(tmp_path))
        second.resume_from(20)
        second.log_metrics({"val/loss": 0.5, "epoch": 0}, 20)
        second.log_metrics({"train/loss": 0.25, "epoch": 1}, 30)
        second.save()
        assert _lines(tmp_path) == [
            ["step", "epoch", "train/loss", "val/loss"],
            ["10", "0", "2.0", ""],
            ["20", "0", "1.0", "0.5"],
            ["30", "1", "0.25", ""],
        ]


def test_a_resume_from_between_two_lines_joins_neither(tmp_path):
    first = Csv(str(tmp_path))
    for step in (10, 20):
        first.log_metrics({"a": float(step), "epoch": 0}, step)
    first.save()
    second = Csv(str(tmp_path))
    second.resume_from(15)
    second.log_metrics({"a": 20.0, "epoch": 0}, 20)
    second.save()
    assert _lines(tmp_path)[1:] == [["10", "0", "10.0"], ["20", "0", "20.0"]]


def test_a_resume_from_before_the_first_line_keeps_none_of_them(tmp_path):
    first = Csv(str(tmp_path))
    first.log_metrics({"a": 1.0, "epoch": 0}, 10)
    first.save()
    second = Csv(str(tmp_path))
    second.resume_from(0)
    second.log_metrics({"a": 2.0, "epoch": 0}, 10)
    second.save()
    assert _lines(tmp_path) == [["step", "epoch", "a"], ["10", "0", "2.0"]]


HEADER, LINES = "step,epoch,a\r\n", ["10,0,1.0\r\n", "20,1,2.0\r\n", "30,1,3.0\r\n"]
DAMAGED = {  # what is in the file; the steps that stay, and what goes to the file beside it
    "a step that is no number": (HEADER + LINES[0] + "2x,1,2.0\r\n" + LINES[2], ["10", "30"], ["2x,1,2.0"]),
    "zeros in place of the end": (HEADER + LINES[0] + LINES[1] + "30,1" + "\0" * 200_000, ["10", "20"], ["30,1"]),
    "zeros in place of a line": (HEADER + LINES[0] + "\0" * 5000 + LINES[2], ["10", "30"], []),
    "a torn last line": (HEADER + LINES[0] + LINES[1] + "3", ["10", "20"], ["3"]),
    "a torn last value": (HEADER + LINES[0] + LINES[1] + "30,1,3.", ["10", "20"], ["30,1,3."]),
    "a line joined to a torn one": (HEADER + LINES[0] + "20,1,2." + LINES[2], ["10"], ["20,1,2.30,1,3.0"]),
    "a line torn short": (HEADER + LINES[0] + "20\r\n" + LINES[2], ["10", "30"], ["20"]),
    "no header": ("".join(LINES), [], ["10,0,1.0", "20,1,2.0", "30,1,3.0"]),
    "zeros alone": ("\0" * 5000, [], []),
    "bytes that are no text": (HEADER + LINES[0] + "2\udcff,1,2.0\r\n" + LINES[2], ["10", "30"], ["2\ufffd,1,2.0"]),
}


@pytest.mark.parametrize(("text", "steps", "aside"), DAMAGED.values(), ids=DAMAGED)
def test_a_resume_puts_lines_that_are_damaged_aside_and_says_so_in_a_line(tmp_path, caplog, text, steps, aside):
    (tmp_path / "metrics.csv").write_bytes(text.encode(errors="surrogateescape"))
    logger = Csv(str(tmp_path))
    logger.resume_from(30)
    assert [row["step"] for row in _rows(tmp_path)] == steps
    logger.log_metrics({"a": 4.0, "epoch": 2}, 40)
    logger.save()
    assert _lines(tmp_path)[0] == ["step", "epoch", "a"]
    assert [row["step"] for row in _rows(tmp_path)] == [*steps, "40"]
    assert _aside(tmp_path) == ([HEADER.strip()] if aside and steps else []) + aside
    lines = "1 torn line" if len(aside) == 1 else f"{len(aside)} torn lines"
    zeros = ["zeros stand in the place of lines"] if "\0" in text else []
    moved = [f"{lines} went to metrics.before_resume.csv"] if aside else []
    assert caplog.messages == [f"{tmp_path / 'metrics.csv'} is damaged: {', and '.join([*zeros, *moved])}."]


def _aside(folder):
    path = folder / "metrics.before_resume.csv"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_order_of_its_lines_a_resume_goes_on_as_the_uninterrupted_run_and_loses_no_line(tmp_path, seed):
    # a task of the user's own logs a step behind ours, validations come back to a step, saves fall anywhere
    draw = random.Random(seed)
    logged = [(max(0, n // 3 + draw.choice((0, -1))), {f"m{draw.randrange(4)}": draw.random()}) for n in range(60)]
    saved, killed = sorted(draw.sample(range(60), 2))

    def run(folder, steps):
        logger = Csv(str(folder))
        for number, (step, metrics) in enumerate(logged[:steps]):
            if number == saved:
                logger.save()
                kept = logger.lines
            if draw.random() < 0.2:
                logger.save()
            logger.log_metrics({**metrics, "epoch": step // 5}, step)
        logger.save()
        return kept

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    run(tmp_path / "whole", 60)
    lines = run(tmp_path / "cut", killed)
    before = (tmp_path / "cut" / "metrics.csv").read_text()
    again = Csv(str(tmp_path / "cut"))
    again.resume_from(logged[saved][0], lines)
    there = (tmp_path / "cut" / "metrics.csv").read_text() + "\n".join(_aside(tmp_path / "cut"))
    assert set(before.splitlines()) <= set(there.splitlines())  # not one has gone
    for step, metrics in logged[saved:]:
        again.log_metrics({**metrics, "epoch": step // 5}, step)
    again.close()
    assert _rows(tmp_path / "cut") == _rows(tmp_path / "whole")


def test_a_resume_in_an_empty_folder_begins_a_file(tmp_path):
    logger = Csv(str(tmp_path))
    logger.resume_from(5)
    logger.log_metrics({"a": 1.0}, 6)
    logger.save()
    assert _lines(tmp_path) == [["step", "epoch", "a"], ["6", "", "1.0"]]


def test_the_csv_of_a_run_has_each_step_once_in_order(fit):
    _, folder = fit(*SMALL, "trainer.log_every_n_steps=3")
    steps = [int(row["step"]) for row in _rows(folder)]
    assert steps == sorted(set(steps))


# ---- TensorBoard


def test_tensorboard_has_the_values_of_the_csv(fit):
    _, folder = fit(*SMALL, "trainer.log_every_n_steps=2")
    scalars = _scalars(folder)
    by_metric = {}
    for row in _rows(folder):
        for metric, value in row.items():
            if metric not in ("step", "epoch") and value:
                by_metric.setdefault(metric, {})[int(row["step"])] = float(value)
    # what depends on the clock would differ between two equal runs
    assert set(scalars) == set(by_metric) | {"throughput/samples_per_second", "throughput/memory_mb"}
    for metric, values in by_metric.items():
        assert scalars[metric] == pytest.approx(values, rel=1e-6), metric
    expected = {"best/val/accuracy", "gradients/norm", "lr", "test/accuracy", "test/loss"}
    assert expected | {"train/loss", "val/accuracy", "val/loss"} <= set(by_metric)


def test_a_run_leaves_one_event_file_and_no_other_file_of_tensorboard(fit):
    _, folder = fit(*SMALL)
    (events,) = (folder / "tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents.")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("checkpoints", "config.yaml", "data_spec.json", "facts.json", "members.npz", "metrics.csv"),
        *("result.json", "run.json"),
        "tensorboard",
    ]


def test_a_run_without_loggers_writes_no_metrics(fit):
    _, folder = fit(*SMALL, "logger=[]")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("checkpoints", "config.yaml", "data_spec.json", "facts.json", "members.npz", "result.json", "run.json")
    ]


def test_a_resumed_tensorboard_hides_what_was_written_after_its_step(tmp_path):
    first = TensorBoard(str(tmp_path))
    for step in (1, 2, 3, 4):
        first.log_metrics({"a": float(step)}, step)
    first.close()
    second = TensorBoard(str(tmp_path))
    second.resume_from(2)
    second.log_metrics({"a": -3.0}, 3)
    second.close()
    assert _scalars(tmp_path) == {"a": {1: 1.0, 2: 2.0, 3: -3.0}}


def test_a_resume_from_the_middle_of_a_step_draws_no_point_twice(tmp_path):
    first = TensorBoard(str(tmp_path))
    first.log_metrics({"a": 1.0}, 1)
    first.log_metrics({"a": 2.0}, 2)
    first.log_metrics({"b": 2.5}, 2)
    first.log_metrics({"a": 3.0}, 3)
    first.close()
    for _ in range(2):  # it is interrupted at the same step again
        later = TensorBoard(str(tmp_path))
        later.resume_from(2)
        later.log_metrics({"b": 2.5}, 2)
        later.log_metrics({"c": 2.75}, 2)
        later.log_metrics({"a": -3.0}, 3)
        later.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in "abc"}
    assert points == {"a": [(1, 1.0), (2, 2.0), (3, -3.0)], "b": [(2, 2.5)], "c": [(2, 2.75)]}


def _events(folder):
    (path,) = (folder / "tensorboard").iterdir()
    return list(EventFileLoader(str(path)).Load())


def test_the_scalars_of_a_step_are_one_event_of_the_time_of_the_first(tmp_path):
    logger, times = TensorBoard(str(tmp_path)), [time.time()]
    for step, metrics in [(1, {"a": 1.0, "b": 2.0}), (1, {"c": 3.0, "epoch": 0}), (2, {"a": 4.0})]:
        logger.log_metrics(metrics, step)
        times.append(time.time())
    logger.close()
    first, second = (event for event in _events(tmp_path) if event.step)
    assert (first.step, [value.tag for value in first.summary.value]) == (1, ["a", "b", "c"])
    assert (second.step, [value.tag for value in second.summary.value]) == (2, ["a"])
    assert times[0] <= first.wall_time <= times[1] <= times[2] <= second.wall_time <= times[3]


def test_the_custom_scalars_tab_draws_what_a_run_writes_and_is_told_once(fit):
    _, folder = fit(*SMALL, "clipping=norm")
    told = [v for event in _events(folder) for v in event.summary.value if v.tag == "custom_scalars__config__"]
    (layout,) = (layout_pb2.Layout.FromString(value.tensor.string_val[0]) for value in told)
    tags = _scalars(folder)
    drawn = {
        chart.title: {tag for tag in tags for pattern in chart.multiline.tag if re.match(pattern, tag)}
        for category in layout.category
        for chart in category.chart
    }
    layers, activations = ("hidden1", "head"), ("activation1",)
    assert drawn == {
        "loss": {"train/loss", "val/loss"},
        "scores": {"val/accuracy"},
        "gradient norm": {f"layers/gradient_norm/{layer}" for layer in layers},
        "update ratio (healthy near 1e-3)": {f"layers/update_ratio/{layer}" for layer in layers},
        "learning rate": {"lr"},
        "gradient norm, all layers": {"gradients/norm"},
        "samples per second": {"throughput/samples_per_second"},
        "share of dead units": {f"layers/dead_share/{layer}" for layer in activations},
    }


def test_a_histogram_leaves_out_what_is_not_finite(tmp_path):
    logger = TensorBoard(str(tmp_path))
    logger.log_histogram("some", torch.tensor([1.0, float("nan"), float("inf"), 2.0]), 1)
    logger.log_histogram("none", torch.tensor([float("nan")]), 1)
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["histograms"] == ["some"]
    drawn = events.Histograms("some")[0].histogram_value
    assert (drawn.num, drawn.min, drawn.max, drawn.sum) == (2, 1.0, 2.0, 3.0)


# ---- HParams


def _hparams(folder):
    """What TensorBoard's own backend serves to the HParams tab: the columns, and the groups of runs."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    asked = RequestContext()
    experiment = get_experiment.Handler(asked, context, "", api_pb2.GetExperimentRequest()).run()
    everything = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING],
        aggregation_type=api_pb2.AGGREGATION_AVG,
        col_params=[
            api_pb2.ColParams(metric=api_pb2.MetricName(tag=info.name.tag, group=info.name.group))
            for info in experiment.metric_infos
        ],
    )
    return experiment, list_session_groups.Handler(asked, context, "", everything).run().session_groups


def _value(field):
    return getattr(field, field.WhichOneof("kind")) if hasattr(field, "WhichOneof") else field


def _table(folder):
    """Columns and, by run name, its knobs and its metrics."""
    experiment, groups = _hparams(folder)
    runs = {}
    for group in groups:
        (session,) = group.sessions
        knobs = {name: _value(value) for name, value in group.hparams.items()}
        metrics = {value.name.tag: value.value for value in session.metric_values}
        runs[session.name.removesuffix("/tensorboard")] = knobs, metrics
    return {info.name for info in experiment.hparam_infos}, {i.name.tag for i in experiment.metric_infos}, runs


def test_the_hparams_tab_shows_the_knobs_and_the_real_objective_of_different_runs(fit):
    one, first = fit(*SMALL, "optimizer=adamw", "lr=0.002", "regularization=[l2]", "regularization.l2.strength=0.25")
    two, second = fit(*SMALL, "optimizer=momentum", "lr=0.01", "optimizer.momentum=0.8", "model.normalization=batch")
    columns, metrics, runs = _table(first.parent)
    assert set(runs) == {first.name, second.name}
    # the union: a knob of one run alone has a column too
    only_first = {"optimizer.eps", "regularization", "regularization.l2.strength"}
    only_second = {"optimizer.momentum", "optimizer.nesterov"}
    both = {"data", "epochs", "lr", "model", "optimizer", "seed", "size", "weight_decay", "model.normalization"}
    assert only_first | only_second | both <= columns
    knobs_one, metrics_one = runs[first.name]
    knobs_two, metrics_two = runs[second.name]
    assert not only_second & set(knobs_one)
    assert not only_first & set(knobs_two)
    assert (knobs_one["optimizer"], knobs_one["lr"], knobs_one["regularization.l2.strength"]) == ("adamw", 0.002, 0.25)
    assert (knobs_two["optimizer"], knobs_two["lr"], knobs_two["optimizer.momentum"]) == ("momentum", 0.01, 0.8)
    assert knobs_two["model.normalization"] == "batch"
    assert "best/val/accuracy" in metrics
    for result, shown in ((one, metrics_one), (two, metrics_two)):
        assert shown["best/val/accuracy"] == pytest.approx(result["objective"]["best"], rel=1e-6)
        assert shown["test/accuracy"] == pytest.approx(result["test"]["test/accuracy"], rel=1e-6)
        assert -1 not in shown.values()
    assert "hp_metric" not in metrics


def test_the_hparams_tab_shows_the_objective_of_runs_over_different_data(fit):
    _, first = fit(*SMALL)
    two, second = fit("data=diabetes", "size=tiny", "epochs=3")
    _, metrics, runs = _table(first.parent)
    assert {"best/val/accuracy", "best/val/rmse"} <= metrics
    assert runs[second.name][1]["best/val/rmse"] == pytest.approx(two["objective"]["best"], rel=1e-6)
    assert runs[first.name][0]["data"] == "breast_cancer"


def test_the_hparams_tab_works_with_a_single_run(fit):
    # the folder that the table at the end of a run names
    result, folder = fit(*SMALL)
    _, _, runs = _table(folder)
    ((knobs, metrics),) = runs.values()
    assert knobs["epochs"] == 2
    assert metrics["best/val/accuracy"] == pytest.approx(result["objective"]["best"], rel=1e-6)


def test_the_hparams_tab_shows_a_resumed_run_with_its_new_knobs(tmp_path):
    for part, epochs in enumerate((2, 4, 8)):
        logger = TensorBoard(str(tmp_path / "run"))
        if part:
            logger.resume_from(part)
        logger.log_knobs({"epochs": epochs, "lr": 0.5})
        logger.log_metrics({"best/val/loss": 1.0 / epochs}, part + 1)
        logger.close()
    _, _, runs = _table(tmp_path)
    assert runs == {"run": ({"epochs": 8.0, "lr": 0.5}, {"best/val/loss": 0.125})}
    assert _scalars(tmp_path / "run") == {"best/val/loss": {1: 0.5, 2: 0.25, 3: 0.125}}


# ---- when and how


def test_metrics_are_due_at_the_interval_and_at_the_last_batch():
    for step, last, due in ((50, False, True), (100, False, True), (51, False, False), (51, True, True)):
        assert is_written(SimpleNamespace(log_every_n_steps=50, is_last_batch=last), step) is due


def test_writing_puts_the_epoch_beside_the_metrics_in_the_csv_alone(tmp_path):
    loggers = [Csv(str(tmp_path)), TensorBoard(str(tmp_path))]
    trainer = SimpleNamespace(loggers=loggers, current_epoch=3, is_global_zero=True, profiler=PassThroughProfiler())
    write(trainer, {"a": 0.5}, 17)
    trainer.is_global_zero = False  # one record
    write(trainer, {"a": 0.7}, 18)
    for logger in loggers:
        logger.save()
    assert _lines(tmp_path)[1:] == [["17", "3", "0.5"]]
    assert _scalars(tmp_path) == {"a": {17: 0.5}}
    loggers[1].close()
