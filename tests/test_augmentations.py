"""Augmentation leaves out what it is told to, meets pixels in [0, 1], and follows from the seed, epoch and batch."""

import re
import subprocess
import sys

import pytest
import torch
from conftest import options
from lightning import Callback
from omegaconf import OmegaConf

from tunelab import conf_folder
from tunelab.augmentations import Augmentation
from tunelab.errors import ConfigError
from tunelab.fitting import build
from tunelab.spec import DataSpec

QUIET = {"rotation_degrees": 0.0, "crop_fraction": 0.0, "jitter": 0.0}


def _spec(channels=1, size=12, low=0.0, high=255.0, std=60.0):
    return DataSpec(
        kind="image",
        input_shape=(channels, size, size),
        output_size=3,
        feature_names=tuple(f"p{i}" for i in range(channels * size * size)),
        class_names=("a", "b", "c"),
        input_mean=tuple(low + 40.0 + 10 * c for c in range(channels)),
        input_std=tuple(std + 5 * c for c in range(channels)),
        value_range=(low, high),
    )


def _images(spec, examples=40):
    low, high = spec.value_range
    raw = low + (high - low) * torch.rand(examples, *spec.input_shape)
    return torch.from_numpy(spec.normalize(raw.numpy()))


def _ready(spec, **keywords):
    augmentation = Augmentation(**keywords)
    augmentation.adapt(spec)
    return augmentation


def _pixels(augmentation, images):
    """Normalized images in [0, 1]."""
    return images * augmentation._scale + augmentation._shift


# ---- identities


@pytest.mark.parametrize("keywords", [{"strength": 0.0, "flip": False, "probability": 1.0}, {"probability": 0.0}])
@pytest.mark.parametrize("channels", [1, 3])
def test_without_strength_or_probability_images_stay_as_they_are(keywords, channels):
    images = _images(_spec(channels))
    augmentation = _ready(_spec(channels), noise=0.2, erase_fraction=0.3, **keywords)
    assert torch.equal(augmentation(images), images)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_flip_alone_is_the_flip_of_the_normalized_image(channels):
    images = _images(_spec(channels))
    flipped = _ready(_spec(channels), probability=1.0, **QUIET)(images)
    torch.testing.assert_close(flipped, images.flip(3), rtol=0, atol=1e-5)


def test_no_strength_leaves_the_flip():
    images = _images(_spec())
    flipped = _ready(_spec(), strength=0.0, probability=1.0)(images)
    torch.testing.assert_close(flipped, images.flip(3), rtol=0, atol=1e-5)


# ---- each change


def test_a_shift_is_by_whole_pixels_up_to_its_share_of_the_edges_and_what_comes_in_is_black():
    spec = _spec(3, size=8)
    images = _images(spec, 200)
    augmentation = _ready(spec, probability=1.0, flip=False, rotation_degrees=0.0, jitter=0.0, crop_fraction=0.25)
    before, after = _pixels(augmentation, images), _pixels(augmentation, augmentation(images))
    shifts = set()
    padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
    for i in range(200):
        fitting = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.allclose(padded[i, :, 2 + dy : 10 + dy, 2 + dx : 10 + dx], after[i], atol=1e-5)
        ]
        assert len(fitting) == 1
        shifts |= set(fitting)
    assert {abs(dy) for dy, _ in shifts} == {abs(dx) for _, dx in shifts} == {0, 1, 2}


def test_erasing_blackens_a_rectangle_of_up_to_its_share_of_the_image():
    spec = _spec(3, size=32)
    white = torch.full((100, 3, 32, 32), 255.0)
    augmentation = _ready(spec, probability=1.0, flip=False, erase_fraction=0.25, **QUIET)
    after = _pixels(augmentation, augmentation(torch.from_numpy(spec.normalize(white.numpy()))))
    black = after[:, 0] < 0.5
    torch.testing.assert_close(after, torch.where(black[:, None], 0.0, 1.0).expand_as(after), rtol=0, atol=1e-5)
    shares = black.double().mean(dim=(1, 2))
    assert 0.05 < shares.min() < 0.1
    assert 0.2 < shares.max() < 0.28  # of whole pixels
    for image in black:
        rows, columns = image.any(1).sum(), image.any(0).sum()
        assert image.sum() == rows * columns


def test_noise_has_its_standard_deviation_as_a_share_of_the_range_of_values():
    spec = _spec(3, size=32)
    images = _images(spec)
    augmentation = _ready(spec, probability=1.0, flip=False, noise=0.05, **QUIET)
    difference = _pixels(augmentation, augmentation(images)) - _pixels(augmentation, images)
    assert difference.mean().item() == pytest.approx(0, abs=1e-3)
    assert difference.std().item() == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_relative_so_that_black_stays_black_where_contrast_is_left(channels):
    spec = _spec(channels)
    black = torch.from_numpy(spec.normalize(torch.zeros(50, channels, 12, 12).numpy()))
    quiet = {**QUIET, "jitter": 0.2}
    augmentation = _ready(spec, probability=1.0, flip=False, **quiet)
    assert _pixels(augmentation, augmentation(black)).abs().max() < 1e-5
    grey = torch.from_numpy(spec.normalize(torch.full((200, channels, 12, 12), 100.0).numpy()))
    changed = _pixels(augmentation, augmentation(grey)) / (100 / 255)
    assert 0.8 - 1e-4 <= changed.min() < 0.83  # contrast leaves an even grey alone
    assert 1.17 < changed.max() <= 1.2 + 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"flip": True},
        {"rotation_degrees": 30.0},
        {"crop_fraction": 0.5},
        {"jitter": 0.3},
        {"noise": 0.1},
        {"erase_fraction": 0.3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_change_has_its_chance_for_each_image(change):
    spec = _spec(3)
    images = _images(spec, 100)
    augmentation = _ready(spec, **{"flip": False, "probability": 0.3, **QUIET, **change})
    changed = torch.stack([(augmentation(images) - images).abs().amax(dim=(1, 2, 3)) > 1e-4 for _ in range(10)])
    expected = 0.3 * (1 - 1 / 13**2 if "crop_fraction" in change else 1)  # a shift may be by no pixel
    assert changed.double().mean().item() == pytest.approx(expected, abs=0.07)  # five standard errors
    assert all(0 < draw.sum() < 60 for draw in changed)  # not all of a batch or none


# ---- pixels


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-1.0, 1.0), (0.0, 16.0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_change_meets_pixels_between_zero_and_one(channels, low, high):
    spec = _spec(channels, low=low, high=high, std=(high - low) / 4)
    augmentation = _ready(spec, probability=0.8, noise=0.1, erase_fraction=0.2, jitter=0.5)
    seen = []
    for change in augmentation._changes:
        change.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    augmentation(_images(spec))
    assert len(seen) == len(augmentation._changes) == 6
    lowest, highest = min(t.min() for t in seen), max(t.max() for t in seen)
    assert -1e-5 <= lowest < 0.01
    assert 0.99 < highest <= 1 + 1e-5


def test_normalization_is_undone_and_done_again():
    spec = _spec(3)
    raw = torch.rand(4, 3, 12, 12) * 255
    augmentation = _ready(spec, probability=1.0, **QUIET)
    images = torch.from_numpy(spec.normalize(raw.numpy()))
    torch.testing.assert_close(_pixels(augmentation, images), raw / 255, rtol=0, atol=1e-5)
    again = torch.from_numpy(spec.normalize(raw.flip(3).numpy()))
    torch.testing.assert_close(augmentation(images), again, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_keep_their_precision(dtype):
    spec = _spec(3)
    augmentation = _ready(spec, noise=0.1, erase_fraction=0.2)
    assert augmentation(_images(spec).to(dtype)).dtype == dtype


# ---- the files


def _file(option, **keywords):
    cfg = OmegaConf.load(conf_folder() / "augmentation" / f"{option}.yaml")
    return build(OmegaConf.merge(cfg, keywords))


def test_every_file_of_the_group_is_tested_here():
    assert options("augmentation") == ["light", "none", "strong"]


@pytest.mark.parametrize("channels", [1, 3])
def test_light_changes_less_than_strong_and_strength_and_probability_are_dials(channels):
    spec = _spec(channels)
    images = _images(spec, 200)

    def change(option, **keywords):
        augmentation = _file(option, flip=False, **keywords)
        augmentation.adapt(spec)
        return (augmentation(images) - images).abs().mean().item()

    light, strong = change("light"), change("strong")
    assert 1.2 * light < strong
    assert 1.2 * change("light", strength=0.2) < light < change("light", probability=1.0) / 1.2


def test_none_is_no_augmentation(compose):
    assert compose("data=digits", "augmentation=none").augmentation is None


# ---- in a run


class _Seen(Callback):
    """The images that the model meets in training and in validation."""

    def __init__(self):
        self.train, self.val = [], []

    def on_train_start(self, trainer, module):
        module.model.register_forward_pre_hook(
            lambda model, inputs: (self.train if model.training else self.val).append(inputs[0].clone())
        )


RUN = ("data=digits", "model=cnn", "size=tiny", "epochs=2", "batch_size=64", "trainer.limit_train_batches=3")
RUN = (*RUN, "logger=[]", "callbacks=[]", "augmentation=light")


def test_images_follow_from_the_seed_the_epoch_and_the_batch(fit_with):
    def seen(*words):
        look = _Seen()
        fit_with([look], *RUN, *words)
        return look.train

    first, again, other = seen("data.shuffle=false"), seen("data.shuffle=false"), seen("data.shuffle=false", "seed=1")
    assert len(first) == 6
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    # the same examples in the same order, so that the change alone differs
    assert not any(torch.equal(one, two) for one, two in zip(first[:3], first[3:], strict=True))


def test_validation_meets_the_images_as_they_are(fit_with):
    look = _Seen()
    fitted = fit_with([look], *RUN)
    inputs = fitted.data.parts["val"][0]
    assert torch.equal(torch.cat(look.val[: len(look.val) // 2]), inputs)
    assert torch.equal(torch.cat(look.val[len(look.val) // 2 :]), inputs)
    assert len(look.train) == 6


IN_A_PROCESS = """
import sys, torch
sys.path.insert(0, "tests")
from test_augmentations import _images, _spec, _ready
torch.manual_seed(0)
images = _images(_spec(3))
torch.manual_seed(11)
print(_ready(_spec(3), noise=0.1, erase_fraction=0.2)(images).double().sum().item().hex())
"""


@pytest.mark.slow
def test_another_process_draws_the_same_images():
    root = conf_folder().parent
    sums = [
        subprocess.run(
            [sys.executable, "-c", IN_A_PROCESS], cwd=root, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert sums[0] == sums[1]
    assert re.fullmatch(r"-?0x1\.[0-9a-f]+p[+-]\d+\n", sums[0])


# ---- refused


def test_augmentation_is_refused_for_a_table(fit):
    expected = (
        "`augmentation` must take the data's kind, got Augmentation for a table: it takes image. Try augmentation=none."
    )
    with pytest.raises(ConfigError, match=re.escape(expected)):
        fit("data=breast_cancer", "augmentation=light", "epochs=1")


def test_without_kornia_it_is_said_what_to_install(monkeypatch, fit):
    for name in [name for name in sys.modules if name.split(".")[0] == "kornia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    monkeypatch.setitem(sys.modules, "kornia", None)
    expected = (
        "`augmentation` must have kornia to work with, which is not installed. "
        'Type pip install "tunelab[augment]", or augmentation=none.'
    )
    with pytest.raises(ConfigError, match=re.escape(expected)):
        fit("data=digits", "model=cnn", "augmentation=light", "epochs=1")
