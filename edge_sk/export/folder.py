"""Writing a folder so that a reader never meets half of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path of the same name in a hidden folder beside ``path``; on success put it in the place of ``path``.

    If the block raises (a full disk, an interrupt), what it wrote is removed and whatever was at ``path`` before
    stays as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        written = hidden / target.name
        yield written
        for file in written.rglob("*"):
            if file.is_file():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        _replace(written, target, hidden / "previous")
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _replace(new: Path, target: Path, aside: Path) -> None:
    """Rename over a folder: unlike a file it must first move out of the way, and back if that is all that worked."""
    if target.exists() or target.is_symlink():
        target.rename(aside)
    try:
        new.rename(target)
    except BaseException:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
