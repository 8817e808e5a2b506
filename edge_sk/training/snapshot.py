"""``checkpoint.pt``: a run's resumable state; never half-written, checked when read, the previous one kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edge_sk.errors import InputError
from edge_sk.files import atomic_write

CURRENT = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
DAMAGED = "checkpoint.damaged.pt"
FORMAT = 1

# torch.save writes a zip file, which may end in a comment: the digest travels inside the file, and torch.load
# reads it as before.
_COMMENT = b"edge_sk sha256 "
_COMMENT_SIZE = len(_COMMENT) + 64
_COMMENT_LENGTH = struct.pack("<H", _COMMENT_SIZE)


class _DamagedError(Exception):
    pass


@dataclass(frozen=True)
class Snapshot:
    """A state read back."""

    state: dict[str, Any]
    warning: str | None
    """What was wrong with a newer file, if this is the previous one."""


def save_snapshot(folder: Path, state: dict[str, Any]) -> None:
    """Write ``checkpoint.pt``, keeping the one before as ``checkpoint.previous.pt``.

    The new file is complete and synced under another name before any old one is touched; at every moment at
    least one whole checkpoint has its final name or its predecessor's.

    Raises:
        OSError: No space left, or another failure of the disk; the old files are as they were.
    """
    buffer = io.BytesIO()
    torch.save(state | {"format": FORMAT}, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest().encode()
    with atomic_write(folder / CURRENT) as temporary:
        with temporary.open("wb") as file:
            # The last two bytes of a zip file without a comment are the comment's length, 0.
            file.write(content[:-2] + _COMMENT_LENGTH + _COMMENT + digest)
            file.flush()
        if (folder / CURRENT).exists():
            _sync(temporary)
            (folder / CURRENT).replace(folder / PREVIOUS)


def load_snapshot(folder: Path) -> Snapshot | None:
    """Read the newest whole checkpoint of a run folder.

    A damaged ``checkpoint.pt`` is set aside as ``checkpoint.damaged.pt``, so that the next save cannot put it in the
    place of the good previous one. Every process of a run calls this at once: one of them sets the file aside, and to
    the others it may be gone at any moment.

    Returns:
        ``None`` when there is none yet.

    Raises:
        InputError: There are files, none of them whole; or a file of another program.
    """
    problems: list[str] = []
    for name in (CURRENT, PREVIOUS):
        path = folder / name
        try:
            state = _read(path)
        except FileNotFoundError:
            continue
        except _DamagedError as error:
            problems.append(f"{path} {error}")
            continue
        if problems:
            with contextlib.suppress(FileNotFoundError):
                (folder / CURRENT).replace(folder / DAMAGED)
        return Snapshot(state, "; ".join(problems) or None)
    if problems:
        raise InputError(f"nothing to resume from: {'; '.join(problems)}; start again with another --output")
    return None


def _read(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    body, comment = content[:-_COMMENT_SIZE], content[-_COMMENT_SIZE:]
    if not (body.endswith(_COMMENT_LENGTH) and comment.startswith(_COMMENT)):
        raise _DamagedError("is truncated or was not written by recipes/train.py")
    original = body[: -len(_COMMENT_LENGTH)] + b"\0\0"
    if hashlib.sha256(original).hexdigest().encode() != comment[len(_COMMENT) :]:
        raise _DamagedError("does not match its checksum")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if state.get("format") != FORMAT:
        raise InputError(
            f"{path} has checkpoint format {state.get('format')}, this version of edge_sk reads {FORMAT}; "
            "resume it with the version that wrote it"
        )
    return state


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
