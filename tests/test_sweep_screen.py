"""What is seen of a search while it runs: lines that fit, an honest estimate, and a line for each trial."""

import logging
from types import SimpleNamespace

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import TrialState
from rich.cells import cell_len

from tunelab.sweep.screen import Screen, columns, opening, seconds_left
from tunelab.sweep.space import read_space
from tunelab.sweep.trials import Claim
from tunelab.sweep.wording import compact, duration, score, spoken

TYPED = ["lr=tag(log,interval(1e-5,1e-1))", "batch_size=32,64", "model.blocks=1,2", "optimizer=adamw,sgd"]
VALUES = {"lr": 3.21e-4, "batch_size": 32, "model.blocks": 2, "optimizer": "adamw"}


def searched():
    """A plan, and the trials of an empty study."""
    space = read_space(OverridesParser.create().parse_overrides(TYPED), {"optimizer": ["adamw", "sgd"]}, 0)
    study = optuna.create_study(direction="maximize")
    plan = SimpleNamespace(
        space=space,
        objective="val/accuracy",
        remarks=["The recipe's own values are not tried: …"],
        folder="outputs/sweeps/a",
        dials={"n_jobs": 2},
        sampler={"_target_": "optuna.samplers.TPESampler"},
        pruner={"_target_": "optuna.pruners.MedianPruner"},
    )
    return plan, SimpleNamespace(study=study, most=50, of_grid=None, all=lambda: study.get_trials(deepcopy=False))


def add(trials, value=None, state=TrialState.COMPLETE, **said):
    distributions = {knob.key: knob.distribution for knob in searched()[0].space.knobs}
    trials.study.add_trial(
        optuna.trial.create_trial(state=state, value=value, params=VALUES, distributions=distributions, user_attrs=said)
    )


def claim(number):
    return Claim(number, number, VALUES)


# ---- numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((3.21e-4, "3.2e-4"), (1e-5, "1e-5"), (0.03214, "0.0321"), (0.5, "0.5"), (1500.0, "1500"), (2e7, "2e7")),
        *((64, "64"), (True, "true"), (None, "null"), ("adamw", "adamw"), (0.0, "0")),
    ],
)
def test_a_value_is_shown_in_few_characters(value, shown):
    assert compact(value) == shown


def test_scores_and_times_are_shown_in_words():
    assert [score(0.98889), score(123.4), score(2e-5), score(None)] == ["0.9889", "123.4000", "2.000e-05", ""]
    times = [duration(seconds) for seconds in (3.14, 42, 90, 3600 * 2 + 300, 3600 * 60)]
    assert times == ["3.1 s", "42 s", "2 min", "2 h 5 min", "2.5 days"]
    names = ("optuna.samplers.TPESampler", "optuna.pruners.SuccessiveHalvingPruner", "tunelab.sweep.samplers.Grid")
    assert [spoken({"_target_": name}) for name in names] == ["tpe", "successive halving", "grid"]


# ---- time left


def test_time_left_is_that_of_what_is_missing_at_the_mean_shared_among_the_places():
    assert seconds_left([2.0, 4.0], [], 10, 2) == 15.0  # 10 of 3 s, two at once
    assert seconds_left([3.0], [1.0, 2.0], 0, 2) == 2.0  # the younger one has 2 s to go
    assert seconds_left([3.0], [9.0], 1, 1) == 3.0  # one is late already
    assert seconds_left([], [1.0], 3, 2) is None
    assert seconds_left([], [], 0, 2) == 0.0


# ---- the table


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
@pytest.mark.parametrize("knobs", [1, 4, 15])
def test_no_line_is_wider_than_the_terminal_and_its_ends_stay_as_long_as_they_can(width, knobs):
    header = ["trial", *(f"model.block{number}.width" for number in range(knobs)), "val/accuracy", "epoch", "state"]
    row = ["7", *("a very long 文字 choice of words" for _ in range(knobs)), "0.9778", "7/30", "running"]
    lines = columns(header, [row], width)
    assert all(cell_len(line) <= width for line in lines)
    if width >= 40:
        assert lines[1].split()[0] == "7"
        assert lines[1].split()[-3:] == ["0.9778", "7/30", "running"]


def test_a_table_that_fits_is_not_shortened():
    assert columns(
        ["trial", "model.blocks", "val/accuracy", "epoch", "state"], [["7", "2", "0.9", "1/2", "best"]], 60
    ) == [
        "trial  model.blocks  val/accuracy  epoch  state",
        "7      2             0.9           1/2    best",
    ]


@pytest.mark.parametrize(("width", "height"), [(40, 10), (80, 6), (120, 50)])
def test_running_trials_come_first_then_the_best_then_the_last_and_all_fits(width, height):
    plan, trials = searched()
    for value in (0.5, 0.9, 0.7):
        add(trials, value, epoch=3, epochs=30)
    screen = Screen(plan, trials)
    for number in (3, 4):
        screen.began(claim(number), 30)
    screen.reported(claim(4), 7, 0.25)
    lines = [line.plain for line in screen.lines(width, height)]
    assert len(lines) < height
    assert all(cell_len(line) <= width for line in lines)
    assert [line.split()[0] for line in lines[1:3]] == ["3", "4"]
    assert lines[2].split()[-3:] == ["0.2500", "7/30", "running"]
    if height > 6:
        assert lines[3].split()[0] == "1"
        assert lines[3].split()[-3:] == ["0.9000", "3/30", "best"]
    assert lines[-2].startswith("best so far: val/accuracy 0.9000 in")
    assert lines[-1].startswith("time left unknown · 3 finished · 2 r")


def test_what_has_not_fit_in_a_table_is_drawn_at_most_four_times_a_second(monkeypatch):
    plan, trials = searched()
    screen, drawn, clock = Screen(plan, trials), [], iter(range(1000))
    screen._live = SimpleNamespace(update=lambda group, refresh: drawn.append(now[0]))
    now = [0.0]
    monkeypatch.setattr("tunelab.sweep.screen.time.monotonic", lambda: now[0])
    screen.began(claim(0), 3)
    for tick in clock:
        now[0] = 100 + tick / 100
        screen.reported(claim(0), tick, 0.5)
        screen.refresh()
    assert 10 <= len(drawn) <= 41  # in 10 s


# ---- without a terminal


def test_each_line_without_a_terminal_says_all_of_its_trial(caplog):
    caplog.set_level(logging.INFO, "tunelab")
    plan, trials = searched()
    screen = Screen(plan, trials)
    screen.began(claim(0), 30)
    add(trials, 0.9778, epoch=4, epochs=30)
    screen.ended(claim(0), "finished", 0.9778, epoch=4)
    screen.began(claim(1), 30)
    add(trials, None, TrialState.FAIL, cause="The loss became NaN.\nMore of it.")
    screen.ended(claim(1), "failed", None, "The loss became NaN.\nMore of it.")
    values = "lr=3.2e-4 batch_size=32 model.blocks=2 optimizer=adamw"
    assert [record.getMessage() for record in caplog.records if record.name == "tunelab"] == [
        f"trial 0  {values}  val/accuracy 0.9778 (epoch 4)  finished  0.0 s  [1 of 50, best 0.9778 in trial 0]",
        f"trial 1  {values}  failed: The loss became NaN.  0.0 s  [2 of 50, best 0.9778 in trial 0]",
    ]


def test_the_line_of_a_trial_of_a_cut_grid_counts_it_among_the_whole_grid(caplog):
    caplog.set_level(logging.INFO, "tunelab")
    plan, trials = searched()
    trials.most, trials.of_grid = 1, 3
    screen = Screen(plan, trials)
    add(trials, 0.5)
    screen.ended(Claim(0, 0, {}), "finished", 0.5, epoch=1)
    assert caplog.messages[-1] == (
        "trial 0  val/accuracy 0.5000 (epoch 1)  finished  [1 of the grid's 3, best 0.5000 in trial 0]"
    )


def test_the_opening_says_what_is_searched_and_on_a_resume_what_is_there():
    plan, trials = searched()
    assert opening(plan, 50, "maximize", [], 0) == [
        "lr, batch_size, model.blocks, optimizer by tpe with median pruning: 50 trials, 2 at once, to maximize "
        "val/accuracy, into outputs/sweeps/a",
        "The recipe's own values are not tried: …",
    ]
    add(trials, 0.9)
    add(trials, 0.9, TrialState.PRUNED)
    add(trials, None, TrialState.FAIL)
    trials.study.enqueue_trial(VALUES)
    _, there = opening(plan, 50, "maximize", trials.all(), 1)
    assert there == "It goes on: 1 finished, 1 pruned, 1 failed; 1 failed is tried again."


def test_the_opening_says_what_runs_elsewhere_and_where_nothing_is_left():
    plan, trials = searched()
    add(trials, 0.9)
    add(trials, 0.9, TrialState.PRUNED)
    assert opening(plan, 2, "maximize", trials.all(), 0)[1] == "Complete: nothing left to do."
    assert opening(plan, 3, "maximize", trials.all(), 0)[1] == "It goes on: 1 finished, 1 pruned."
    for _ in range(2):
        trials.study.ask()
    assert opening(plan, 4, "maximize", trials.all(), 0, 1)[1] == (
        "It goes on: 1 finished, 1 pruned, 1 waiting, 1 running elsewhere."
    )


def test_the_opening_of_a_part_of_a_grid_and_of_a_search_over_nothing_says_so():
    plan, _ = searched()
    plan.sampler, plan.pruner = ({"_target_": f"optuna.{name}"} for name in ("samplers.Grid", "pruners.NopPruner"))
    assert " by grid: 1 of the grid's 3 trials, 2 at once" in opening(plan, 1, "maximize", [], 0, of_grid=3)[0]
    assert " by grid: 3 trials, 2 at once" in opening(plan, 3, "maximize", [], 0, of_grid=3)[0]
    plan.space = read_space([], {}, 0)
    assert opening(plan, 1, "maximize", [], 0, of_grid=1)[0] == (
        "1 trial of the recipe as it is, to maximize val/accuracy, into outputs/sweeps/a"
    )


def test_where_a_search_stood_when_it_was_interrupted_is_a_line():
    plan, trials = searched()
    screen = Screen(plan, trials)
    assert screen.stood(0) == ""
    assert screen.stood(1) == "1 interrupted."
    add(trials, 0.5)
    add(trials, 0.9778)
    add(trials, None, TrialState.FAIL)
    assert screen.stood(2) == "2 interrupted, 2 finished, 1 failed, best val/accuracy 0.9778 in trial 1."


def test_knobs_that_have_no_room_leave_an_ellipsis():
    header = ["trial", "first_knob", "second_knob", "third_knob", "val/loss", "epoch", "state"]
    lines = columns(header, [["0", "1", "2", "3", "0.5", "1/2", "best"]], 46)
    assert [line.split() for line in lines] == [
        ["trial", "first_k…", "…", "loss", "epoch", "state"],
        ["0", "1", "…", "0.5", "1/2", "best"],
    ]
