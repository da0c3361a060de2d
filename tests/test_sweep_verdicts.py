"""What a search says of its trials, on made trials whose answer is known: when it warns, and when it keeps still."""

import math
import random

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from tunelab.analysis.significance import lead_of_chance
from tunelab.sweep.edges import edges
from tunelab.sweep.repeats import configurations, headline, repeated, winner
from tunelab.sweep.space import Space, read_space
from tunelab.sweep.verdicts import Noise, lead, noise, too_few, verdicts


def space(*typed: str) -> Space:
    overrides = OverridesParser.create().parse_overrides(list(typed))
    return read_space(overrides, {"optimizer": ["adamw", "sgd"]}, 0)


def finished(number, value, searched, curve=(), **params):
    """A finished trial; its keys are written with a double underscore for a dot."""
    values = {key.replace("__", "."): each for key, each in params.items()}
    trial = create_trial(
        state=TrialState.COMPLETE,
        value=value,
        params=values,
        distributions={key: searched[key].distribution for key in values},
        intermediate_values=dict(enumerate(curve, start=1)),
    )
    trial.number = number
    return trial


def edge(typed, value):
    """What is said of the one hyperparameter of a search whose results get better towards this value."""
    searched, chance = space(typed), random.Random(0)
    (knob,) = searched.knobs
    others = knob.values() * 3 if knob.is_finite else [knob.draw(i / 20) for i in range(20)]
    as_number = (math.log if getattr(knob.distribution, "log", False) else float) if value is not True else bool
    trials = [
        finished(n, -abs(as_number(v) - as_number(value)) + 1e-3 * chance.random(), searched, **{_name(knob): v})
        for n, v in enumerate(others)
    ]
    best = finished(len(trials), 0.1, searched, **{_name(knob): value})
    return list(edges(best, searched, [*trials, best], "maximize", None, "named"))


def _name(knob):
    return knob.key.replace(".", "__")


# ---- the edge of a range


@pytest.mark.parametrize(
    ("typed", "value", "end", "wider"),
    [
        ("lr=tag(log,interval(1e-5,1e-1))", 0.08, "upper", (1e-5, 1.0)),
        ("lr=tag(log,interval(1e-5,1e-1))", 1.2e-5, "lower", (1e-6, 1e-1)),
        ("weight_decay=interval(0.1,0.2)", 0.199, "upper", (0.1, 0.3)),
        ("weight_decay=interval(0.1,0.2)", 0.1, "lower", (0.0, 0.2)),
        ("size.depth=int(interval(2,6))", 6, "upper", (2, 10)),
        ("size.width=tag(log,int(interval(16,256)))", 256, "upper", (16, 2560)),
    ],
)
def test_at_an_edge_of_a_range_a_wider_one_is_said_that_can_be_typed(typed, value, end, wider):
    (sentence,) = edge(typed, value)
    assert f"is at the {end} edge of {typed.partition('=')[2]}" in sentence
    override = sentence.rpartition("'")[0].rpartition("'")[2]
    (before,), (knob,) = space(typed).knobs, space(override).knobs
    assert type(knob.distribution) is type(before.distribution)
    assert isinstance(knob.distribution, (FloatDistribution, IntDistribution))
    assert (knob.distribution.low, knob.distribution.high) == pytest.approx(wider)
    assert knob.distribution.log == before.distribution.log


@pytest.mark.parametrize(
    ("typed", "value", "next_one"),
    [
        ("size.width=64,128,256", 256, "size.width=64,128,256,512"),
        ("size.width=64,128,256", 64, "size.width=32,64,128,256"),
        ("size.depth=1,2,3", 3, "size.depth=1,2,3,4"),
        ("lr=0.1,1e-2,1e-3", 0.001, "lr=0.0001,0.001,0.01,0.1"),
    ],
)
def test_at_the_end_of_ordered_choices_the_next_one_is_said(typed, value, next_one):
    (sentence,) = edge(typed, value)
    assert sentence.endswith(f"search on with name=named '{next_one}'.")


def failed(number, searched, **params):
    trial = finished(number, 0.0, searched, **params)
    trial.state, trial.values = TrialState.FAIL, None
    return trial


def test_what_failed_is_not_said_to_be_searched_again_and_a_search_without_it_is_another_one():
    searched = space("lr=0.01,0.1,1.0,1e30")
    trials = [finished(0, 0.9, searched, lr=0.01), finished(1, 0.5, searched, lr=0.1), failed(2, searched, lr=1e30)]
    (sentence,) = edges(trials[0], searched, trials, "maximize", 0.05, "named")
    assert sentence.endswith("begin another search with 'lr=0.001,0.01,0.1,1.0'.")
    searched = space("lr=tag(log,interval(1e-3,1e3))")
    trials = [finished(0, 0.9, searched, lr=1.1e-3), finished(1, 0.5, searched, lr=0.1)]
    trials += [failed(2, searched, lr=50.0), failed(3, searched, lr=700.0)]
    (sentence,) = edges(trials[0], searched, trials, "maximize", 0.05, "named")
    assert sentence.endswith("begin another search with 'lr=tag(log,interval(0.0001,50.0))'.")
    trials.append(failed(4, searched, lr=1.01e-3))  # beyond the best one
    assert list(edges(trials[0], searched, trials, "maximize", 0.05, "named")) == []


def test_a_single_result_at_an_edge_is_better_than_its_neighbour_by_the_noise_or_nothing_is_said():
    searched = space("size.width=64,128,256")
    trials = [finished(n, v, searched, size__width=w) for n, (w, v) in enumerate(((64, 0.5), (128, 0.8), (256, 0.9)))]
    assert len(list(edges(trials[2], searched, trials, "maximize", 0.03))) == 1
    assert list(edges(trials[2], searched, trials, "maximize", 0.06)) == []
    assert list(edges(trials[2], searched, trials, "maximize", None)) == []


@pytest.mark.parametrize(
    ("typed", "count"),
    [
        (["lr=interval(0.1,0.2)"], 10),
        ([f"{key}=interval(0.1,0.2)" for key in ("lr", "weight_decay", "a", "b", "c", "d")], 30),
        ([f"{key}=0.1,0.2,0.3" for key in ("lr", "weight_decay", "a")], 10),
        (["lr=0.1,0.2,0.3"], 30),
    ],
    ids=["one range", "six ranges", "three choices of three", "three choices"],
)
def test_by_chance_an_edge_is_said_in_few_of_200_searches(typed, count):
    searched, chance, said = space(*typed), random.Random(count), 0
    for _ in range(200):
        trials = [
            finished(n, chance.gauss(0, 1), searched, **{_name(k): k.draw(chance.random()) for k in searched.knobs})
            for n in range(count)
        ]
        said += bool(list(edges(winner(trials, searched, "maximize"), searched, trials, "maximize")))
    assert said <= 0.05 * 200


def test_a_real_edge_is_seen_the_more_often_the_more_trials_there_are():
    searched, found = space("lr=interval(0.1,0.2)", "dropout=interval(0.1,0.2)"), []
    for count in (8, 25, 80):
        chance, said = random.Random(1), 0
        for _ in range(100):
            values = [(0.1 + 0.1 * chance.random(), 0.1 + 0.1 * chance.random()) for _ in range(count)]
            trials = [
                finished(n, 120 * x + chance.gauss(0, 1), searched, lr=x, dropout=y) for n, (x, y) in enumerate(values)
            ]
            said += any("lr" in s for s in edges(winner(trials, searched, "maximize"), searched, trials, "maximize"))
        found.append(said / 100)
    assert found[0] < found[1] < found[2]
    assert found[2] >= 0.65


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("lr=tag(log,interval(1e-5,1e-1))", 1e-3),
        ("lr=tag(log,interval(1e-5,1e-1))", 0.05),  # 92 % of the way in the logarithm
        ("dropout=0.0,0.1,0.2", 0.0),  # there is no dropout below 0
        ("dropout=interval(0.0,0.5)", 0.001),
        ("size.depth=1,2,3", 1),
        ("batch_size=32,64", 64),  # of two, one is always at an end
        ("compile=true,false", True),
        ("size.width=64,128,256", 128),
        ("seed=0,1,2", 2),
    ],
)
def test_inside_a_range_or_where_nothing_lies_beyond_no_edge_is_said(typed, value):
    assert edge(typed, value) == []


# ---- too close to tell


def test_noise_of_a_share_is_its_binomial_standard_error():
    searched = space("lr=0.1,0.2")
    p = 92 / 104
    best = finished(0, 0.9, searched, lr=0.1)
    assert noise(best, "val/accuracy", 100).deviation == pytest.approx(math.sqrt(p * (1 - p) / 100))
    assert noise(best, "val/accuracy", 100).is_lower_bound is False
    assert noise(best, "val/loss", 100).deviation is None
    assert noise(best, "val/accuracy", None).deviation is None


def test_a_perfect_score_on_few_examples_is_not_without_noise():
    for examples in (3, 15, 57):
        best = finished(0, 1.0, space("lr=0.1,0.2"), lr=0.1)
        assert noise(best, "val/accuracy", examples).deviation >= 1 / examples


def test_noise_of_a_curve_is_what_is_left_of_its_steps_without_their_trend_and_a_lower_bound():
    searched = space("lr=0.1,0.2")
    falling = [1.0 - 0.01 * epoch for epoch in range(20)]
    assert noise(finished(0, 0.8, searched, falling, lr=0.1), "val/loss", None).deviation == pytest.approx(0, abs=1e-12)
    jumping = [x + 0.05 * (-1) ** epoch for epoch, x in enumerate(falling)]
    steps = [-0.11, 0.09] * 4 + [-0.11] if len(jumping) // 2 % 2 == 0 else [0.09, -0.11] * 4 + [0.09]
    mean = sum(steps) / len(steps)
    by_hand = math.sqrt(sum((step - mean) ** 2 for step in steps) / (len(steps) - 1) / 2)
    found = noise(finished(0, 0.8, searched, jumping, lr=0.1), "val/loss", None)
    assert found.deviation == pytest.approx(by_hand)
    assert found.is_lower_bound


def command(trials):
    return [f"python train.py -m lr={trial.params['lr']}" for trial in trials]


def test_runners_up_within_the_noise_are_counted_and_a_command_is_said():
    searched = space("lr=0.1,0.2,0.3,0.4,0.5")
    values = [0.9833, 0.9889, 0.70, 0.985, 0.986]
    lrs = searched["lr"].values()
    trials = [finished(n, v, searched, lr=lr) for n, (v, lr) in enumerate(zip(values, lrs, strict=True))]
    assert lead(trials, "maximize", Noise(0.008, None, 180), command) == (
        "No winner among 4 of 5 trials: 0.9889 (trial 1) is 0.0029 ahead of 0.9860 (trial 4), and chance makes leads "
        f"up to {lead_of_chance(4) * 0.008:.2g} (180 validation examples, standard deviation 0.008). "
        "Run the first 3 with several seeds:\n"
        "  python train.py -m lr=0.2\n  python train.py -m lr=0.5\n  python train.py -m lr=0.4"
    )


def test_a_clear_winner_is_said_with_the_lead_that_chance_makes():
    searched = space("lr=0.1,0.2")
    trials = [finished(0, 0.98, searched, lr=0.1), finished(1, 0.90, searched, lr=0.2)]
    assert lead(trials, "maximize", Noise(0.01, None, 100), command) == (
        "A winner: 0.9800 (trial 0) is 0.08 ahead of 0.9000 (trial 1), where chance makes leads up to 0.024 "
        "(100 validation examples, standard deviation 0.01)."
    )
    assert lead(trials[:1], "maximize", Noise(0.5, None, 9), command) is None


def test_where_no_noise_is_known_that_is_said_with_the_command_that_tells():
    searched = space("lr=0.1,0.2")
    trials = [finished(0, 0.98, searched, lr=0.1), finished(1, 0.90, searched, lr=0.2)]
    assert verdicts(trials, searched, "val/rmse", "minimize", 100, command, 2) == [
        "Whether there is a winner is not known: 0.9000 (trial 1) is 0.08 ahead of 0.9800 (trial 0), but each trial "
        "ran once, and the epochs are too few to tell how much val/rmse scatters. To know it, run both with several "
        "seeds:\n"
        "  python train.py -m lr=0.2\n  python train.py -m lr=0.1"
    ]
    (old,) = verdicts(trials, searched, "val/accuracy", "maximize", None, command, 2)
    assert "the runs do not record of how many examples val/accuracy is a share" in old


def test_the_jitter_of_epochs_may_deny_a_winner_but_never_makes_one():
    searched = space("lr=0.1,0.2")
    trials = [finished(0, 0.5, searched, lr=0.1), finished(1, 0.9, searched, lr=0.2)]
    far = lead(trials, "minimize", Noise(None, 0.01), command)
    assert far.startswith(
        "Perhaps a winner: 0.5000 (trial 0) is 0.4 ahead of 0.9000 (trial 1), more than the 0.024 that the jitter of "
        "the late epochs, standard deviation 0.01, explains; but seeds usually differ more"
    )
    assert far.endswith("run both with several seeds:\n  python train.py -m lr=0.1\n  python train.py -m lr=0.2")
    near = lead(trials, "minimize", Noise(None, 1.0), command)
    assert near.startswith("No winner among 2 of 2 trials: ")
    assert "the noise of seeds may be larger" in near


# ---- repeats


def repeats(results, typed, key="seed"):
    """The trials of a search over optimizers and seeds or folds, and its space."""
    searched = space(f"optimizer={','.join(results)}", typed)
    each = [(o, r, v) for o, values in results.items() for r, v in zip(searched[key].values(), values, strict=False)]
    return [finished(n, v, searched, optimizer=o, **{key: r}) for n, (o, r, v) in enumerate(each)], searched


def said_of(results, typed="seed=0,1,2", key="seed", name="named"):
    trials, searched = repeats(results, typed, key)
    found = verdicts(trials, searched, "val/accuracy", "maximize", 100, command, len(trials), name)
    assert len(found) == 1
    return found[0]


FOLDS = "fold=0/5,1/5,2/5,3/5,4/5"


def test_of_repeated_configurations_means_are_compared_pair_by_pair():
    results = {"adamw": (0.90, 0.94, 0.92), "sgd": (0.91, 0.93, 0.89)}
    trials, _ = repeats(results, "seed=0,1,2")
    first, second = configurations(trials, "maximize")
    assert (first.values, first.mean) == ({"optimizer": "adamw"}, pytest.approx(0.92))
    assert first.deviation == pytest.approx(0.02)
    assert second.numbers == [3, 4, 5]
    said = said_of(results)
    assert said.startswith(
        "No winner among 2 of 2 configurations: optimizer=adamw has mean 0.9200, and optimizer=sgd is 0.0100 behind "
        "(paired by seed, 3 pairs; standard error 0.012, 95 % interval -0.0397 to 0.0597): no clear difference.\n"
        "A difference of this size needs about 34 seeds to be seen: search on with name=named 'seed=range(0,34)'."
    )
    clear = said_of({"adamw": (0.90, 0.94, 0.92), "sgd": (0.51, 0.54, 0.53)})
    assert clear.startswith(
        "A winner: optimizer=adamw is better than optimizer=sgd, which is 0.3933 behind (paired by seed"
    )


def test_two_seeds_are_judged_by_students_t():
    # the difference is seven times its error: enough for a normal quantile, not for one degree of freedom (12.7)
    assert said_of({"adamw": (0.94, 0.92), "sgd": (0.90, 0.89)}, "seed=0,1").startswith("No winner among 2 of 2")


def test_folds_are_paired_and_more_folds_are_the_remedy():
    folds = (1.0, 0.90, 0.97, 0.80, 0.95)
    better = tuple(f - 0.02 + d for f, d in zip(folds, (0.001, -0.001, 0.002, 0.0, -0.002), strict=True))
    said = said_of({"adamw": folds, "sgd": better}, FOLDS, "fold")
    assert said.startswith(
        "A winner: optimizer=adamw is better than optimizer=sgd, which is 0.0200 behind (paired by fold"
    )
    close = tuple(f + d for f, d in zip(folds, (0.03, -0.04, 0.02, -0.03, 0.01), strict=True))
    said = said_of({"adamw": folds, "sgd": close}, FOLDS, "fold")
    assert "seed" not in said
    assert said.endswith(
        "All 5 folds are used: search again with 'fold=0/10,1/10,2/10,3/10,4/10,5/10,6/10,7/10,8/10,9/10', "
        "or take the one that is cheaper."
    )
    said = said_of({"adamw": folds[:2], "sgd": close[:2]}, "fold=0/5,1/5", "fold")
    assert "2 of 5 folds are used: search again with 'fold=0/5,1/5,2/5,3/5,4/5'" in said


def test_a_gain_of_three_deviations_is_found_in_most_studies_of_five_folds():
    chance, found, false = random.Random(2), 0, 0
    for _ in range(100):
        folds = [0.1 * chance.gauss(0, 1) for _ in range(5)]
        noise_of = [[f + 0.01 * chance.gauss(0, 1) for f in folds] for _ in range(2)]
        found += said_of({"adamw": [v + 0.03 for v in noise_of[0]], "sgd": noise_of[1]}, FOLDS, "fold").startswith(
            "A w"
        )
        false += said_of({"adamw": noise_of[0], "sgd": noise_of[1]}, FOLDS, "fold").startswith("A winner")
    assert found >= 90
    assert false <= 9


def test_of_many_equal_configurations_over_three_seeds_there_is_seldom_a_winner():
    chance, false = random.Random(3), 0
    options = ["a", "b", "c", "d", "e", "f"]
    searched = read_space(
        OverridesParser.create().parse_overrides([f"optimizer={','.join(options)}", "seed=0,1,2"]),
        {"optimizer": options},
        0,
    )
    for _ in range(100):
        trials = [
            finished(3 * n + s, chance.gauss(0, 1), searched, optimizer=o, seed=s)
            for n, o in enumerate(options)
            for s in range(3)
        ]
        false += verdicts(trials, searched, "val/loss", "minimize", None, command, 18)[0].startswith("A winner")
    assert false <= 5


def test_a_configuration_without_its_hardest_fold_does_not_win():
    results = {"adamw": (1.0, 0.9, 0.97, 0.6, 0.95), "sgd": (1.0, 0.9, 0.97)}
    trials, searched = repeats(results, FOLDS, "fold")
    assert [each.values["optimizer"] for each in configurations(trials, "maximize")] == ["adamw", "sgd"]
    assert winner(trials, searched, "maximize").number == 0
    assert "1 configuration without a result in some of the 5 folds stands behind the others" in said_of(
        results, FOLDS, "fold"
    )


def test_the_headline_of_a_search_over_folds_is_a_mean_and_not_its_easiest_fold():
    trials, searched = repeats({"adamw": (1.0, 0.96, 0.98, 0.99, 0.992), "sgd": (0.9,) * 5}, FOLDS, "fold")
    assert headline(trials, searched, "maximize") == "mean 0.9844 over 5 folds: optimizer=adamw"
    alone = space("lr=0.1,0.2")
    assert headline([finished(0, 0.5, alone, lr=0.1)], alone, "maximize") == "0.5000 in trial 0: lr=0.1"
    assert headline([], alone, "maximize") == ""


def test_configurations_that_ran_once_are_said_to_tell_nothing():
    said = said_of({"adamw": (0.9,), "sgd": (0.5,)})
    assert said.startswith("Whether there is a winner is not known: 2 of 2 configurations ran once.")


def test_the_winner_of_repeated_configurations_is_of_the_best_mean_and_not_the_luckiest_run():
    searched = space("optimizer=adamw,sgd,lion", "seed=0,1,2")
    results = {"adamw": (0.80, 0.99, 0.70), "sgd": (0.90, 0.92, 0.91), "lion": (1.0,)}  # mean 0.83, 0.91; once
    each = [(optimizer, seed, v) for optimizer, values in results.items() for seed, v in enumerate(values)]
    trials = [finished(n, v, searched, optimizer=o, seed=s) for n, (o, s, v) in enumerate(each)]
    assert winner(trials, searched, "maximize").number == 4  # 0.92 of sgd
    assert winner(trials, searched, "minimize").number == 2  # 0.70 of adamw
    assert winner(trials[6:], searched, "maximize").number == 6  # nothing was repeated
    assert winner([], searched, "maximize") is None


def test_the_same_values_twice_are_no_repeats_where_no_seed_is_varied():
    searched = space("optimizer=adamw,sgd")
    trials = [
        finished(n, v, searched, optimizer=o) for n, (o, v) in enumerate([("sgd", 0.9), ("sgd", 0.5), ("adamw", 0.8)])
    ]
    assert repeated(trials, searched, "maximize") == []
    assert winner(trials, searched, "maximize").number == 0


def test_fewer_trials_than_ten_for_each_knob_are_few_but_a_grid_is_never():
    searched = space("lr=tag(log,interval(1e-5,1e-1))", "dropout=interval(0,0.5)")
    trials = [finished(n, 0.5, searched, lr=1e-3, dropout=0.2) for n in range(20)]
    assert too_few(trials, searched, 20) is None
    assert "19 trials are too few for 2 hyperparameters" in too_few(trials[:19], searched, 19)
    assert "1 trial is too few for 2 hyperparameters" in too_few(trials[:1], searched, 1)
    assert "sweep.n_trials=20" in too_few(trials[:19], searched, 19)
    assert too_few(trials[:1], searched, 30) is None  # it was ended before it had as many as were asked for
    grid = space("lr=0.1,0.2")
    assert too_few([finished(0, 0.5, grid, lr=0.1)], grid, 1) is None


def test_nothing_is_said_where_nothing_has_finished():
    assert verdicts([], space("lr=0.1,0.2"), "val/accuracy", "maximize", None, command, 2) == []
