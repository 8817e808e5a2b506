"""Where images come from: digits, a folder, torchvision's and Hugging Face's data sets. One image at a time."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

from edge_sk.errors import InputError, require
from edge_sk.training.digits import CLASSES, digits
from edge_sk.training.recipe import DataRecipe
from edge_sk.training.scaled_digits import ScaledDigitsSource

Split = Literal["train", "test"]

# What a damaged or foreign file makes Pillow raise, by experience with truncated and bit-flipped files.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError)

SPECS = "digits, scaled_digits, a folder with train and val in it, torch/NAME, hfds/NAME or wds/FOLDER"

# Sizes that are part of a data set's definition, so that --dry-run needs no download.
KNOWN_SIZES: dict[str, dict[Split, int]] = {
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "mnist": {"train": 60_000, "test": 10_000},
    "fashion_mnist": {"train": 60_000, "test": 10_000},
    "kmnist": {"train": 60_000, "test": 10_000},
}
KNOWN_CLASSES = {"cifar10": 10, "cifar100": 100, "mnist": 10, "fashion_mnist": 10, "kmnist": 10}


class Source(Protocol):
    """Random access to labelled images."""

    classes: list[str] | None
    """Label names in the order of the labels."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Image and label; raises one of ``DECODE_ERRORS`` when the image cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        ...


class DigitsSource:
    """The embedded digits."""

    def __init__(self, split: Split) -> None:
        images, labels = digits(split)
        self._images = [Image.fromarray(image) for image in images.numpy()]
        self._labels = labels.tolist()
        self.classes: list[str] | None = list(CLASSES)

    def __len__(self) -> int:
        return len(self._labels)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """See ``Source``."""
        return self._images[index], self._labels[index]

    def name(self, index: int) -> str:
        """See ``Source``."""
        return f"digit {index}"


class FolderSource:
    """``root/<class>/*.jpg`` through timm's folder reader."""

    def __init__(self, root: Path, class_to_idx: dict[str, int] | None = None) -> None:
        from timm.data.readers.reader_image_folder import ReaderImageFolder

        try:
            self._reader = ReaderImageFolder(str(root), class_map=class_to_idx or "")  # type: ignore[arg-type]
        except RuntimeError:
            raise InputError(
                f"{root} has no images in class folders: expected {root}/CLASS/IMAGE.jpg (or .png, .webp, ...)"
            ) from None
        self.class_to_idx: dict[str, int] = self._reader.class_to_idx
        if "" in self.class_to_idx:
            raise InputError(f"{root} holds images outside class folders: expected {root}/CLASS/IMAGE.jpg")
        self.classes: list[str] | None = sorted(self.class_to_idx, key=self.class_to_idx.__getitem__)

    def __len__(self) -> int:
        return len(self._reader.samples)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """See ``Source``."""
        path, label = self._reader.samples[index]
        with open(path, "rb") as file:
            image = Image.open(file)
            image.load()
        return image, label

    def name(self, index: int) -> str:
        """See ``Source``."""
        return self._reader.samples[index][0]


class TorchvisionSource:
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
            raise InputError(f"unknown data set torch/{name} ({error}); known: {_torch_names()}") from None
        except (RuntimeError, OSError) as error:
            reason = str(error).split("\n", 1)[0]
            raise InputError(
                f"torch/{name} is neither in {options.root!r} nor can it be downloaded ({reason}); "
                "check the network, or point data.root at a copy"
            ) from None
        self.classes: list[str] | None = list(getattr(self._dataset, "classes", [])) or None

    def __len__(self) -> int:
        return len(self._dataset)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """See ``Source``."""
        image, label = self._dataset[index]
        return image, int(label)

    def name(self, index: int) -> str:
        """See ``Source``."""
        return f"image {index}"


class HuggingFaceSource:
    """A Hugging Face data set through timm's reader."""

    def __init__(self, name: str, split: Split, options: DataRecipe) -> None:
        require("datasets", extra="train", needed_for=f"--data hfds/{name}")
        import datasets
        from timm.data.readers.reader_hfds import ReaderHfds

        chosen = options.train_split if split == "train" else options.val_split
        datasets.disable_progress_bars()
        try:
            self._reader = ReaderHfds(
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
        self.classes: list[str] | None = sorted(by_name, key=by_name.__getitem__) or None

    def __len__(self) -> int:
        return len(self._reader)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """See ``Source``."""
        reader: Any = self._reader
        file, label = reader[index]
        with file:
            image = Image.open(file)
            image.load()
        return image, int(label)

    def name(self, index: int) -> str:
        """See ``Source``."""
        return self._reader.filename(index) or f"image {index}"


def is_embedded(data: str) -> bool:
    """Whether ``data`` is made from what comes with a dependency, in memory: no files, nothing to decode."""
    return data == "digits" or data.partition("@")[0] == "scaled_digits"


def open_source(data: str, split: Split, options: DataRecipe, *, expected_classes: list[str] | None = None) -> Source:
    """Open one split of a random-access data set.

    Args:
        data: ``digits``, ``scaled_digits`` (``scaled_digits@0.5``: all at one scale), a folder, ``torch/NAME`` or
            ``hfds/NAME``.
        split: ``test`` is the folder's ``val``.
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
        return DigitsSource(split)
    if is_embedded(data):
        return ScaledDigitsSource(data, split)
    kind, slash, name = data.partition("/")
    if slash and kind == "torch":
        return TorchvisionSource(name, split, options)
    if slash and kind == "hfds":
        return HuggingFaceSource(name, split, options)
    train = _find_split(Path(data), ("train", "training"))
    source = FolderSource(train)
    if split == "train":
        return source
    root = _find_split(Path(data), ("val", "valid", "validation"))
    test = FolderSource(root)
    strangers = sorted(set(test.class_to_idx) - set(source.class_to_idx))
    if strangers:
        raise InputError(f"{root} has classes that {train} has not: {', '.join(strangers[:5])}")
    # Labels are the training classes' even when val lacks some of them.
    return FolderSource(root, source.class_to_idx)


def _shorten(classes: list[str]) -> str:
    return f"{len(classes)}: {', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}"


def _find_split(root: Path, names: tuple[str, ...]) -> Path:
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"--data {root} {what}; allowed: {SPECS}")
    for name in names:
        if (root / name).is_dir():
            return root / name
    inside = ", ".join(sorted(entry.name for entry in os.scandir(root))[:5]) or "nothing"
    raise InputError(f"{root} has no folder {names[0]!r} (it holds {inside}); expected {root}/train and {root}/val")


def _torch_names() -> str:
    return ", ".join(f"torch/{name}" for name in KNOWN_SIZES) + ", torch/imagenet, torch/places365"


@contextlib.contextmanager
def quiet_readers() -> Iterator[None]:
    """Keep timm's readers from logging what we report ourselves."""
    logger = logging.getLogger("timm.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
