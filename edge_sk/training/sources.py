"""Where images come from, one at a time: digits, a folder, torchvision's and Hugging Face's data sets."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from edge_sk.errors import InputError, require
from edge_sk.training.digits import CLASSES, digits
from edge_sk.training.recipe import DataRecipe
from edge_sk.training.scaled_digits import scaled_digits

Split = Literal["train", "test"]

SPECS = "digits, scaled_digits, a folder with train and val in it, torch/NAME, hfds/NAME or wds/FOLDER"

# Training images and classes of torch/NAME, so that --dry-run needs no download.
KNOWN = {
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "mnist": (60_000, 10),
    "fashion_mnist": (60_000, 10),
    "kmnist": (60_000, 10),
}

# What Pillow raises for truncated and bit-flipped files, by experience.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError)


class Source(Protocol):
    """Random access to the labelled images of one split."""

    classes: list[str] | None
    """Label names in the order of the labels."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Image and label; raises one of ``DECODE_ERRORS`` when the image cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        return f"image {index}"


def is_embedded(data: str) -> bool:
    """Whether ``data`` is made from what comes with a dependency, in memory: no files, nothing to decode."""
    return data == "digits" or data.partition("@")[0] == "scaled_digits"


def open_source(data: str, split: Split, options: DataRecipe) -> Source:
    """Open one split of a random-access data set; an ``InputError`` says what is wrong with it."""
    if data == "digits":
        return _digits(*(part.numpy() for part in digits(split)))
    if is_embedded(data):
        drawn = scaled_digits(split, scale=_scale(data))
        return _digits(drawn.images, drawn.labels)
    kind, slash, name = data.partition("/")
    if slash and kind == "torch":
        return _torchvision(name, split, options)
    if slash and kind == "hfds":
        return _hugging_face(name, split, options)
    train = _folder(_find_split(Path(data), "train", "training"))
    return train if split == "train" else _folder(_find_split(Path(data), "val", "valid", "validation"), like=train)


def _scale(data: str) -> float | None:
    _, at, text = data.partition("@")
    try:
        return float(text) if at else None
    except ValueError:
        raise InputError(f"--data {data}: {text!r} is not a number; for example scaled_digits@0.5") from None


def _find_split(root: Path, *names: str) -> Path:
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"--data {root} {what}; allowed: {SPECS}")
    for name in names:
        if (root / name).is_dir():
            return root / name
    inside = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "nothing"
    raise InputError(f"{root} has no folder {names[0]!r} (it holds {inside}); expected {root}/train and {root}/val")


def _digits(images: np.ndarray, labels: np.ndarray) -> _Pairs:
    return _Pairs([(Image.fromarray(image), label) for image, label in zip(images, labels, strict=True)], CLASSES)


class _Pairs(Source):
    """A sequence of images and labels."""

    def __init__(self, pairs: Any, classes: Sequence[str]) -> None:
        self._pairs = pairs
        self.classes = list(classes) or None

    def __len__(self) -> int:
        return len(self._pairs)

    def load(self, index: int) -> tuple[Image.Image, int]:
        image, label = self._pairs[index]
        return image, int(label)


def _torchvision(name: str, split: Split, options: DataRecipe) -> _Pairs:
    from timm.data import create_dataset

    names = {"train": "train", "test": "validation"}
    try:
        # torchvision prints its download progress to stdout, which is for results.
        with contextlib.redirect_stdout(None):
            dataset = create_dataset(f"torch/{name}", options.root, split=names[split], download=options.download)
    except AssertionError as error:
        known = ", ".join(f"torch/{name}" for name in (*KNOWN, "imagenet", "places365"))
        raise InputError(f"unknown data set torch/{name} ({error}); known: {known}") from None
    except (RuntimeError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(
            f"torch/{name} is neither in {options.root!r} nor can it be downloaded ({reason}); "
            "check the network, or point data.root at a copy"
        ) from None
    return _Pairs(dataset, getattr(dataset, "classes", []))


class _Read(Source):
    """Files that one of timm's readers found."""

    def __init__(self, reader: Any, labels: dict[str, int]) -> None:
        self.reader, self.labels = reader, labels
        self.classes = sorted(labels, key=labels.__getitem__) or None

    def __len__(self) -> int:
        return len(self.reader)

    def load(self, index: int) -> tuple[Image.Image, int]:
        file, label = self.reader[index]
        with file:
            image = Image.open(file)
            image.load()
        return image, int(label)

    def name(self, index: int) -> str:
        return self.reader.filename(index, absolute=True) or f"image {index}"


def _folder(root: Path, *, like: _Read | None = None) -> _Read:
    """``root/CLASS/*.jpg``: walks the whole folder.

    Labels are those of ``like``, the training images, even when this split lacks some of its classes.
    """
    from timm.data.readers.reader_image_folder import ReaderImageFolder

    try:
        reader = ReaderImageFolder(str(root))
    except RuntimeError:
        raise InputError(
            f"{root} has no images in class folders: expected {root}/CLASS/IMAGE.jpg (or .png, .webp, ...)"
        ) from None
    own: dict[str, int] = reader.class_to_idx
    if "" in own:
        raise InputError(f"{root} holds images outside class folders: expected {root}/CLASS/IMAGE.jpg")
    if like is None:
        return _Read(reader, own)
    if strangers := sorted(own.keys() - like.labels.keys()):
        raise InputError(f"{root} has classes that {like.reader.root} has not: {', '.join(strangers[:5])}")
    translated = {index: like.labels[name] for name, index in own.items()}
    reader.samples = [(path, translated[index]) for path, index in reader.samples]
    return _Read(reader, like.labels)


def _hugging_face(name: str, split: Split, options: DataRecipe) -> _Read:
    datasets = require("datasets", extra="train", needed_for=f"--data hfds/{name}")
    from timm.data.readers.reader_hfds import ReaderHfds

    datasets.disable_progress_bars()
    try:
        reader = ReaderHfds(
            name,
            root=options.root,
            split=(options.train_split or "train") if split == "train" else (options.val_split or "validation"),
            input_key=options.image_key or "image",
            target_key=options.label_key or "label",
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"hfds/{name} cannot be opened ({reason}); "
            "data.train_split, data.val_split, data.image_key and data.label_key say what to read"
        ) from None
    return _Read(reader, dict(reader.class_to_idx or {}))
