"""Hugging Face data sets from local files in the real formats, and a hub that cannot be reached."""

import io
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from tunelab.config import validate
from tunelab.data import hub
from tunelab.data.workers import WorkerLoader
from tunelab.errors import ConfigError
from tunelab.fitting import build

datasets = pytest.importorskip("datasets")
DIGITS = tuple(str(digit) for digit in range(10))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def no_network(monkeypatch):
    def fail(*arguments, **keywords):
        raise urllib.error.URLError(OSError("Name or service not known"))

    monkeypatch.setattr(urllib.request, "urlopen", fail)


@pytest.fixture
def read(compose):
    def make(path, *overrides, option="huggingface"):
        cfg = compose(f"data={option}", "batch_size=16", *overrides)
        cfg.data.path = str(path)
        validate(cfg)
        data = build(cfg.data)
        data.setup("fit")
        return data

    return make


def digits(count, seed, columns=("image", "label")):
    """`count` grey pictures of 28 x 28 of ten classes in turn, as the hub's MNIST has them; and their raw pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 28, 28)).astype(np.uint8)
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: datasets.ClassLabel(names=list(DIGITS))})
    columns_of = {columns[0]: [Image.fromarray(p) for p in pixels], columns[1]: [i % 10 for i in range(count)]}
    return datasets.Dataset.from_dict(columns_of, features=features), pixels


@pytest.fixture
def mnist(tmp_path):
    """A folder of parquet files as the hub has it, 100 training and 30 test digits; and the raw pixels of both."""
    (train, train_pixels), (test, test_pixels) = digits(100, 0), digits(30, 1)
    folder = tmp_path / "a copy" / "mnist"
    folder.mkdir(parents=True)
    train.to_parquet(str(folder / "train-00000-of-00001.parquet"))
    test.to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return folder.parent, train_pixels, test_pixels


def raw(data, part):
    mean, std = data.spec.input_mean[0], data.spec.input_std[0]
    return (data.parts[part][0].double().numpy() * std + mean).round().astype(np.uint8)


# ---- images


@pytest.mark.parametrize("option", ["mnist", "fashion_mnist"])
def test_a_local_copy_of_mnist_has_its_pixels_its_classes_and_its_own_test_part(mnist, read, option):
    folder, train, test = mnist
    data = read(folder, option=option)
    assert data.spec.input_shape == (1, 28, 28)
    assert data.spec.class_names == DIGITS
    assert np.array_equal(raw(data, "test")[:, 0], test)
    assert data.parts["test"][1].tolist() == [i % 10 for i in range(30)]
    assert [len(data.parts[part][0]) for part in ("train", "val")] == [90, 10]
    ours = sorted(pixels.tobytes() for part in ("train", "val") for pixels in raw(data, part))
    assert ours == sorted(pixels.tobytes() for pixels in train)
    fitted = raw(data, "train").astype(np.float64)
    assert data.spec.input_mean == pytest.approx([fitted.mean()], rel=1e-12)
    assert data.spec.input_std == pytest.approx([fitted.std()], rel=1e-12)


@pytest.mark.slow
def test_a_local_copy_of_cifar10_is_read_in_colour_from_columns_of_other_names(tmp_path, read):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    table = {"img": [Image.fromarray(p) for p in pixels], "label": [0, 1] * 20}
    folder = tmp_path / "cifar10" / "plain_text"
    folder.mkdir(parents=True)
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    data = read(folder.parent, option="cifar10")
    assert data.spec.input_shape == (3, 32, 32)
    mean, std = (np.reshape(s, (-1, 1, 1)) for s in (data.spec.input_mean, data.spec.input_std))
    ours = {
        (inputs.double().numpy() * std + mean).round().astype(np.uint8).transpose(1, 2, 0).tobytes(): label
        for part in ("train", "val", "test")
        for inputs, label in zip(data.parts[part][0], data.parts[part][1].tolist(), strict=True)
    }
    assert ours == {p.tobytes(): i % 2 for i, p in enumerate(pixels)}


@pytest.mark.slow
def test_workers_read_the_batches_that_memory_has(mnist, read):
    kept = read(mnist[0]).train_dataloader()
    data = read(mnist[0], "data.in_memory=false", "data.workers=1")
    loader = data.train_dataloader()
    assert isinstance(loader, WorkerLoader)
    for ours, theirs in zip(kept, loader, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    data.teardown("fit")


@pytest.mark.parametrize("kind", ["saved", "saved with splits", "parquet", "arrow", "images"])
def test_each_local_format_has_the_same_digits(tmp_path, read, kind):
    table, pixels = digits(40, 0)
    path = tmp_path / "here"
    if kind == "saved":
        table.save_to_disk(path)
    elif kind == "saved with splits":
        datasets.DatasetDict(train=table).save_to_disk(path)
    elif kind == "parquet":
        table.to_parquet(str(path := tmp_path / "here.parquet"))
    elif kind == "arrow":
        table.save_to_disk(path)
        path = next(path.glob("*.arrow"))
    else:
        for number, picture in enumerate(pixels):
            (path / DIGITS[number % 10]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path / DIGITS[number % 10] / f"{number}.png")
    data = read(path, "data.color=grey", "data.test_fraction=0", "data.val_fraction=0")
    ours = {
        p.tobytes(): label for p, label in zip(raw(data, "train")[:, 0], data.parts["train"][1].tolist(), strict=True)
    }
    assert ours == {p.tobytes(): i % 10 for i, p in enumerate(pixels)}
    assert data.spec.class_names == DIGITS


def test_a_shuffled_and_selected_set_keeps_pictures_and_labels_together(tmp_path, read):
    table, pixels = digits(60, 0)
    datasets.DatasetDict(train=table.shuffle(seed=1).select(range(40))).save_to_disk(tmp_path / "here")
    data = read(tmp_path / "here", "data.color=grey")
    labels = {p.tobytes(): i % 10 for i, p in enumerate(pixels)}
    for part in ("train", "val", "test"):
        assert [labels[p.tobytes()] for p in raw(data, part)[:, 0]] == data.parts[part][1].tolist()


def test_own_names_of_splits_are_followed_and_usual_ones_found(tmp_path, read):
    parts = {
        name: digits(count, i)[0] for i, (name, count) in enumerate([("first", 40), ("validation", 20), ("x", 30)])
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "here")
    data = read(tmp_path / "here", "data.train_split=first", "data.test_split=x")
    assert [len(data.parts[part][0]) for part in ("train", "val", "test")] == [40, 20, 30]


# ---- tables


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_a_table_of_numbers_is_learned_from(tmp_path, read, kind):
    random = np.random.default_rng(0)
    values = {"a": random.normal(size=50).round(3), "b": random.integers(0, 9, 50), "kind": ["x", "y"] * 25}
    table = datasets.Dataset.from_dict(values)
    path = tmp_path / f"table.{kind}"
    {"csv": table.to_csv, "parquet": table.to_parquet}.get(kind, table.to_json)(str(path))
    data = read(path, "data.target_column=kind")
    assert (data.spec.kind, data.spec.feature_names, data.spec.class_names) == ("table", ("a", "b"), ("x", "y"))
    restored = data.parts["train"][0].double().numpy() * data.spec.input_std + data.spec.input_mean
    rows = {(round(a, 3), round(b), k) for a, b, k in zip(*values.values(), strict=True)}
    labels = data.parts["train"][1].tolist()
    assert {(round(a, 3), round(b), "xy"[k]) for (a, b), k in zip(restored, labels, strict=True)} <= rows
    one = read(path, "data.target_column=kind", "data.feature_columns=[b]")
    assert one.spec.feature_names == ("b",)


def test_numbers_are_predicted_and_whole_ones_where_the_task_is_a_regression(tmp_path, read):
    path = tmp_path / "table.csv"
    datasets.Dataset.from_dict({"a": [1.5, 2.5] * 20, "n": [3, 4] * 20, "y": [0.5, 0.25] * 20}).to_csv(str(path))
    regression = ("task=regression", "loss=mse", "objective=val/rmse")
    assert read(path, "data.target_column=y", *regression).spec.class_names == ()
    data = read(path, "data.target_column=n", *regression)
    assert (data.spec.class_names, data.parts["train"][1].dtype) == ((), torch.float32)
    assert data.spec.target_mean == pytest.approx(3.5)
    assert read(path, "data.target_column=n").spec.class_names == ("3", "4")


# ---- refusals


def saved(tmp_path, **columns):
    features = columns.pop("features", None)
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("columns", "overrides", "words"),
    [
        (
            {"text": ["good", "bad"] * 20, "n": [1, 2] * 20, "label": ["a", "b"] * 20},
            ["data.target_column=label"],
            "`data.feature_columns` must name columns of numbers beside the target label, got text (string). "
            "Try data.feature_columns=[n], or data=parquet or data=csv, which take texts and dates too.",
        ),
        (
            {"text": ["good", "bad"] * 20, "n (cm)": [1, 2] * 20, "label": ["a", "b"] * 20},
            ["data.target_column=label"],
            """Try 'data.feature_columns=["n (cm)"]', or data=parquet""",
        ),
        ({"n": [1, 2] * 20}, [], "`data.target_column` must be given, for no column of"),
        ({"n": [1, 2] * 20, "label": [0, 1] * 20}, ["data.target_column=lable"], "got lable. Did you mean label?"),
        ({"n": [1, 2] * 20, "label": [0, 1] * 20}, ["data.image_column=n"], "`data.image_column` must hold images"),
        (
            {"n": [1.0, None] * 20, "label": [0, 1] * 20},
            ["data.target_column=label"],
            "`data.path` must have finite numbers, but they are missing: n in 20 rows.",
        ),
        (
            {"n": [1, 2] * 20, "label": [0, None] * 20},
            ["data.target_column=label"],
            "`data.target_column` must have a value in each row, got label, which has none in 20 of 40.",
        ),
        (
            {"n": [1, 2] * 20, "label": ["a"] * 40},
            ["data.target_column=label"],
            "`data.target_column` must have at least two classes, got a in every row.",
        ),
        (
            {"n": [1, 2] * 20, "label": [0, 1] * 20},
            ["data.target_column=label", "data.test_split=tset"],
            "`data.test_split` must be one of train, got tset.",
        ),
    ],
)
def test_what_a_data_set_lacks_is_said_in_words(tmp_path, read, columns, overrides, words):
    with pytest.raises(ConfigError) as caught:
        read(saved(tmp_path, **columns), *overrides)
    assert words in str(caught.value)


def test_several_columns_that_would_do_are_named(tmp_path, read):
    label = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"n": datasets.Value("int64"), "fine": label, "coarse": label})
    path = saved(tmp_path, n=[1, 2] * 20, fine=[0, 1] * 20, coarse=[0, 1] * 20, features=features)
    with pytest.raises(
        ConfigError, match=r"2 columns would do\. Try data\.target_column=fine or data\.target_column=coar"
    ):
        read(path)


def test_a_damaged_image_is_named_by_its_row(tmp_path, read):
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, "PNG")
    cells = [{"bytes": stream.getvalue(), "path": None}] * 40
    cells[7] = {"bytes": b"nothing", "path": None}
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    path = saved(tmp_path, image=cells, label=[0, 1] * 20, features=features)
    with pytest.raises(
        ConfigError, match=r"but 1 of 40 cannot: row 7 of train \(not an image\)\. Replace or remove it"
    ):
        read(path)


@pytest.mark.parametrize("option", ["mnist", "fashion_mnist", "cifar10"])
def test_without_a_network_the_hub_is_refused_at_once(compose, no_network, option):
    data = build(compose(f"data={option}").data)
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        data.setup("fit")
    assert time.monotonic() - began < 20  # the library's own retries take 23 s
    assert f"`data.path` must be reachable, got {data.path}" in str(caught.value)
    assert "no network to the hub. Download it on a machine with one and type data.path=<folder>." in str(caught.value)


def test_a_network_that_is_silent_is_waited_for_no_longer_than_seconds(monkeypatch):
    over = threading.Event()

    def silent(*arguments, **keywords):
        over.wait(60)
        raise urllib.error.URLError(OSError("timed out"))

    monkeypatch.setattr(hub, "NETWORK_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(urllib.request, "urlopen", silent)
    assert not hub.is_reachable()
    assert not over.is_set()
    over.set()


def test_any_answer_of_the_hub_counts_and_offline_mode_does_not_ask(monkeypatch):
    from huggingface_hub import constants

    def refuse(*arguments, **keywords):
        raise urllib.error.HTTPError("https://huggingface.co", 405, "no", None, None)

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert hub.is_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.is_reachable()


def test_what_was_downloaded_before_is_used_without_a_network(tmp_path, read, no_network, monkeypatch):
    # as the library lays out its cache: <owner>___<name>/<configuration>/<version>/<hash>
    table, pixels = digits(40, 0)
    place = tmp_path / "cache" / "ylecun___mnist" / "mnist" / "0.0.0" / "77f3279092a1c1579b2250db8eafed0ad422088c"
    built = datasets.load_dataset("parquet", data_files=_parquet(table, tmp_path), cache_dir=str(tmp_path / "build"))
    arrow = next((tmp_path / "build").rglob("*-train.arrow"))
    place.mkdir(parents=True)
    arrow.rename(place / "mnist-train.arrow")
    built["train"].info.config_name, built["train"].info.dataset_name = "mnist", "mnist"
    built["train"].info.write_to_directory(str(place))
    data = read("ylecun/mnist", "data.test_fraction=0", "data.val_fraction=0", option="mnist")
    assert np.array_equal(raw(data, "train")[:, 0], pixels)


def _parquet(table, folder):
    table.to_parquet(str(folder / "table.parquet"))
    return str(folder / "table.parquet")


def test_a_local_path_that_is_none_is_refused_with_its_neighbours(tmp_path, read, no_network):
    saved(tmp_path, n=[1, 2] * 20)
    with pytest.raises(ConfigError, match=r"which does not exist\. Did you mean .*here\? Type data\.path=<folder>\."):
        read(tmp_path / "hree")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"must be a folder or a file that ends in \.parquet, .*, got notes\.txt"):
        read(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"`data.path` must be data that the package datasets can read, got .*empty"):
        read(tmp_path / "empty")


def test_a_missing_package_is_named_with_what_installs_it(read, mnist, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ConfigError, match=r"must have the package datasets, .* Type: pip install \"tunelab\[datasets\]\""
    ):
        read(mnist[0])


def test_loading_a_local_set_says_nothing(mnist, read, capfd):
    read(mnist[0])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["csv", "json", "pandas"])
def test_the_name_of_a_reader_is_no_data_set(fit, name):
    with pytest.raises(ConfigError, match=rf"must name a data set, got {name}, a format\. Type data\.path="):
        fit("data=huggingface", f"data.path={name}")
