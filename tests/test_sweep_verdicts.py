"""What a search says of its trials, on made trials whose answer is known: when it warns, and when it keeps still."""

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from tunelab.sweep.space import Space, read_space
from tunelab.sweep.verdicts import configurations, edges, noise, repeated, too_close, too_few, verdicts, winner


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
    """What is said of the one knob of a search whose best value this is."""
    searched = space(typed)
    key = searched.knobs[0].key
    best = finished(0, 1.0, searched, **{key.replace(".", "__"): value})
    return list(edges(best, searched, [best], "named"))


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
    trials = [finished(0, 0.9, searched, lr=0.01), failed(1, searched, lr=1e30)]
    (sentence,) = edges(trials[0], searched, trials, "named")
    assert sentence.endswith("begin another search with 'lr=0.001,0.01,0.1,1.0'.")
    searched = space("lr=tag(log,interval(1e-3,1e3))")
    trials = [finished(0, 0.9, searched, lr=1.1e-3), failed(1, searched, lr=50.0), failed(2, searched, lr=700.0)]
    (sentence,) = edges(trials[0], searched, trials, "named")
    assert sentence.endswith("begin another search with 'lr=tag(log,interval(0.0001,50.0))'.")
    trials.append(failed(3, searched, lr=1.01e-3))  # beyond the best one
    assert list(edges(trials[0], searched, trials, "named")) == []


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
    assert noise(finished(0, 0.9, searched, lr=0.1), "val/accuracy", 100) == pytest.approx(0.03)
    assert noise(finished(0, 0.9, searched, lr=0.1), "val/loss", 100) is None


def test_a_perfect_score_on_few_examples_is_not_without_noise():
    best = finished(0, 1.0, space("lr=0.1,0.2"), lr=0.1)
    p = 16 / 17  # as if one more of 15 had been wrong, of two more
    assert noise(best, "val/accuracy", 15) == pytest.approx(math.sqrt(p * (1 - p) / 15))


def test_noise_of_a_curve_is_what_is_left_of_its_steps_without_their_trend():
    searched = space("lr=0.1,0.2")
    falling = [1.0 - 0.01 * epoch for epoch in range(20)]
    assert noise(finished(0, 0.8, searched, falling, lr=0.1), "val/loss", None) == pytest.approx(0.0, abs=1e-12)
    jumping = [x + 0.05 * (-1) ** epoch for epoch, x in enumerate(falling)]
    steps = [-0.11, 0.09] * 4 + [-0.11] if len(jumping) // 2 % 2 == 0 else [0.09, -0.11] * 4 + [0.09]
    mean = sum(steps) / len(steps)
    by_hand = math.sqrt(sum((step - mean) ** 2 for step in steps) / (len(steps) - 1) / 2)
    assert noise(finished(0, 0.8, searched, jumping, lr=0.1), "val/loss", None) == pytest.approx(by_hand)


def test_runners_up_within_the_noise_are_counted_and_a_command_is_said():
    searched = space("lr=0.1,0.2,0.3,0.4,0.5")
    values = [0.9833, 0.9889, 0.70, 0.985, 0.986]
    lrs = searched["lr"].values()
    trials = [finished(n, v, searched, lr=lr) for n, (v, lr) in enumerate(zip(values, lrs, strict=True))]
    sentence = too_close(trials, "maximize", 0.008, lambda trial: f"python train.py -m lr={trial.params['lr']}")
    assert sentence == (
        "0.9889 (trial 1) and 0.9860 (trial 4) differ by less than the noise (about 0.008): no winner among 4 trials. "
        "Run the first 3 with several seeds:\n"
        "  python train.py -m lr=0.2\n  python train.py -m lr=0.5\n  python train.py -m lr=0.4"
    )


def test_a_clear_winner_and_an_unknown_noise_are_no_alarm():
    searched = space("lr=0.1,0.2")
    trials = [finished(0, 0.98, searched, lr=0.1), finished(1, 0.90, searched, lr=0.2)]
    assert too_close(trials, "maximize", 0.01, str) is None
    assert too_close(trials, "maximize", None, str) is None
    assert too_close(trials[:1], "maximize", 0.5, str) is None


def test_of_repeated_configurations_means_are_compared_not_single_trials():
    searched = space("optimizer=adamw,sgd", "seed=0,1,2")
    close = {"adamw": (0.90, 0.94, 0.92), "sgd": (0.91, 0.93, 0.89)}
    clear = {"adamw": (0.90, 0.94, 0.92), "sgd": (0.51, 0.53, 0.49)}

    def said(results):
        each = [(optimizer, seed, v) for optimizer, values in results.items() for seed, v in enumerate(values)]
        trials = [finished(n, v, searched, optimizer=o, seed=s) for n, (o, s, v) in enumerate(each)]
        first, second = configurations(trials, "maximize")
        assert (first.values, first.mean) == ({"optimizer": "adamw"}, pytest.approx(0.92))
        assert first.deviation == pytest.approx(0.02)
        assert second.numbers == [3, 4, 5]
        return verdicts(trials, searched, "val/accuracy", "maximize", 100, str, len(trials))

    error = math.sqrt(2 * 0.02**2 / 3)
    (sentence,) = said(close)
    assert f"twice the error of their means ({error:.2g})" in sentence
    assert said(clear) == []


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
    assert "19 trials of 2 knobs say little" in too_few(trials[:19], searched, 19)
    assert "1 trial of 2 knobs says little" in too_few(trials[:1], searched, 1)
    assert "sweep.n_trials=20" in too_few(trials[:19], searched, 19)
    assert too_few(trials[:1], searched, 30) is None  # it was ended before it had as many as were asked for
    grid = space("lr=0.1,0.2")
    assert too_few([finished(0, 0.5, grid, lr=0.1)], grid, 1) is None


def test_nothing_is_said_where_nothing_has_finished():
    assert verdicts([], space("lr=0.1,0.2"), "val/accuracy", "maximize", None, str, 2) == []
