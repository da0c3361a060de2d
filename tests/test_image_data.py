"""Folders of images: pixels as Pillow reads them, statistics of the training images alone, mistakes named."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tunelab import load
from tunelab.config import validate
from tunelab.data.decoder import Decoder
from tunelab.errors import ConfigError
from tunelab.fitting import build

CLASSES = ("cat", "dog", "eel")


def picture(seed, size=(8, 8), mode="RGB"):
    """A picture of noise, brighter for later seeds."""
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    values = np.random.default_rng(seed).integers(0, 120, (size[1], size[0], channels)) + 40 * (seed % 3)
    return Image.fromarray(values.astype(np.uint8).squeeze())


@pytest.fixture
def folder(tmp_path):
    """20 pictures of 8 x 8 in each of three classes, in a folder with a space in its name."""
    root = tmp_path / "my pets (1)"
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(20):
            picture(3 * number + label).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture
def read(compose):
    def make(path, *overrides):
        cfg = compose("data=image_folder", "batch_size=16", *overrides)
        cfg.data.path = str(path)
        validate(cfg)
        data = build(cfg.data)
        data.setup("fit")
        return data

    return make


def raw(data, part):
    """The pixels of a part, from its normalized tensors."""
    mean, std = (np.reshape(s, (-1, 1, 1)) for s in (data.spec.input_mean, data.spec.input_std))
    values = data.parts[part][0].double().numpy() * std + mean
    np.testing.assert_allclose(values, values.round(), atol=1e-3)
    return values.round().astype(np.uint8)


def as_pillow_reads(path):
    return np.array(Image.open(path).convert("RGB")).transpose(2, 0, 1)


# ---- what is read


def test_every_image_is_in_one_part_with_its_pixels_and_its_class(folder, read):
    data = read(folder)
    assert data.spec.class_names == CLASSES
    files = {as_pillow_reads(path).tobytes(): path.parent.name for path in folder.rglob("*.png")}
    found = [
        (pixels.tobytes(), CLASSES[label])
        for part in ("train", "val", "test")
        for pixels, label in zip(raw(data, part), data.parts[part][1].tolist(), strict=True)
    ]
    assert dict(found) == files
    assert len(found) == len(files) == 60
    assert [len(data.parts[part][0]) for part in ("train", "val", "test")] == [48, 6, 6]
    for part in ("val", "test"):
        assert torch.bincount(data.parts[part][1]).tolist() == [2, 2, 2]


@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_statistics_are_those_of_the_training_images_alone(folder, read, in_memory):
    data = read(folder, f"data.in_memory={in_memory}", "data.workers=0")
    kept = read(folder)
    train = raw(kept, "train").astype(np.float64)
    np.testing.assert_allclose(data.spec.input_mean, train.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.spec.input_std, train.std(axis=(0, 2, 3)), rtol=1e-12)
    assert data.spec == kept.spec
    assert data.spec.class_counts == (16, 16, 16)
    assert data.spec.value_range == (0, 255)
    assert data.spec.feature_names[:2] == ("red_0_0", "red_0_1")
    assert len(data.spec.feature_names) == 3 * 8 * 8


def test_a_channel_that_never_changes_stays_zero(folder, read):
    for path in folder.rglob("*.png"):
        pixels = np.array(Image.open(path))
        pixels[:, :, 1] = 77
        Image.fromarray(pixels).save(path)
    data = read(folder)
    assert (data.spec.input_mean[1], data.spec.input_std[1]) == (77, 1)
    assert data.parts["test"][0][:, 1].abs().max().item() == 0


def test_given_parts_are_kept_and_a_missing_one_is_taken_from_the_training_images(folder, read):
    given = folder.with_name("given")
    for name in CLASSES:
        for part, numbers in (("train", range(15)), ("test", range(15, 20))):
            (given / part / name).mkdir(parents=True)
            for number in numbers:
                shutil.copy(folder / name / f"{number:02}.png", given / part / name)
    data = read(given, "data.val_fraction=0.2")
    assert [len(data.parts[part][0]) for part in ("train", "val", "test")] == [36, 9, 15]
    in_test = sorted(as_pillow_reads(path).tobytes() for path in (given / "test").rglob("*.png"))
    assert sorted(pixels.tobytes() for pixels in raw(data, "test")) == in_test
    folds = [read(given, f"fold={number}/3") for number in range(3)]
    validated = [pixels.tobytes() for fold in folds for pixels in raw(fold, "val")]
    assert sorted(validated) == sorted(as_pillow_reads(path).tobytes() for path in (given / "train").rglob("*.png"))
    shutil.copytree(given / "test", given / "val")
    assert [len(read(given).parts[part][0]) for part in ("train", "val", "test")] == [45, 15, 15]
    with pytest.raises(ConfigError, match=r"`fold` must not be given where the data has a validation part of its own"):
        read(given, "fold=0/5")


def test_endings_in_capitals_count_and_folders_in_a_class_and_other_files_do_not_matter(folder, read):
    (folder / "cat" / "more").mkdir()
    picture(99).save(folder / "cat" / "more" / "A.JPG", format="JPEG")
    (folder / "cat" / "notes.txt").write_text("nothing")
    (folder / "cat" / "._00.png").write_text("left behind by a Mac")
    (folder / ".cache").mkdir()
    (folder / "__MACOSX").mkdir()
    assert sum(len(inputs) for inputs, _ in read(folder).parts.values()) == 61


# ---- decoding


def encoded(image, kind="PNG", **keywords):
    stream = io.BytesIO()
    image.save(stream, kind, **keywords)
    return stream.getvalue()


def test_transparent_pixels_are_white():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    pixels[0, 1] = (100, 100, 100, 51)  # a fifth of it, the rest white
    decoded = Decoder("rgb", None)(encoded(Image.fromarray(pixels)))
    assert decoded[:, 0, 0].tolist() == [10, 20, 30]
    assert decoded[:, 0, 1].tolist() == [0.2 * 100 + 0.8 * 255] * 3
    assert (decoded[:, 1] == 255).all()


def test_a_palette_is_looked_up_and_its_transparent_colour_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 1, 2, 3])
    image.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        assert Decoder("rgb", None)(encoded(image, kind))[:, 0].T.tolist() == [[200, 100, 50], [1, 2, 3]]
        clear = Decoder("rgb", None)(encoded(image, kind, transparency=0))
        assert clear[:, 0].T.tolist() == [[255, 255, 255], [1, 2, 3]]


def test_grey_is_the_luma_that_pillow_has():
    image = picture(1)
    assert np.array_equal(Decoder("grey", None)(encoded(image))[0], np.array(image.convert("L")))


def test_the_orientation_that_a_camera_noted_is_followed():
    image, exif = picture(2, (4, 6)), Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right of the stored rows
    decoded = Decoder("rgb", None)(encoded(image, exif=exif))
    stored = np.array(image).transpose(2, 0, 1)
    assert decoded.shape == (3, 4, 6)
    assert np.array_equal(decoded, np.rot90(stored, k=-1, axes=(1, 2)))


def test_a_given_size_cuts_the_longer_sides_alike_and_scales():
    image = picture(3, (24, 8))
    middle = image.crop((8, 0, 16, 8))
    assert np.array_equal(Decoder("rgb", 8)(encoded(image)), np.array(middle).transpose(2, 0, 1))
    scaled = np.array(middle.resize((4, 4), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(Decoder("rgb", 4)(encoded(middle)), scaled)


def test_a_large_jpeg_decoded_at_a_fraction_of_its_size_looks_the_same():
    ramp = np.linspace(0, 255, 400).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (400, 1))] * 3, axis=2))
    exact = np.array(image.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1).astype(int)
    assert np.abs(Decoder("rgb", 16)(encoded(image, "JPEG", quality=95)) - exact).max() <= 3


# ---- whole runs


def test_a_run_predicts_from_raw_pixels(folder, fit):
    _, run = fit(
        "data=image_folder", f"data.path='{folder}'", "model=cnn", "size=tiny", "epochs=15", "batch_size=16", "lr=1e-2"
    )
    images = np.stack([as_pillow_reads(folder / name / f"{n:02}.png") for name in CLASSES for n in range(20)])
    predicted = load(run).predict(images)
    right = predicted["prediction"].to_numpy() == np.repeat(CLASSES, 20)
    assert right.mean() > 0.9  # the classes differ by 40 of 255 in brightness
    columns = predicted[[f"p({name})" for name in CLASSES]]
    np.testing.assert_allclose(columns.sum(axis=1), 1, rtol=1e-5)


# ---- refusals


def _empty(root):
    shutil.rmtree(root)
    root.mkdir()


def _unsorted(root):
    for path in list(root.rglob("*.png")):
        path.rename(root / f"{path.parent.name}{path.name}")
    for name in CLASSES:
        (root / name).rmdir()


def _one_class(root):
    for name in CLASSES[1:]:
        shutil.rmtree(root / name)


def _empty_class(root):
    for path in (root / "dog").iterdir():
        path.unlink()


def _damaged(root):
    (root / "cat" / "03.png").write_bytes(b"")
    (root / "dog" / "05.png").write_text("no image at all")
    whole = (root / "eel" / "07.png").read_bytes()
    (root / "eel" / "07.png").write_bytes(whole[: len(whole) // 2])


def _other_size(root):
    picture(0, (9, 5)).save(root / "dog" / "11.png")


def _misspelt_part(root):
    for part in ("train", "tset"):
        shutil.copytree(root / "cat", root / part / "cat")
        shutil.copytree(root / "dog", root / part / "dog")
    for name in CLASSES:
        shutil.rmtree(root / name)


def _other_class(root):
    _misspelt_part(root)
    (root / "tset").rename(root / "test")
    (root / "test" / "dog").rename(root / "test" / "dogs")


@pytest.mark.parametrize(
    ("mistake", "overrides", "words"),
    [
        (shutil.rmtree, [], ["must be a folder of images, got", "which does not exist", "Type data.path=<folder>."]),
        (_empty, [], ["must have a folder of images for each class", "which has neither folders nor images"]),
        (_unsorted, [], ["which has 60 images and no folder. Sort them into", "/<class>/."]),
        (_one_class, [], ["must have at least two classes, got cat alone. Add pictures of another."]),
        (_empty_class, [], ["must have images in each class's folder, got none in dog. Remove it, or add files that"]),
        (
            _damaged,
            [],
            ["but 3 of 60 cannot: ", "cat/03.png (not an image)", "dog/05.png (not an image)", "eel/07.png (", "them."],
        ),
        (
            _damaged,
            ["data.in_memory=false", "data.workers=0"],
            ["but 3 of 60 cannot: ", "cat/03.png (not an image)", "dog/05.png (not an image)", "eel/07.png ("],
        ),
        (
            _other_size,
            [],
            [
                "`data.image_size` must be given for images of different sizes",
                "1 of 60 are not 8 x 8",
                "9 x 5",
                "=8.",
            ],
        ),
        (_misspelt_part, [], ["must have only val/ and test/ beside train/, got tset/", "Did you mean test?"]),
        (
            _other_class,
            [],
            ["must have the same classes in test/ as in the training part, got test/dogs. Did you mean dog?"],
        ),
        (None, ["batch_size=50"], ["`batch_size` must be at most the 48 training examples, got 50."]),
        (None, ["data.in_memory=false", "batch_size=full"], ["not kept in memory, got full. Try batch_size=64"]),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(folder, read, mistake, overrides, words):
    if mistake:
        mistake(folder)
    with pytest.raises(ConfigError) as caught:
        read(folder, *overrides)
    for part in words:
        assert part in str(caught.value)


def test_only_the_first_of_many_unreadable_images_are_named(folder, read):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(
        ConfigError, match=r"but 60 of 60 cannot: .*cat/.*, .*, .*, …\. Replace or remove them\."
    ) as caught:
        read(folder)
    assert str(caught.value).count("not an image") == 3


def test_a_similar_folder_is_offered_and_a_file_is_no_folder(folder, read):
    with pytest.raises(ConfigError, match=r"does not exist\. Did you mean my pets \(1\)\?"):
        read(folder.with_name("my pet (1)"))
    with pytest.raises(ConfigError, match=r"which is a file\. Name its folder\."):
        read(folder / "cat" / "00.png")


def test_a_path_that_is_not_given_is_asked_for(compose):
    with pytest.raises(ConfigError, match=r"^`data.path` must be given\. Write data\.path=<folder>\.$"):
        validate(compose("data=image_folder"))
