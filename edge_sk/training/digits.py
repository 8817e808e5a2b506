"""The embedded data set: scikit-learn's 1,797 real handwritten digits, 8x8 pixels, split once and for all."""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

TEST_IMAGES = 360
CLASSES = [str(digit) for digit in range(10)]


@functools.cache
def _load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    loaded: Any = load_digits()
    images, labels = loaded.data, loaded.target
    # The data set's grey levels are 0..16.
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    # One split for every run and seed: a seed must not change what is tested.
    train_x, test_x, train_y, test_y = map(
        np.asarray, train_test_split(pixels, labels, test_size=TEST_IMAGES, random_state=0, stratify=labels)
    )
    return {"train": (train_x, train_y), "test": (test_x, test_y)}


def digits(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Images and labels of the digits data set.

    The split (1,437 train, 360 test) is stratified and fixed. Both parts hold digits of the same writers, so
    its accuracy is that of an easy task.

    Returns:
        Images, uint8 ``(N, 8, 8)``, ink bright on black; labels, int64 ``(N,)``.
    """
    images, labels = _load()[split]
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))
