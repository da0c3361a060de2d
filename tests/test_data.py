"""Every data set: a fixed, stratified split; statistics of the training part alone; orders from (seed, epoch)."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import options
from lightning import Callback
from sklearn import datasets
from sklearn.utils import Bunch

from tunelab import conf_folder
from tunelab.config import ConfigError
from tunelab.data import BundledData
from tunelab.data.memory import EpochOrder, MemoryLoader
from tunelab.data.splits import split
from tunelab.fitting import build

DATA = [name for name in options("data") if "data.BundledData" in (conf_folder() / f"data/{name}.yaml").read_text()]
RAW = {
    "breast_cancer": datasets.load_breast_cancer,
    "diabetes": lambda: datasets.load_diabetes(scaled=False),
    "digits": datasets.load_digits,
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
}
SHAPES = {"breast_cancer": (30,), "diabetes": (10,), "digits": (1, 8, 8), "iris": (4,), "wine": (13,)}
PARTS = ("train", "val", "test")


def _source(option, compose, *overrides):
    source = build(compose(f"data={option}", *overrides).data)
    source.setup("fit")
    return source


def _indices(option, compose, *overrides):
    """Of each part, from the source's own rule."""
    cfg = compose(f"data={option}", *overrides).data
    targets = RAW[option]().target
    fractions = cfg.val_fraction, cfg.test_fraction
    stratify = option != "diabetes"
    return dict(zip(PARTS, split(targets, *fractions, seed=cfg.split_seed, stratify=stratify), strict=True))


def test_every_bundled_data_set_has_its_raw_data_here():
    assert sorted(RAW) == DATA


# ---- split


@pytest.mark.parametrize("overrides", [[], ["data.val_fraction=0.25", "data.test_fraction=0.3"]])
@pytest.mark.parametrize("option", DATA)
def test_the_parts_are_disjoint_cover_all_examples_and_have_the_sizes_asked(option, overrides, compose):
    cfg = compose(f"data={option}", *overrides).data
    count = len(RAW[option]().target)
    parts = _indices(option, compose, *overrides)
    assert sorted(itertools.chain.from_iterable(part.tolist() for part in parts.values())) == list(range(count))
    assert len(parts["val"]) == round(cfg.val_fraction * count)
    assert len(parts["test"]) == round(cfg.test_fraction * count)


@pytest.mark.parametrize("option", DATA)
def test_the_parts_hold_the_normalized_examples_of_their_indices(option, compose):
    source = _source(option, compose)
    raw = RAW[option]()
    for name, indices in _indices(option, compose).items():
        inputs, targets = source.parts[name]
        assert inputs.dtype == torch.float32
        assert inputs.shape == (len(indices), *SHAPES[option])
        restored = inputs.reshape(len(indices), -1).double().numpy()
        mean, std = np.array(source.spec.input_mean), np.array(source.spec.input_std)
        np.testing.assert_allclose(restored * std + mean, raw.data[indices], rtol=1e-4, atol=1e-4 * raw.data.std())
        own_units = targets.double().numpy() * source.spec.target_std + source.spec.target_mean
        np.testing.assert_allclose(own_units, raw.target[indices], rtol=1e-5)


@pytest.mark.parametrize("option", DATA)
def test_the_split_follows_from_split_seed_and_not_from_seed(option, compose):
    base = _source(option, compose)
    other_seed = _source(option, compose, "seed=5")
    other_split = _source(option, compose, "data.split_seed=5")
    for name in PARTS:
        assert torch.equal(base.parts[name][0], other_seed.parts[name][0])
        assert torch.equal(base.parts[name][1], other_seed.parts[name][1])
    ours, theirs = _indices(option, compose), _indices(option, compose, "data.split_seed=5")
    # two independent parts of a tenth share about a tenth of their examples
    shared = len(set(ours["test"]) & set(theirs["test"])) / len(ours["test"])
    assert shared < 0.3
    assert not torch.equal(base.parts["test"][0], other_split.parts["test"][0])


def test_the_split_does_not_depend_on_the_process_wide_random_state():
    targets = np.arange(100) % 4
    parts = []
    for seed in (0, 1):
        np.random.seed(seed)
        torch.manual_seed(seed)
        parts.append(split(targets, 0.2, 0.2, seed=3, stratify=True))
    for ours, theirs in zip(*parts, strict=True):
        assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize(
    "counts",
    [
        np.bincount(datasets.load_digits().target),
        np.bincount(datasets.load_breast_cancer().target),
        [1000 // k for k in range(1, 21)],
        [500, 300, 100, 50, 20, 10, 5, 3],
        [1000, *[2] * 50],
    ],
    ids=["digits", "breast_cancer", "long_tail", "mixed", "many_rare"],
)
@pytest.mark.parametrize("fractions", [(0.1, 0.1), (0.2, 0.2), (0.15, 0.05), (0.3, 0.25), (0.0, 0.1)])
def test_the_split_is_stratified_to_within_one_example_of_each_class(fractions, counts):
    targets = np.repeat(np.arange(len(counts)), counts)
    for seed in range(5):
        for part in split(targets, *fractions, seed=seed, stratify=True):
            exact = np.array(counts) * len(part) / len(targets)
            assert np.abs(np.bincount(targets[part], minlength=len(counts)) - exact).max() <= 1 + 1e-9


def test_a_split_without_stratification_is_a_cut_through_a_permutation():
    order = np.random.default_rng(7).permutation(50)
    train, val, test = split(np.zeros(50), 0.2, 0.1, seed=7, stratify=False)
    assert (test.tolist(), val.tolist()) == (sorted(order[:5]), sorted(order[5:15]))
    assert train.tolist() == sorted(order[15:])


# ---- statistics


@pytest.mark.parametrize("option", DATA)
def test_statistics_are_those_of_the_training_part_alone(option, compose):
    source = _source(option, compose)
    train = RAW[option]().data[_indices(option, compose)["train"]]
    if option == "digits":
        train = train.reshape(-1, 1)  # an image's pixels share the statistic of their channel
    mean = [math.fsum(column) / len(column) for column in train.T]
    std = [math.sqrt(math.fsum((column - m) ** 2) / len(column)) for column, m in zip(train.T, mean, strict=True)]
    np.testing.assert_allclose(source.spec.input_mean, mean, rtol=1e-10)
    np.testing.assert_allclose(source.spec.input_std, std, rtol=1e-10)
    everything = RAW[option]().data
    whole = everything.mean(axis=0) if option != "digits" else everything.mean()
    assert np.abs(np.array(source.spec.input_mean) - whole).max() > 1e-6


@pytest.mark.parametrize("option", DATA)
def test_the_training_part_has_mean_zero_and_variance_one(option, compose):
    inputs, targets = _source(option, compose).parts["train"]
    columns = inputs.reshape(-1, 1) if option == "digits" else inputs
    assert columns.double().mean(dim=0).abs().max().item() < 1e-5
    assert columns.double().std(dim=0, correction=0).sub(1).abs().max().item() < 1e-5
    if option == "diabetes":
        assert targets.double().mean().item() == pytest.approx(0, abs=1e-6)
        assert targets.double().std(correction=0).item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1e6 + 0.1, -7.7])
def test_a_constant_feature_stays_zero(constant, monkeypatch, compose):
    rng = np.random.default_rng(0)
    data = np.column_stack([rng.normal(size=200), np.full(200, constant)])
    table = Bunch(data=data, target=np.arange(200) % 2, feature_names=["a", "b"], target_names=["no", "yes"])
    monkeypatch.setattr("sklearn.datasets.load_breast_cancer", lambda: table)
    source = _source("breast_cancer", compose)
    for name in PARTS:
        # 0.1 has no exact mean in floating point: a std of 1e-16 would blow its rounding up to one
        assert source.parts[name][0][:, 1].abs().max().item() < 1e-6


@pytest.mark.parametrize("option", DATA)
def test_the_spec_says_what_the_data_is(option, compose):
    spec, raw = _source(option, compose).spec, RAW[option]()
    assert spec.input_shape == SHAPES[option]
    assert spec.kind == ("image" if option == "digits" else "table")
    assert list(spec.feature_names) == [str(name) for name in raw.feature_names]
    classes = [] if option == "diabetes" else [str(name) for name in raw.target_names]
    assert list(spec.class_names) == classes
    assert spec.output_size == (len(classes) or 1)
    assert (spec.target_mean, spec.target_std) == (0, 1) or option == "diabetes"


def test_class_labels_are_integers_and_targets_of_a_regression_are_floats(compose):
    kinds = {option: _source(option, compose).parts["train"][1].dtype for option in DATA}
    assert kinds == {option: torch.float32 if option == "diabetes" else torch.int64 for option in DATA}


# ---- batches


def _orders(loader, epochs):
    """The first column of each epoch's batches, which names the examples."""
    orders = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat([inputs[:, 0] for inputs, _ in loader]).int().tolist())
    return orders


def _numbered(batch_size, examples=50, *, seed=0, shuffle=False, **keywords):
    inputs = torch.arange(examples).float()[:, None].repeat(1, 3)
    order = EpochOrder(examples, seed, shuffle, **keywords)
    return MemoryLoader(inputs, torch.arange(examples), batch_size, order)


def test_each_epoch_has_each_example_once_in_an_order_of_its_own():
    orders = _orders(_numbered(8, seed=1, shuffle=True), range(6))
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6


def test_the_order_depends_on_seed_and_epoch_alone():
    first = _orders(_numbered(8, seed=1, shuffle=True), [0, 1, 2, 3])
    torch.manual_seed(99)
    # another batch size, in another sequence, after other random numbers
    again = _orders(_numbered(16, seed=1, shuffle=True), [3, 1, 0, 2])
    assert again == [first[3], first[1], first[0], first[2]]
    assert all(a != b for a, b in zip(first, _orders(_numbered(8, seed=2, shuffle=True), range(4)), strict=True))


def test_drawing_an_order_leaves_the_process_wide_random_state_alone():
    before = torch.get_rng_state()
    _orders(_numbered(8, seed=1, shuffle=True), [0, 1])
    assert torch.equal(torch.get_rng_state(), before)


def test_without_shuffling_the_order_is_that_of_the_examples():
    assert _orders(_numbered(8), [0, 1]) == [list(range(50))] * 2


def test_inputs_and_targets_stay_together():
    loader = _numbered(7, seed=4, shuffle=True)
    for inputs, targets in loader:
        assert inputs[:, 0].int().tolist() == targets.tolist()


@pytest.mark.parametrize(("batch_size", "sizes"), [(8, [8] * 6 + [2]), (25, [25, 25]), (50, [50]), ("full", [50])])
def test_the_last_smaller_batch_is_kept(batch_size, sizes):
    loader = _numbered(batch_size, shuffle=True)
    assert [len(inputs) for inputs, _ in loader] == sizes
    assert len(loader) == len(sizes)


@pytest.mark.parametrize("option", DATA)
def test_a_full_batch_is_all_training_examples_at_once(option, compose):
    source = _source(option, compose, "batch_size=full")
    (batch,) = source.train_dataloader()
    assert len(batch[0]) == len(source.parts["train"][0])


@pytest.mark.parametrize("option", DATA)
def test_a_batch_larger_than_the_training_part_is_refused_with_what_to_type(option, compose):
    count = len(_indices(option, compose)["train"])
    assert len(list(_source(option, compose, f"batch_size={count}").train_dataloader())) == 1
    with pytest.raises(ConfigError) as caught:
        _source(option, compose, f"batch_size={count + 1}")
    assert str(caught.value) == (
        f"`batch_size` must be at most the {count} training examples, got {count + 1}. Try batch_size=full."
    )


def test_evaluation_meets_each_example_once_in_its_own_order(compose):
    source = _source("digits", compose)
    for name, loader in (("val", source.val_dataloader()), ("test", source.test_dataloader())):
        targets = torch.cat([targets for _, targets in loader])
        assert torch.equal(targets, source.parts[name][1])


class _Seen(Callback):
    """The examples of each epoch of a real run, each by its sum, which is its own in diabetes."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, trainer, module):
        self.epochs.append([])

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.epochs[-1].extend(batch[0].double().sum(dim=1).tolist())


def test_a_run_meets_each_training_example_once_per_epoch_in_the_order_of_seed_and_epoch(fit_with):
    seen = {}
    for name, overrides in {
        "three": ["epochs=3"],
        "two": ["epochs=2", "model.dropout=0.5", "size=tiny"],  # other random numbers in between
        "other seed": ["epochs=2", "seed=1"],
    }.items():
        callback = _Seen()
        fitted = fit_with([callback], "data=diabetes", "callbacks=[]", "logger=[]", *overrides)
        seen[name] = callback.epochs
    own = fitted.data.parts["train"][0].double().sum(dim=1).tolist()
    assert len(set(own)) == len(own)
    for epochs in seen.values():
        assert all(sorted(epoch) == sorted(own) for epoch in epochs)
    assert seen["three"][:2] == seen["two"]
    assert len({tuple(epoch) for epoch in [*seen["three"], *seen["other seed"]]}) == 5


def test_a_run_without_a_validation_part_trains_on_it_and_has_no_best(fit):
    result, folder = fit("data=diabetes", "data.val_fraction=0", "epochs=2", "size=tiny")
    examples = 442 - round(0.1 * 442)
    assert (result["status"], result["steps"]) == ("finished", 2 * math.ceil(examples / 64))
    assert result["objective"]["best"] is None
    assert sorted(result["test"]) == ["test/loss", "test/mae", "test/r2", "test/rmse"]
    assert "val/" not in (folder / "metrics.csv").read_text()


def test_a_run_without_a_test_part_has_no_test_score(fit):
    result, _ = fit("data=diabetes", "data.test_fraction=0", "epochs=1", "size=tiny")
    assert result["test"] is None
    assert result["objective"]["epoch"] == 1


def test_an_unknown_data_set_is_refused_with_those_there_are():
    source = BundledData(
        "irises", batch_size=8, val_fraction=0.1, test_fraction=0.1, split_seed=0, shuffle=True, seed=0
    )
    with pytest.raises(ConfigError) as caught:
        source.setup("fit")
    assert str(caught.value) == (
        "`data.dataset` must be one of digits, breast_cancer, diabetes, iris, wine, got irises. Try data=digits."
    )
