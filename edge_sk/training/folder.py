"""Find the images in a folder, ``root/CLASS/IMAGE.jpg``."""

from __future__ import annotations

import collections
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge_sk.errors import InputError, short
from edge_sk.training.image_files import EXTENSIONS

_logger = logging.getLogger(__name__)


def find_images(root: Path) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Walk ``root``; an image's class is the name of the folder that holds it, as in timm.

    Links are followed, but not back into a folder that they lie in. Hidden files and folders, and what is no regular
    file, such as a pipe, are passed over.

    Returns:
        Path relative to the root and class of every image, in order; files by extension that are not read as images.

    Raises:
        InputError: A name that is not UTF-8: metrics, reports and labels could not hold it.
    """
    files: list[tuple[str, str]] = []
    unread: collections.Counter[str] = collections.Counter()
    above: dict[str, frozenset[str]] = {}  # the real paths of a folder and of those that it lies in
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_stop):
        real, parents = os.path.realpath(folder), above.get(os.path.dirname(folder), frozenset())
        above[folder] = parents | {real}
        if real in parents:
            subfolders.clear()
            continue
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
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
    return sorted(files, key=lambda entry: _natural(entry[0])), dict(unread.most_common())


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
    found, unread = find_images(root)
    others = ", ".join(f"{count} {extension}" for extension, count in list(unread.items())[:5])
    known = " ".join(sorted(EXTENSIONS))
    if not found:
        raise InputError(
            f"{root} has no images in class folders: expected {root}/CLASS/IMAGE.jpg, or {known}"
            + (f"; it holds {others}" if others else "")
        )
    if others:
        _logger.warning("%s: these files are not read: %s; images are %s", root, others, known)
    names = sorted({name for _, name in found}, key=_natural)
    if "" in names:
        raise InputError(f"{root} holds images outside class folders: expected {root}/CLASS/IMAGE.jpg")
    if strangers := sorted(set(names) - set(classes or names)):
        raise InputError(f"{root} has classes that the training images have not: {short(', '.join(strangers))}")
    labels = {name: label for label, name in enumerate(classes or names)}
    return Files(root, [(path, labels[name]) for path, name in found]), list(labels)
