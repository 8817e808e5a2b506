"""Find the images in a folder, ``root/CLASS/IMAGE.jpg``, and keep the list of them in an index."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edge_sk.errors import InputError, short
from edge_sk.files import atomic_write
from edge_sk.reading import parse_json
from edge_sk.training.image_files import EXTENSIONS

_logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0
# A change of a folder within this time before its index was written may have the same time stamp.
SETTLED_NS = 2 * 10**9


@dataclass(frozen=True)
class Listing:
    """The images under a folder, in arrays: loader processes share them, and would copy lists one by one."""

    paths: np.ndarray  # uint8: the paths relative to the root in UTF-8, one behind the other, in order
    ends: np.ndarray  # int64 (N,): where each of them ends
    kinds: np.ndarray  # int64 (N,): the class of each, as a position in ``classes``
    classes: list[str]  # in order
    unread: dict[str, int]  # files by extension that are not read as images
    folders: dict[str, int]  # every folder gone through, relative to the root, and its time of change in ns


def find_images(root: Path) -> Listing:
    """Walk ``root``; an image's class is the name of the folder that holds it, as in timm.

    Links are followed, but not back into a folder that they lie in. Hidden files and folders, and what is no regular
    file, such as a pipe, are passed over. A walk that takes long says on stderr how far it is.

    Raises:
        InputError: A name that is not UTF-8: metrics, reports and labels could not hold it.
    """
    found: list[tuple[str, str]] = []
    unread: collections.Counter[str] = collections.Counter()
    folders: dict[str, int] = {}
    said = time.monotonic()
    pending = [("", frozenset[tuple[int, int]]())]  # a folder, and the device and inode of those that it lies in
    while pending:
        folder, above = pending.pop()
        status = os.stat(root / folder)
        if (here := (status.st_dev, status.st_ino)) in above:
            continue
        folders[folder], name = status.st_mtime_ns, os.path.basename(folder)
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                # Of a link that leads nowhere os.path says that it is neither, where the entry would raise an error.
                link = entry.is_symlink()
                if os.path.isdir(entry) if link else entry.is_dir():
                    pending.append((os.path.join(folder, entry.name), above | {here}))
                elif os.path.isfile(entry) if link else entry.is_file():
                    extension = os.path.splitext(entry.name)[1].lower()
                    if extension in EXTENSIONS:
                        found.append((os.path.join(folder, entry.name), name))
                    else:
                        unread[extension or "no extension"] += 1
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            print(f"reading {root}: {len(found):,} images so far", file=sys.stderr)
    found.sort(key=lambda entry: (_natural(entry[0]), entry[0]))
    classes = sorted({name for _, name in found}, key=lambda name: (_natural(name), name))
    numbers = {name: number for number, name in enumerate(classes)}
    try:
        paths = [path.encode() for path, _ in found]
    except UnicodeEncodeError as error:
        raise InputError(f"{short(root / str(error.object))} has a name that is not UTF-8: rename it") from None
    return Listing(
        np.frombuffer(b"".join(paths), dtype=np.uint8),
        np.cumsum([len(path) for path in paths], dtype=np.int64),
        np.array([numbers[name] for _, name in found], dtype=np.int64),
        classes,
        dict(unread.most_common()),
        folders,
    )


def _natural(name: str) -> str:
    """Sorts ``2.png`` before ``10.png``: timm's order, so that labels are timm's."""
    # A number sorts before any letter, and by its digits' count first.
    return re.sub(r"\d+", lambda match: f"\0{len(number := str(int(match[0]))):03}{number}", name.lower())


@dataclass(frozen=True)
class Files:
    """Images of a folder as pairs of an open file and a label."""

    root: Path
    listing: Listing
    labels: np.ndarray  # int64 (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        return (self.root / self._path(index)).open("rb"), int(self.labels[index])

    def filename(self, index: int, *, absolute: bool) -> str:
        """The path of an image."""
        return str(self.root / self._path(index)) if absolute else self._path(index)

    def _path(self, index: int) -> str:
        ends = self.listing.ends
        return self.listing.paths[ends[index - 1] if index else 0 : ends[index]].tobytes().decode()


def label_files(root: Path, classes: list[str] | None = None, indexes: Sequence[Path] = ()) -> tuple[Files, list[str]]:
    """Find the images under ``root`` and number their classes: in order of their names, or as in ``classes``.

    The first of the ``indexes`` that is there and still right is read instead of walking; where none is, the last is
    written.

    Raises:
        InputError: No images, images beside the classes' folders, or a class that is not in ``classes``.
    """
    listing = next((kept for file in indexes if (kept := _read_index(file, root))), None)
    walked = listing is None
    if listing is None:
        listing = find_images(root)
    others = ", ".join(f"{count} {extension}" for extension, count in list(listing.unread.items())[:5])
    known = " ".join(sorted(EXTENSIONS))
    names = listing.classes
    if not names:
        raise InputError(
            f"{root} has no images in class folders: expected {root}/CLASS/IMAGE.jpg, or {known}"
            + (f"; it holds {others}" if others else "")
        )
    if others and walked:
        _logger.warning("%s: these files are not read: %s; images are %s", root, others, known)
    if "" in names:
        raise InputError(f"{root} holds images outside class folders: expected {root}/CLASS/IMAGE.jpg")
    if strangers := sorted(set(names) - set(classes or names)):
        raise InputError(f"{root} has classes that the training images have not: {short(', '.join(strangers))}")
    if walked and indexes:
        # An index only saves time: a run folder that cannot be written to is reported where it matters.
        with contextlib.suppress(OSError):
            _write_index(indexes[-1], root, listing)
    classes = classes or names
    numbers = {name: label for label, name in enumerate(classes)}
    return Files(root, listing, np.array([numbers[name] for name in names])[listing.kinds]), classes


def _write_index(file: Path, root: Path, listing: Listing) -> None:
    arrays = {name: torch.from_numpy(getattr(listing, name).copy()) for name in ("paths", "ends", "kinds")}
    about = {name: getattr(listing, name) for name in ("classes", "unread", "folders")} | _scope(root)
    with atomic_write(file) as temporary:
        save_file(arrays, temporary, {"listing": json.dumps(about)})


def _read_index(file: Path, root: Path) -> Listing | None:
    """The listing in a file; ``None`` where there is none, or the folders have changed since it was written."""
    try:
        with safe_open(file, "pt") as kept:
            about = parse_json(kept.metadata()["listing"], str(file))
            # Maps the file: all processes of a node share its memory.
            arrays = {name: kept.get_tensor(name).numpy() for name in ("paths", "ends", "kinds")}
        listing = Listing(*arrays.values(), *(about[name] for name in ("classes", "unread", "folders")))
        is_right = (
            _scope(root).items() <= about.items()
            and file.stat().st_mtime_ns - max(listing.folders.values()) > SETTLED_NS
            and all(os.stat(root / folder).st_mtime_ns == time for folder, time in listing.folders.items())
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError):
        return None
    return listing if is_right else None


def _scope(root: Path) -> dict[str, str | list[str]]:
    """What a listing depends on besides the folders' contents."""
    return {"root": os.path.realpath(root), "extensions": sorted(EXTENSIONS)}
