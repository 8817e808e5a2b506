"""Find the images in a folder, ``root/CLASS/IMAGE.jpg``."""

from __future__ import annotations

import collections
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from edge_sk.errors import InputError
from edge_sk.reading import short
from edge_sk.training.image_files import EXTENSIONS

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


@dataclass(frozen=True)
class Files:
    """Images of a folder as pairs of an open file and a label."""

    root: Path
    samples: list[tuple[str, int]]  # path relative to the root, label

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        path, label = self.samples[index]
        return (self.root / path).open("rb"), label

    def filename(self, index: int, *, absolute: bool) -> str:
        """The path of an image."""
        path = self.samples[index][0]
        return str(self.root / path) if absolute else path


def label_files(root: Path, classes: list[str] | None = None) -> tuple[Files, list[str]]:
    """Find the images under ``root`` and number their classes: in order of their names, or as in ``classes``.

    Raises:
        InputError: No images, images beside the classes' folders, or a class that is not in ``classes``.
    """
    found = find_images(root)
    others = ", ".join(f"{count} {extension}" for extension, count in list(found.unread.items())[:5])
    known = " ".join(sorted(EXTENSIONS))
    if not found.files:
        raise InputError(
            f"{root} has no images in class folders: expected {root}/CLASS/IMAGE.jpg, or {known}"
            + (f"; it holds {others}" if others else "")
        )
    if others:
        _logger.warning("%s: these files are not read: %s; images are %s", root, others, known)
    if "" in found.classes:
        raise InputError(f"{root} holds images outside class folders: expected {root}/CLASS/IMAGE.jpg")
    if strangers := sorted(set(found.classes) - set(classes or found.classes)):
        raise InputError(f"{root} has classes that the training images have not: {short(', '.join(strangers))}")
    labels = {name: label for label, name in enumerate(classes or found.classes)}
    return Files(root, [(path, labels[name]) for path, name in found.files]), list(labels)
