"""A folder of images, ``root/CLASS/IMAGE.jpg``, as a source."""

from __future__ import annotations

import collections
import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from edge_sk.errors import InputError
from edge_sk.reading import short
from edge_sk.training.image_files import EXTENSIONS, read_image

_logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """The images under a folder."""

    files: list[tuple[str, str]]  # (path relative to the folder, class), in order
    classes: list[str]
    unread: dict[str, int]  # files by extension that no decoder is asked for


def find_images(root: Path) -> Found:
    """Walk ``root``; an image's class is the name of the folder that holds it, as in timm.

    Links are followed, once each. Hidden files, and what is no regular file, such as a pipe, are passed over.

    Raises:
        InputError: A name that is not UTF-8: metrics, reports and labels could not hold it.
    """
    files: list[tuple[str, str]] = []
    unread: collections.Counter[str] = collections.Counter()
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_stop):
        status = os.stat(folder)
        if (identity := (status.st_dev, status.st_ino)) in seen:
            subfolders.clear()
            continue
        seen.add(identity)
        for name in names:
            path = os.path.join(folder, name)
            extension = os.path.splitext(name)[1].lower()
            if name.startswith(".") or not os.path.isfile(path):
                continue
            if extension not in EXTENSIONS:
                unread[extension or "no extension"] += 1
                continue
            inside = os.path.relpath(path, root)
            try:
                inside.encode()
            except UnicodeEncodeError:
                raise InputError(f"{short(path)} has a name that is not UTF-8: rename it") from None
            files.append((inside, os.path.basename(os.path.dirname(inside))))
    files.sort(key=lambda entry: _natural(entry[0]))
    return Found(files, sorted({label for _, label in files}, key=_natural), dict(unread.most_common()))


def _stop(error: OSError) -> None:
    """A folder that cannot be listed would otherwise be passed over."""
    raise error


def _natural(name: str) -> tuple[list[int | str], str]:
    """Sorts ``2.png`` before ``10.png``: timm's order, so that labels are timm's."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


class ImageFolder:
    """The labelled images under ``root``.

    Args:
        root: A folder with a folder for each class in it.
        like: The training images: their labels are taken, even when ``root`` lacks some of the classes.

    Raises:
        InputError: No images, images beside the classes' folders, or classes that ``like`` has not.
    """

    def __init__(self, root: Path, *, like: ImageFolder | None = None) -> None:
        found = find_images(root)
        others = ", ".join(f"{count} {extension}" for extension, count in list(found.unread.items())[:5])
        if not found.files:
            raise InputError(
                f"{root} has no images in class folders: expected {root}/CLASS/IMAGE.jpg, or "
                f"{' '.join(sorted(EXTENSIONS))}" + (f"; it holds {others}" if others else "")
            )
        if others:
            _logger.warning(
                "%s: these files are not read: %s; images are %s", root, others, " ".join(sorted(EXTENSIONS))
            )
        if "" in found.classes:
            raise InputError(f"{root} holds images outside class folders: expected {root}/CLASS/IMAGE.jpg")
        self.root = root
        self.classes = found.classes if like is None else like.classes
        if strangers := [name for name in found.classes if name not in self.classes]:
            raise InputError(f"{root} has classes that {like and like.root} has not: {', '.join(strangers[:5])}")
        labels = {name: label for label, name in enumerate(self.classes)}
        self._samples = [(path, labels[name]) for path, name in found.files]

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Image and label."""
        path, label = self._samples[index]
        return read_image(self.root / path), label

    def name(self, index: int) -> str:
        """The path of an image."""
        return str(self.root / self._samples[index][0])
