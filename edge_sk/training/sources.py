"""Labelled images by index: digits, a folder, torchvision's and Hugging Face's data sets."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image
from torch import Tensor

from edge_sk.errors import InputError, require
from edge_sk.training.digits import CLASSES, digits, scaled_digits
from edge_sk.training.folder import label_files
from edge_sk.training.glyphs import CLASSES as CHARACTERS
from edge_sk.training.glyphs import ScaledGlyphs
from edge_sk.training.image_files import eight_bits, read_image
from edge_sk.training.recipe import DataRecipe

Split = Literal["train", "test"]

SPECS = "digits, scaled_digits, scaled_glyphs, a folder with train and val in it, torch/NAME, hfds/NAME or wds/FOLDER"
# The run stops after so many unreadable images in a row: the data set is broken, not one file.
MAX_DAMAGED = 100


@dataclass(frozen=True)
class Shard:
    """The part of a data set that one process of several reads, and how it reads."""

    rank: int = 0
    size: int = 1  # processes
    workers: int = 0  # loader processes; 0: the process reads itself
    pin_memory: bool = False  # page-locked batches, which go to a GPU faster


class Sample(NamedTuple):
    """One image for a batch; ``None`` where no image could be read."""

    image: Tensor | None
    label: int
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Images:
    """The labelled images of one split, by index."""

    items: Any  # sequence of pairs: an image, or a file with one, and its label; or what draws them
    classes: list[str] | None  # label names, in the order of the labels

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int, *, seed: int = 0, epoch: int = 0) -> tuple[Image.Image, int]:
        """Read an image and its label; raises one of ``DECODE_ERRORS`` when the image cannot be read.

        What is drawn for training is another image in every epoch and for every seed.
        """
        if isinstance(self.items, ScaledGlyphs):
            return self.items.draw(index, seed=seed, epoch=epoch)
        image, label = self.items[index]
        if not isinstance(image, Image.Image):
            with image as file:
                image = read_image(file)
        return eight_bits(image), int(label)

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        filename = getattr(self.items, "filename", None)
        return (filename and filename(index, absolute=True)) or f"image {index}"


@dataclass(frozen=True)
class Part(Images):
    """Some of the images of a split."""

    chosen: Sequence[int]  # by their index in the split

    def __len__(self) -> int:
        return len(self.chosen)

    def load(self, index: int, *, seed: int = 0, epoch: int = 0) -> tuple[Image.Image, int]:
        """As of the split."""
        return super().load(self.chosen[index], seed=seed, epoch=epoch)

    def name(self, index: int) -> str:
        """As of the split."""
        return super().name(self.chosen[index])


def unreadable(name: str, error: Exception) -> str:
    """An image's name and the reason, the same in every epoch: without the addresses of objects."""
    reason = f"no {error}" if isinstance(error, KeyError) else re.sub(r" <[^<>]* at 0x[0-9a-f]+>", "", str(error))
    return f"{name} ({reason or type(error).__name__})"


def is_embedded(data: str) -> bool:
    """Whether ``data`` is made in memory, without files."""
    return data == "digits" or data.partition("@")[0] == "scaled_digits" or is_drawn(data)


def is_drawn(data: str) -> bool:
    """Whether the images of ``data`` are drawn when they are asked for."""
    return data.partition("@")[0] == "scaled_glyphs"


def open_images(data: str, split: Split, options: DataRecipe, indexes: Sequence[Path] = ()) -> Images:
    """Open one split of a data set with random access; an ``InputError`` says what is wrong with it.

    ``indexes`` are folders for the lists of a folder's images, as for :func:`~edge_sk.training.folder.label_files`.
    """
    if is_drawn(data):
        part = split if split == "train" else options.val_split or "test"
        return Images(ScaledGlyphs(part, scale=_scale(data)), CHARACTERS)
    if is_embedded(data):
        images, labels = (part.numpy() for part in digits(split))
        if data != "digits":
            drawn = scaled_digits(split, scale=_scale(data))
            images, labels = drawn.images, drawn.labels
        return Images([(Image.fromarray(image), label) for image, label in zip(images, labels, strict=True)], CLASSES)
    kind, slash, name = data.partition("/")
    if slash and not name and kind in ("torch", "hfds"):
        raise InputError(f"--data {data} has no name behind {kind}/; allowed: {SPECS}")
    if slash and kind == "torch":
        return _torchvision(name, split, options)
    if slash and kind == "hfds":
        return _hugging_face(name, split, options)
    files, classes = label_files(
        _find_split(Path(data), "train", "training"), indexes=[folder / "train.safetensors" for folder in indexes]
    )
    if split == "test":
        # A split may lack some of the classes.
        root = _find_split(Path(data), "val", "valid", "validation")
        files, _ = label_files(root, classes, [folder / "val.safetensors" for folder in indexes])
    return Images(files, classes)


def _scale(data: str) -> float | None:
    name, at, text = data.partition("@")
    try:
        return float(text) if at else None
    except ValueError:
        raise InputError(f"--data {data}: {text!r} is not a number; for example {name}@0.5") from None


def _torchvision(name: str, split: Split, options: DataRecipe) -> Images:
    from timm.data import create_dataset

    part = "train" if split == "train" else "validation"
    try:
        # torchvision prints its download progress to stdout, which is for results.
        with contextlib.redirect_stdout(None):
            dataset = create_dataset(f"torch/{name}", options.root, split=part, download=options.download)
    except AssertionError as error:
        known = "cifar10, cifar100, mnist, fashion_mnist, kmnist, imagenet, places365"
        raise InputError(f"unknown data set torch/{name} ({error}); known after torch/: {known}") from None
    except (RuntimeError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(
            f"torch/{name} is neither in {options.root!r} nor can it be downloaded ({reason}); "
            "check the network, or point data.root at a copy"
        ) from None
    return Images(dataset, list(getattr(dataset, "classes", [])) or None)


def _find_split(root: Path, *names: str) -> Path:
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"--data {root} {what}; allowed: {SPECS}")
    for name in names:
        if (root / name).is_dir():
            return root / name
    inside = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "nothing"
    raise InputError(f"{root} has no folder {names[0]!r} (it holds {inside}); expected {root}/train and {root}/val")


def _hugging_face(name: str, split: Split, options: DataRecipe) -> Images:
    datasets = require("datasets", extra="hfds", needed_for=f"--data hfds/{name}")
    from timm.data.readers.reader_hfds import ReaderHfds

    datasets.disable_progress_bars()
    try:
        reader = ReaderHfds(
            name,
            root=options.root,
            split=options.split_name(split),
            input_key=options.image_key or "image",
            target_key=options.label_key or "label",
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"hfds/{name} cannot be opened ({reason}); "
            "data.train_split, data.val_split, data.image_key and data.label_key say what to read"
        ) from None
    labels: dict[str, int] = reader.class_to_idx or {}
    return Images(reader, sorted(labels, key=labels.__getitem__) or None)
