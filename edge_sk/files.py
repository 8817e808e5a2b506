"""Write whole files: a reader never finds half a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edge_sk.errors import InputError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success sync the file and rename it to ``path``.

    If the block raises (a full disk, an interrupt), the temporary file is removed, and ``path`` stays as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        # mkstemp makes files private; give the file the permissions an ordinary open() would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Give a path of the same name in a hidden folder beside ``target``; on success move it to ``target``.

    If the block raises (a full disk, an interrupt), what it wrote is removed and whatever was at ``target`` before
    stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    new, previous = hidden / target.name, hidden / "previous"
    try:
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        # A folder cannot be renamed over another: the older one moves away first, and back if the new one cannot come.
        if target.exists() or target.is_symlink():
            target.rename(previous)
        try:
            new.rename(target)
        except BaseException:
            if previous.exists() and not target.exists():
                previous.rename(target)
            raise
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file of text in UTF-8, whole or not at all (:func:`atomic_write`)."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files (``.mlpackage``).

    Hidden files and folders are left out: macOS writes some into folders that it shows.
    """
    path = Path(path)
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in inside.parts):
            digest.update(f"{inside.as_posix()}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


def check_output(folder: Path) -> None:
    """Make the output folder; an ``InputError`` where no file can be written there, before minutes of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".edge_sk-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        remedy = "give a folder that you may write to"
        raise InputError(f"cannot write into {folder}: {error.strerror}; {remedy}") from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut (POSIX only: Windows cannot open a folder)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def artifact_path(folder: str | os.PathLike[str], stem: str, extension: str) -> Path:
    """Path of ``stem + extension`` in ``folder``.

    ``Path.with_suffix`` must not be used for this: it takes the ``.0`` of ``sk_shufflenetv2_1.0`` for a suffix.
    """
    return Path(folder) / f"{stem}{extension}"
