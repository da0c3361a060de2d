"""What a folder of images means: its parts and classes, whatever people call them, and what is passed over is said."""

import logging
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from tunelab import load
from tunelab.data.folders import ENDINGS, read_tree, understand
from tunelab.data.images import find
from tunelab.errors import ConfigError
from tunelab.fitting import build
from tunelab.predictor import evaluate


def save(path, value=0, size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path, format=None if path.suffix == ".png" else "PNG")


def fill(root, *paths):
    for number, path in enumerate(paths):
        save(root / path, number % 256)
    return root


def placed(layout):
    """(part, class, file) of each image."""
    parts = layout.parts or ["train"] * len(layout.images)
    return {(p, layout.classes[k], f) for p, k, f in zip(parts, layout.labels, layout.images, strict=True)}


@pytest.fixture
def read(compose):
    def make(path, *overrides):
        cfg = compose("data=image_folder", "batch_size=4", *overrides)
        cfg.data.path = str(path)
        data = build(cfg.data)
        data.setup("fit")
        return data

    return make


# ---- parts and classes


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", "Validation", "Testing"),
        ("Train", "Valid", "Test"),
        ("TRAIN", "Dev", "TEST"),
        ("train_set", "val-set", "test set"),
        ("trainset", "valset", "testset"),
    ],
)
def test_parts_are_known_by_any_usual_name(tmp_path, train, val, test):
    fill(tmp_path, *(f"{part}/{name}/0.png" for part in (train, val, test) for name in ("cat", "dog")))
    layout = understand(str(tmp_path), None)
    assert layout.classes == ("cat", "dog")
    assert placed(layout) == {
        (part, name, f"{folder}/{name}/0.png")
        for folder, part in ((train, "train"), (val, "val"), (test, "test"))
        for name in ("cat", "dog")
    }
    assert layout.remarks == []


def test_folders_around_the_data_are_gone_down_and_said(tmp_path):
    fill(tmp_path, "pets/images/cat/0.png", "pets/images/dog/0.png")
    layout = understand(str(tmp_path), None)
    assert placed(layout) == {(("train"), name, f"pets/images/{name}/0.png") for name in ("cat", "dog")}
    assert layout.parts is None
    assert layout.remarks == ["the classes are the folders in pets/images/"]


def test_a_folder_within_each_part_is_gone_down_too(tmp_path):
    fill(tmp_path, *(f"archive/{part}/images/{name}/0.png" for part in ("Training", "Testing") for name in "ab"))
    layout = understand(str(tmp_path), None)
    assert {(part, name) for part, name, _ in placed(layout)} == {(p, n) for p in ("train", "test") for n in "ab"}
    assert layout.remarks == ["the classes are the folders in archive/Training/images/ and archive/Testing/images/"]


def test_a_test_part_with_one_class_keeps_that_class(tmp_path):
    fill(tmp_path, "train/cat/0.png", "train/dog/0.png", "test/cat/more/0.png")
    assert ("test", "cat", "test/cat/more/0.png") in placed(understand(str(tmp_path), None))


def test_folders_in_each_folder_are_asked_about(tmp_path):
    fill(tmp_path, *(f"{time}/{name}/0.png" for time in ("day", "night") for name in ("cat", "dog", "eel")))
    with pytest.raises(ConfigError) as caught:
        understand(str(tmp_path), None)
    assert str(caught.value) == (
        f"`data.class_folder` must say which folder names the class, for day/ in {tmp_path} has its images in folders "
        "within it. Type data.class_folder=first for the classes day, night, or data.class_folder=last for "
        "cat, dog, eel."
    )
    assert understand(str(tmp_path), "first").classes == ("day", "night")
    last = understand(str(tmp_path), "last")
    assert last.classes == ("cat", "dog", "eel")
    assert {(name, file) for _, name, file in placed(last)} == {
        (name, f"{time}/{name}/0.png") for time in ("day", "night") for name in ("cat", "dog", "eel")
    }


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (
            ["Testing/cat/0.png", "cat/0.png", "dog/0.png"],
            r"must have a folder train/ with the classes beside Testing/",
        ),
        (["test/0.png", "cat/0.png", "dog/0.png"], r"must have a folder train/ with the classes beside test/"),
        (
            ["train/cat/0.png", "Training/dog/0.png", "test/cat/0.png"],
            r"one folder for each part, got Training/ and train/ in .*, which both mean train",
        ),
        (["train/a/0.png", "train/b/0.png", "extra/a/0.png"], r"only val/ and test/ beside train/, got extra/"),
        (["train/a/0.png", "train/b/0.png", "test/c/0.png"], r"the same classes in test/ as in the training part"),
    ],
)
def test_what_may_be_a_part_or_a_class_is_refused(tmp_path, paths, words):
    with pytest.raises(ConfigError, match=words):
        understand(str(fill(tmp_path, *paths)), None)


def test_a_class_may_be_called_train(tmp_path):
    assert understand(str(fill(tmp_path, "train/0.png", "car/0.png", "plane/0.png")), None).classes == (
        *("car", "plane", "train"),
    )


def test_images_without_a_class_are_passed_over_and_said(tmp_path):
    layout = understand(str(fill(tmp_path, "train/a/0.png", "train/b/0.png", "test/1.png", "test/2.png")), None)
    assert {part for part, _, _ in placed(layout)} == {"train"}
    assert layout.remarks == ["passed over 2 images that lie in no class's folder: test/1.png, test/2.png"]


def test_classes_that_differ_in_capitals_alone_are_said(tmp_path):
    layout = understand(str(fill(tmp_path, "Cat/0.png", "cat/0.png")), None)
    assert layout.classes == ("Cat", "cat")
    assert layout.remarks == ["Cat and cat are two classes, though their names differ in capitals or spaces alone"]


def test_every_folder_that_can_be_made_is_read_as_it_was_made(tmp_path):
    """Generated folders: each image has the part and the class that its maker gave it, and none is missing."""
    random.seed(0)
    for number in range(60):
        root = tmp_path / str(number)
        names = random.sample(["cat", "dog", "__sheep", "my eel", "Ölschwalbe", "train", "a.b", "7"], 3)
        parts = random.choice(
            [{"": "train"}, {"Training": "train", "Testing": "test"}, {"train": "train", "val": "val"}]
        )
        around = random.choice(["", "data", "data/raw"])
        expected = set()
        for folder, part in parts.items():
            for name in names:
                for image in range(random.randint(1, 3)):
                    deeper = "deep" if image and random.random() < 0.3 else ""
                    ending = random.choice(ENDINGS)
                    ending = random.choice([ending, ending.upper()])
                    path = "/".join(filter(None, (around, folder, name, deeper, f"{image}{ending}")))
                    save(root / path)
                    expected.add((part, name, path))
        layout = understand(str(root), None)
        assert placed(layout) == expected
        assert layout.classes == tuple(sorted(names))


# ---- which files count


def test_every_usual_ending_counts_and_others_are_said(tmp_path):
    fill(tmp_path, *(f"cat/{n}{ending}" for n, ending in enumerate(ENDINGS)), "dog/0.JPE", "dog/1.Jfif")
    (tmp_path / "dog" / "2.heic").write_bytes(b"")
    (tmp_path / "dog" / "3.txt").write_text("")
    (tmp_path / "notes").write_text("")
    (tmp_path / "dog" / "Thumbs.db").write_text("")
    layout = understand(str(tmp_path), None)
    assert len(layout.images) == len(ENDINGS) + 2
    assert layout.remarks == ["passed over 3 files (.heic 1, .txt 1, no ending 1): no images by their endings"]


def test_folders_without_a_known_image_name_what_they_hold(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.heic").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no file ends in \.png, .* It has 2 files \(\.heic 2\), which are none\."):
        understand(str(tmp_path), None)


def test_links_are_followed_and_those_back_are_said(tmp_path):
    elsewhere = fill(tmp_path / "elsewhere", "0.png", "1.png")
    root = fill(tmp_path / "root", "dog/0.png", "cat/2.png")
    (root / "cat" / "more").symlink_to(elsewhere)
    (root / "eel").symlink_to(elsewhere)
    (root / "dog" / "loop").symlink_to(root)
    layout = understand(str(root), None)
    assert {(name, file) for _, name, file in placed(layout)} == {
        *(("cat", "cat/2.png"), ("cat", "cat/more/0.png"), ("cat", "cat/more/1.png")),
        *(("dog", "dog/0.png"), ("eel", "eel/0.png"), ("eel", "eel/1.png")),
    }
    assert layout.remarks == ["passed over the folders dog/loop (a link back)"]


def test_a_name_with_underscores_is_a_class_and_hidden_folders_are_said(tmp_path):
    layout = understand(str(fill(tmp_path, "__cat/0.png", "dog/0.png", "__MACOSX/1.png", ".old/2.png")), None)
    assert layout.classes == ("__cat", "dog")
    assert layout.remarks == ["passed over the folders .old, __MACOSX"]


def test_images_stand_in_order_of_parts_classes_and_names(tmp_path):
    """The order that the split follows from, which must not move."""
    fill(tmp_path, *(f"{p}/{c}/{n}.png" for p in ("val", "train") for c in ("b", "a") for n in ("10", "2", "x/1")))
    assert find(str(tmp_path)).files.names == [
        f"{part}/{name}/{image}.png" for part in ("train", "val") for name in ("a", "b") for image in ("10", "2", "x/1")
    ]
    assert ["/".join(i) for i in read_tree(tmp_path / "val").images] == [
        f"{c}/{n}.png" for c in "ab" for n in ("10", "2", "x/1")
    ]


# ---- depth


def noise(shape, greatest, seed):
    return np.random.default_rng(seed).integers(0, greatest + 1, shape).astype(np.uint16)


def deep_folder(root, greatest, count=10):
    """Images of 16 bits a value, of which those of cat are darker."""
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            values = noise((6, 6), greatest // 2, 2 * number + label) + label * (greatest // 2)
            if label and not number:
                values[0, 0] = greatest
            Image.fromarray(values.astype(np.uint16)).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize(("greatest", "bits"), [(1023, 10), (4000, 12), (4096, 14), (65535, 16), (200, 10)])
@pytest.mark.parametrize("color", ["rgb", "grey"])
def test_every_value_of_sixteen_bits_is_kept(tmp_path, read, greatest, bits, color):
    root = deep_folder(tmp_path / "deep", greatest)
    data = read(root, f"data.color={color}", "data.val_fraction=0", "data.test_fraction=0")
    assert data.spec.value_range == (0, 2**bits - 1)
    mean, std = (np.reshape(s, (-1, 1, 1)) for s in (data.spec.input_mean, data.spec.input_std))
    values = data.parts["train"][0].double().numpy() * std + mean
    names = [root / name / f"{n}.png" for name in ("cat", "dog") for n in range(10)]
    truth = np.stack([np.repeat(np.asarray(Image.open(p))[None], 3 if color == "rgb" else 1, axis=0) for p in names])
    np.testing.assert_allclose(values, truth, atol=greatest * 1e-6)
    np.testing.assert_allclose(data.spec.input_mean, truth.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.spec.input_std, truth.std(axis=(0, 2, 3)), rtol=1e-12)


def test_a_mixture_of_depths_is_refused(tmp_path, read):
    root = deep_folder(tmp_path / "deep", 4095)
    save(root / "dog" / "3.png", 100)
    with pytest.raises(
        ConfigError, match=r"the same number of bits a value, but 1 of 20 have 8, the others 16: dog/3\.png"
    ):
        read(root)


def test_real_numbers_are_refused(tmp_path, read):
    root = deep_folder(tmp_path / "deep", 4095)
    Image.fromarray(np.random.default_rng(0).random((6, 6)).astype(np.float32)).save(root / "cat" / "x.tif")
    with pytest.raises(ConfigError, match=r"cat/x\.tif \(has real numbers; save it with 8 or 16 bits\)"):
        read(root)


def colour_png(values):
    """A png of three colours of 16 bits, which Pillow cannot write, shape (height, width, 3)."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("greatest", "dark"), [(65535, False), (4095, True)])
def test_colours_of_sixteen_bits_are_said_and_refused_where_nothing_is_left_of_them(
    tmp_path, read, caplog, greatest, dark
):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.png").write_bytes(colour_png(noise((6, 6, 3), greatest, number)))
    if dark:
        with pytest.raises(ConfigError, match=r"8 have 16 and use the lower 12 of them, which leaves 16 of 256 steps"):
            read(tmp_path)
        return
    with caplog.at_level(logging.INFO, "tunelab"):
        read(tmp_path)
    assert "16 bits a colour, of which the upper 8 are used: 8 images" in caplog.text


def test_what_a_run_reads_and_leaves_out_is_said(tmp_path, read, caplog):
    fill(tmp_path, *(f"{name}/{n}.png" for name in ("cat", "dog") for n in range(10)))
    frames = [Image.fromarray(np.full((6, 6), v, np.uint8)) for v in (10, 200)]
    frames[0].save(tmp_path / "cat" / "x.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "cat" / "x.heic").write_bytes(b"")
    with caplog.at_level(logging.INFO, "tunelab"):
        read(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path.name}: images 17 train, 2 val, 2 test; 2 classes; 6 x 6 rgb",
        *("  cat: 9 train, 1 val, 1 test", "  dog: 8 train, 1 val, 1 test"),
        "  passed over 1 file (.heic 1): no images by their endings",
        "  several frames or pages, of which the first is used: 1 image",
    ]


def test_a_run_on_deep_images_learns_and_its_model_takes_them_again(tmp_path, fit, caplog):
    root = deep_folder(tmp_path / "deep", 4095, 40)
    _, run = fit(
        "data=image_folder", f"data.path='{root}'", "model=cnn", "size=tiny", "epochs=4", "batch_size=8", "lr=1e-2"
    )
    assert evaluate(run)["test/accuracy"] == 1.0
    predicted = load(run).predict_images(str(root))
    assert (predicted["prediction"] == [name.split("/")[0] for name in predicted["file"]]).mean() > 0.95
    save(tmp_path / "shallow" / "0.png", 100)
    with pytest.raises(ConfigError, match=r"of 16 bits a value as the training images, but 1 of 1 .*0\.png \(8 bits a"):
        load(run).predict_images(str(tmp_path / "shallow"))
    shutil.rmtree(tmp_path / "shallow")
