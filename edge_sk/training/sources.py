"""Where images come from, one at a time: digits, a folder, torchvision's and Hugging Face's data sets."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

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


def open_source(data: str, split: Split, options: DataRecipe, *, expected_classes: list[str] | None = None) -> Source:
    """Open one split of a random-access data set.

    Args:
        data: ``digits``, ``scaled_digits`` (``scaled_digits@0.5``: all at one scale), a folder, ``torch/NAME`` or
            ``hfds/NAME``.
        split: ``test`` is a folder's ``val``.
        options: The recipe's ``data`` section.
        expected_classes: A network's, which the data set's must equal; ``None`` when they are not known.

    Raises:
        InputError: It is not there, empty, cannot be opened, or has other classes; the message says which.
    """
    source = _open(data, split, options)
    if expected_classes is not None and source.classes is not None and source.classes != expected_classes:
        raise InputError(
            f"--data {data} has other classes ({_shorten(source.classes)}) "
            f"than the network ({_shorten(expected_classes)})"
        )
    return source


def _open(data: str, split: Split, options: DataRecipe) -> Source:
    if data == "digits":
        images, labels = digits(split)
        return _Arrays(images.numpy(), labels.numpy())
    if is_embedded(data):
        drawn = scaled_digits(split, scale=_scale(data))
        return _Arrays(drawn.images, drawn.labels)
    kind, slash, name = data.partition("/")
    if slash and kind == "torch":
        return _Torchvision(name, split, options)
    if slash and kind == "hfds":
        return _HuggingFace(name, split, options)
    train = _Folder(_find_split(Path(data), "train", "training"))
    return train if split == "train" else _Folder(_find_split(Path(data), "val", "valid", "validation"), like=train)


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
    inside = ", ".join(sorted(entry.name for entry in os.scandir(root))[:5]) or "nothing"
    raise InputError(f"{root} has no folder {names[0]!r} (it holds {inside}); expected {root}/train and {root}/val")


def _shorten(classes: list[str]) -> str:
    return f"{len(classes)}: {', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}"


class _Arrays(Source):
    """Digits in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._images, self._labels = images, labels
        self.classes = list(CLASSES)

    def __len__(self) -> int:
        return len(self._labels)

    def load(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._images[index]), int(self._labels[index])


class _Folder(Source):
    """``root/CLASS/*.jpg`` through timm's folder reader, which walks the whole folder.

    Labels are those of ``like``, the training images, even when this split lacks some of its classes.
    """

    def __init__(self, root: Path, *, like: _Folder | None = None) -> None:
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
        self.root = root
        self.labels = own if like is None else like.labels
        if like is not None and (strangers := sorted(own.keys() - like.labels.keys())):
            raise InputError(f"{root} has classes that {like.root} has not: {', '.join(strangers[:5])}")
        self.classes = sorted(self.labels, key=self.labels.__getitem__)
        label_of = {index: self.labels[name] for name, index in own.items()}
        self._samples = [(path, label_of[index]) for path, index in reader.samples]

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int) -> tuple[Image.Image, int]:
        path, label = self._samples[index]
        return _decode(open(path, "rb")), label

    def name(self, index: int) -> str:
        return self._samples[index][0]


class _Torchvision(Source):
    """A data set of torchvision, by timm's name for it."""

    def __init__(self, name: str, split: Split, options: DataRecipe) -> None:
        from timm.data import create_dataset

        try:
            # torchvision prints its download progress to stdout, which is for results.
            with contextlib.redirect_stdout(None):
                self._dataset: Any = create_dataset(
                    f"torch/{name}",
                    root=options.root,
                    split="train" if split == "train" else "validation",
                    download=options.download,
                )
        except AssertionError as error:
            known = ", ".join(f"torch/{name}" for name in (*KNOWN, "imagenet", "places365"))
            raise InputError(f"unknown data set torch/{name} ({error}); known: {known}") from None
        except (RuntimeError, OSError) as error:
            reason = str(error).split("\n", 1)[0]
            raise InputError(
                f"torch/{name} is neither in {options.root!r} nor can it be downloaded ({reason}); "
                "check the network, or point data.root at a copy"
            ) from None
        self.classes = list(getattr(self._dataset, "classes", [])) or None

    def __len__(self) -> int:
        return len(self._dataset)

    def load(self, index: int) -> tuple[Image.Image, int]:
        image, label = self._dataset[index]
        return image, int(label)


class _HuggingFace(Source):
    """A Hugging Face data set through timm's reader."""

    def __init__(self, name: str, split: Split, options: DataRecipe) -> None:
        datasets = require("datasets", extra="train", needed_for=f"--data hfds/{name}")
        from timm.data.readers.reader_hfds import ReaderHfds

        chosen = options.train_split if split == "train" else options.val_split
        datasets.disable_progress_bars()
        try:
            self._reader: Any = ReaderHfds(
                name,
                root=options.root,
                split=chosen or ("train" if split == "train" else "validation"),
                input_key=options.image_key or "image",
                target_key=options.label_key or "label",
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"hfds/{name} cannot be opened ({reason}); "
                "data.train_split, data.val_split, data.image_key and data.label_key say what to read"
            ) from None
        by_name: dict[str, int] = dict(self._reader.class_to_idx or {})
        self.classes = sorted(by_name, key=by_name.__getitem__) or None

    def __len__(self) -> int:
        return len(self._reader)

    def load(self, index: int) -> tuple[Image.Image, int]:
        file, label = self._reader[index]
        return _decode(file), int(label)

    def name(self, index: int) -> str:
        return self._reader.filename(index) or super().name(index)


def _decode(file: BinaryIO) -> Image.Image:
    with file:
        image = Image.open(file)
        image.load()
    return image
