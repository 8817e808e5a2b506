"""The embedded data sets: scikit-learn's 1,797 handwritten digits, and the same drawn at known scales amid clutter."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edge_sk.errors import InputError
from edge_sk.training.randomness import derive_seed

TEST_IMAGES = 360
CLASSES = [str(digit) for digit in range(10)]

# Of the scaled digits:
CANVAS = 96
SCALES = (0.25, 1.0)
# Drawings of every digit; each with its own scale, position and clutter.
DRAWINGS = {"train": 4, "test": 4}

# Pieces of other digits, sides as fractions of the canvas. Their strokes are as wide as those of digits of twice the
# scale, 0.2 to 0.5: the width of a stroke does not tell a small digit from clutter. Of a larger digit it does.
CLUTTER_PIECES = 3
CLUTTER_SCALES = (0.1, 0.25)
CLUTTER_BRIGHTNESS = 0.6  # at most as bright as this fraction of the digit
NOISE = 10.0  # standard deviation, of 255


@functools.cache
def _load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    loaded: Any = load_digits()
    # The data set's grey levels are 0..16.
    pixels = np.rint(loaded.images * (255 / 16)).astype(np.uint8)
    # One split for every run and seed: a seed must not change what is tested.
    parts = train_test_split(pixels, loaded.target, test_size=TEST_IMAGES, random_state=0, stratify=loaded.target)
    train_x, test_x, train_y, test_y = map(np.asarray, parts)
    return {"train": (train_x, train_y), "test": (test_x, test_y)}


def digits(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Images, uint8 ``(N, 8, 8)``, ink bright on black, and labels, int64 ``(N,)``: 1,437 or 360 digits.

    The split is stratified and fixed. Both parts hold digits of the same writers: the task is easy.
    """
    images, labels = _load()[split]
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


@dataclass(frozen=True)
class ScaledDigits:
    """Drawn digits, read-only."""

    images: np.ndarray  # uint8, (N, CANVAS, CANVAS)
    labels: np.ndarray  # int64, (N,)
    scales: np.ndarray  # float64, (N,): side of the digit's square as a fraction of the canvas
    digits: np.ndarray  # int64, (N,): which image of ``digits(split)`` was drawn


@functools.lru_cache(maxsize=4)
def scaled_digits(split: Literal["train", "test"], *, scale: float | None = None, seed: int = 0) -> ScaledDigits:
    """Draw the digits of a split, each several times, on images of 96 x 96 pixels.

    The images are a function of the arguments. Clutter is pieces of digits of the same split. Without a ``scale``
    every digit has a random one; with a ``scale`` only that changes: data sets of several scales hold the same digits,
    in the same order, amid the same clutter.
    """
    low, high = SCALES
    if scale is not None and not low <= scale <= high:
        raise InputError(f"scaled_digits@{scale}: the scale must be from {low} to {high}")
    pixels, labels = (tensor.numpy() for tensor in digits(split))
    pictures = [Image.fromarray(picture) for picture in pixels]
    # Drawings of the same digit lie apart: the first len(pictures) images show every digit once.
    which = np.tile(np.arange(len(pictures)), DRAWINGS[split])
    images = np.empty((len(which), CANVAS, CANVAS), dtype=np.uint8)
    scales = np.empty(len(which))
    for index, digit in enumerate(which):
        random = np.random.default_rng(derive_seed(seed, "scaled digits", split, index))
        drawn = random.uniform(low, high)
        scales[index] = drawn if scale is None else scale
        images[index] = _draw(pictures, int(digit), scales[index], random)
    drawings = ScaledDigits(images, np.tile(labels, DRAWINGS[split]), scales, which)
    for array in vars(drawings).values():
        array.setflags(write=False)  # the cache gives every caller the same arrays
    return drawings


def _draw(pictures: list[Image.Image], digit: int, scale: float, random: np.random.Generator) -> np.ndarray:
    """One image: noise, clutter, and the digit over it."""
    # Position first, as a fraction of the free room: it does not depend on the scale.
    where = random.random(2)
    image = random.normal(scale=NOISE, size=(CANVAS, CANVAS)).astype(np.float32)
    for _ in range(CLUTTER_PIECES):
        piece = _piece(pictures[random.integers(len(pictures))], random)
        top, left = (random.random(2) * (CANVAS - np.array(piece.shape) + 1)).astype(int)
        region = image[top : top + piece.shape[0], left : left + piece.shape[1]]
        np.maximum(region, piece, out=region)
    side = round(scale * CANVAS)
    drawing = _resize(pictures[digit], side)
    top, left = (where * (CANVAS - side + 1)).astype(int)
    region = image[top : top + side, left : left + side]
    np.maximum(region, drawing, out=region)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _piece(picture: Image.Image, random: np.random.Generator) -> np.ndarray:
    """A quarter of a digit, which no longer shows which one it was."""
    column, row = random.integers(0, 5, size=2)
    side = round(random.uniform(*CLUTTER_SCALES) * CANVAS)
    return CLUTTER_BRIGHTNESS * _resize(picture.crop((int(column), int(row), int(column) + 4, int(row) + 4)), side)


def _resize(picture: Image.Image, side: int) -> np.ndarray:
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
