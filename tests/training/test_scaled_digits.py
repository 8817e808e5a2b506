from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_sk.errors import InputError
from edge_sk.training import digits as module
from edge_sk.training.data import eval_batches
from edge_sk.training.digits import SCALES, digits, scaled_digits
from edge_sk.training.recipe import DataRecipe
from edge_sk.training.sources import open_images
from recipes.evaluate import main as evaluate
from recipes.train import main as train

FORM = {"input_size": (3, 96, 96), "crop_pct": 1.0, "interpolation": "bilinear"}


@pytest.fixture(autouse=True)
def _one_drawing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A quarter of the data set draws in a quarter of the time."""
    monkeypatch.setattr(module, "DRAWINGS", {"train": 1, "test": 1})
    scaled_digits.cache_clear()
    yield
    scaled_digits.cache_clear()


def test_the_data_set_is_a_function_of_its_seed() -> None:
    first = scaled_digits("test")
    scaled_digits.cache_clear()
    again = scaled_digits("test")
    assert first is not again
    for field in ("images", "labels", "scales", "digits"):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    other = scaled_digits("test", seed=1)
    np.testing.assert_array_equal(first.labels, other.labels)
    assert not np.array_equal(first.scales, other.scales)
    assert not np.array_equal(first.images, other.images)


def test_the_images_are_those_of_the_records() -> None:
    # Every record in recipes/results is of these images. Should NumPy's generator or Pillow's resampling change, the
    # records are of another data set than the one at hand.
    drawn = scaled_digits("test")
    assert hashlib.sha256(drawn.images.tobytes()).hexdigest()[:16] == "5e96e9a1c1674f27"
    assert drawn.scales[:3].tolist() == pytest.approx([0.905377, 0.898217, 0.631242], abs=1e-6)


def test_train_and_test_draw_disjoint_digits() -> None:
    # Of the same pictures the splits would share, were they not disjoint.
    train_pictures = {picture.numpy().tobytes() for picture in digits("train")[0]}
    test_pictures = {picture.numpy().tobytes() for picture in digits("test")[0]}
    assert len(train_pictures) == 1437
    assert not train_pictures & test_pictures
    drawn = scaled_digits("test")
    assert set(drawn.digits.tolist()) == set(range(360))
    np.testing.assert_array_equal(drawn.labels, digits("test")[1].numpy()[drawn.digits])


def test_scales_cover_the_range_and_are_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = scaled_digits("test")
    low, high = SCALES
    assert drawn.scales.min() >= low
    assert drawn.scales.max() <= high
    assert np.ptp(drawn.scales) > 0.99 * (high - low)
    # Without noise and clutter the ink's extent is that of the digit's own box times the scale.
    monkeypatch.setattr(module, "NOISE", 0.0)
    monkeypatch.setattr(module, "CLUTTER_PIECES", 0)
    clean = scaled_digits("test", seed=7)
    pictures = digits("test")[0].numpy()
    for image, scale, digit in zip(clean.images[:60], clean.scales[:60], clean.digits[:60], strict=True):
        rows = np.flatnonzero((pictures[digit] > 64).any(1))
        expected = (rows[-1] - rows[0] + 1) / 8 * scale * 96
        found = np.flatnonzero((image > 64).any(1))
        assert found[-1] - found[0] + 1 == pytest.approx(expected, abs=0.75 / 8 * scale * 96 + 1.5)


def test_one_scale_changes_the_digit_and_leaves_the_clutter() -> None:
    small, large, mixed = scaled_digits("test", scale=0.25), scaled_digits("test", scale=0.5), scaled_digits("test")
    assert set(small.scales) == {0.25}
    np.testing.assert_array_equal(small.digits, large.digits)
    np.testing.assert_array_equal(small.labels, mixed.labels)
    # Outside both digits the images are the same.
    same = (small.images == large.images).mean(axis=(1, 2))
    assert same.min() > 1 - (0.25**2 + 0.5**2) - 0.02
    assert same.max() < 1
    assert large.images.mean() > small.images.mean() + 5


def test_clutter_is_of_the_own_split(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    original = module._draw

    def spy(pictures: list, *rest: object) -> np.ndarray:
        used.append(len(pictures))
        return original(pictures, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_draw", spy)
    scaled_digits("test", seed=3)
    assert set(used) == {360}


def test_it_reads_as_a_data_set() -> None:
    source = open_images("scaled_digits", "test", DataRecipe())
    assert len(source) == 360
    assert source.classes == [str(digit) for digit in range(10)]
    image, label = source.load(3)
    assert (image.size, image.mode, label) == ((96, 96), "L", int(scaled_digits("test").labels[3]))
    images, labels = next(eval_batches(FORM, data="scaled_digits@0.25", limit=5))
    assert images.shape == (5, 3, 96, 96)
    np.testing.assert_array_equal((images[:, 0].numpy() * 255).round(), scaled_digits("test", scale=0.25).images[::72])
    np.testing.assert_array_equal(labels, scaled_digits("test").labels[::72])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("scaled_digits@big", "'big' is not a number; for example scaled_digits@0.5"),
        ("scaled_digits@", "'' is not a number"),
        ("scaled_digits@0.1", "the scale must be from 0.25 to 1.0"),
        ("scaled_digits@nan", "the scale must be from 0.25 to 1.0"),
    ],
)
def test_bad_scales_are_refused(data: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_images(data, "test", DataRecipe())


def test_a_network_trains_on_it_and_is_evaluated_per_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    quick = ["data.input_size=32", "schedule.epochs=1", "schedule.warmup_epochs=0", "data.batch_size=479"]
    arguments = ["--arch", "shufflenetv2_0.5", "--data", "scaled_digits", "--output", str(run), "--device", "cpu"]
    assert train([*arguments, "--set", *quick]) == 0
    config = json.loads((run / "config.json").read_text())
    assert (config["recipe"], config["data"]) == ("scaled_digits", "scaled_digits")
    capsys.readouterr()
    assert evaluate(["--checkpoint", str(run), "--data", "scaled_digits@1", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 360
