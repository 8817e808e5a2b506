"""Read and write a run folder: the trained network, how to rebuild and feed it, its recipe, history and checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from edge_sk.errors import InputError
from edge_sk.files import atomic_write, write_text
from edge_sk.models import create_model
from edge_sk.models._weights import image_fields
from edge_sk.training.metrics import read_csv
from edge_sk.training.recipe import DataRecipe, Recipe, read_recipe
from edge_sk.training.sources import is_embedded

# The trained network.
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
# What was asked for, and by which command with which versions.
RECIPE = "recipe.yaml"
MANIFEST = "manifest.json"
# Where to go on from.
CHECKPOINT = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
DAMAGED = "checkpoint.damaged.pt"


class RunConfig(BaseModel):
    """Everything needed to rebuild a trained model and to feed it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    arch: str
    options: dict[str, Any] = Field(default_factory=dict)
    num_classes: int
    classes: list[str] | None  # label names, in the order of the outputs
    in_chans: int
    input_size: tuple[int, int, int]  # (C, H, W)
    mean: tuple[float, ...]  # per channel, of inputs in [0, 1]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    recipe: str
    data: str
    edge_sk_version: str


class LoadedRun(NamedTuple):
    """A model rebuilt from a run folder."""

    model: nn.Module  # in evaluation mode, on the CPU
    config: RunConfig


def load_run(path: str | Path) -> LoadedRun:
    """Rebuild the trained model of a run folder, the one that ``recipes/train.py`` wrote.

    Returns:
        The model (evaluation mode, CPU; its ``default_cfg`` says how the run prepared its images) and its
        configuration.

    Raises:
        InputError: Not a run folder, not finished, damaged, or its weights are another architecture's.
    """
    config = load_config(path)
    file = Path(path) / WEIGHTS
    if not file.is_file():
        raise InputError(f"{path} has no {WEIGHTS} yet: finish the run with recipes/train.py --resume")
    state = _read_weights(file)
    model = create_model(config.arch, num_classes=config.num_classes, in_chans=config.in_chans, **config.options)
    given, wanted = ({name: tuple(value.shape) for name, value in part.items()} for part in (state, model.state_dict()))
    for name in given.keys() | wanted.keys():
        here, there = given.get(name, "nothing"), wanted.get(name, "nothing")
        if here != there:
            raise InputError(f"{file} does not hold the weights of {config.arch}: at {name} it has {here}, not {there}")
    model.load_state_dict(state)
    cfg: Any = model.default_cfg
    cfg.update(image_fields(config.model_dump()))
    return LoadedRun(model.eval(), config)


def load_config(path: str | Path) -> RunConfig:
    """Read a run folder's ``config.json``; an ``InputError`` where it is missing or not one of ours."""
    folder = Path(path)
    remedy = "give the folder that recipes/train.py wrote"
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"--checkpoint {folder} {problem}: {remedy}")
    file = folder / CONFIG
    if not file.is_file():
        raise InputError(f"{folder} is not a run folder: it has no {CONFIG}; {remedy}")
    try:
        return RunConfig.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file} is damaged or from another program ({reason})") from None


def save_config(folder: Path, config: RunConfig) -> None:
    """Write ``config.json``."""
    write_text(folder / CONFIG, config.model_dump_json(indent=2) + "\n")


def _read_weights(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(file.read_bytes())
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{file} is damaged or not a safetensors file ({error})") from None


def save_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """Write ``model.safetensors``."""
    from safetensors.torch import save

    # Not save_file: it reports a full disk as its own error type instead of an OSError.
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    with atomic_write(folder / WEIGHTS) as temporary:
        temporary.write_bytes(content)


def saved_recipe(folder: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The resolved recipe of a run folder, with ``overrides``; errors as in :func:`~recipe.load_recipe`."""
    path = Path(folder) / RECIPE
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder: it has no {RECIPE}")
    return read_recipe(path, overrides)


def data_options(folder: str | Path, data: str) -> DataRecipe:
    """How the run in ``folder`` read ``data``: its recipe's ``data`` section; embedded data sets need none."""
    return DataRecipe() if is_embedded(data) else saved_recipe(folder).data


def saved_manifest(folder: str | Path) -> dict[str, Any]:
    """How a run was made: ``seed``, ``commit``, ..., and under ``resumed`` the same for each continuation."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder: it has no {MANIFEST}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error})") from None
    if not isinstance(values, dict) or not isinstance(values.get("seed"), int):
        raise InputError(f"{path} is damaged: it names no seed")
    return values


def trained_at(folder: str | Path) -> set[str]:
    """The commits of the code that trained a run: more than one where it was continued by another version."""
    first = saved_manifest(folder)
    return {str(part.get("commit")) for part in (first, *first.get("resumed", []))}


def unfinished(folder: str | Path) -> str | None:
    """How far an unfinished run was trained, as ``3 of 100 epochs``; ``None`` for a finished one.

    ``metrics.csv`` tells: the last epoch's row is written after the weights. Those of a killed run can be older than
    the epochs say.
    """
    planned = saved_recipe(folder).schedule.epochs
    rows = read_csv(folder)
    done = int(rows[-1]["epoch"]) if rows else 0
    return None if done >= planned else f"{done} of {planned} epochs"


# torch.save writes a zip file, which may end in a comment: the digest travels inside the file, and torch.load
# reads it as before.
_COMMENT = b"edge_sk sha256 "
_COMMENT_SIZE = len(_COMMENT) + 64
_COMMENT_LENGTH = struct.pack("<H", _COMMENT_SIZE)
FORMAT = 1


def can_resume(folder: Path) -> bool:
    """Whether the folder has a checkpoint."""
    return (folder / CHECKPOINT).is_file() or (folder / PREVIOUS).is_file()


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write ``checkpoint.pt``, keeping the one before as ``checkpoint.previous.pt``.

    The new file is complete and synced under another name before any old one is touched; at every moment at
    least one whole checkpoint has its final name or its predecessor's.

    Raises:
        OSError: No space on the disk, or another failure of it; the old files are as they were.
    """
    buffer = io.BytesIO()
    torch.save(state | {"format": FORMAT}, buffer)
    content = buffer.getvalue()
    with atomic_write(folder / CHECKPOINT) as temporary, temporary.open("wb") as file:
        # The last two bytes of a zip file without a comment are the comment's length, 0.
        file.write(content[:-2] + _COMMENT_LENGTH + _COMMENT + _digest(content))
        file.flush()
        if (folder / CHECKPOINT).exists():
            os.fsync(file.fileno())
            (folder / CHECKPOINT).replace(folder / PREVIOUS)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], str | None] | None:
    """Read the newest whole checkpoint of a run folder.

    A damaged ``checkpoint.pt`` is set aside as ``checkpoint.damaged.pt``, so that the next save cannot put it in the
    place of the good previous one. Every process of a run calls this at once: one of them sets the file aside, and to
    the others it may be gone at any moment.

    Returns:
        The state, and where it is the previous one what was wrong with the newer file; ``None`` without a file.

    Raises:
        InputError: There are files, none of them whole; or a file of another program.
    """
    problems: list[str] = []
    for name in (CHECKPOINT, PREVIOUS):
        try:
            state = _read_checkpoint(folder / name)
        except FileNotFoundError:
            continue
        except _DamagedError as error:
            problems.append(f"{folder / name} {error}")
            continue
        if problems:
            with contextlib.suppress(FileNotFoundError):
                (folder / CHECKPOINT).replace(folder / DAMAGED)
        return state, "; ".join(problems) or None
    if problems:
        raise InputError(f"nothing to resume from: {'; '.join(problems)}; start again with another --output")
    return None


class _DamagedError(Exception):
    pass


def _read_checkpoint(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    body, comment = content[:-_COMMENT_SIZE], content[-_COMMENT_SIZE:]
    if not (body.endswith(_COMMENT_LENGTH) and comment.startswith(_COMMENT)):
        raise _DamagedError("is truncated or was not written by recipes/train.py")
    if _digest(body[: -len(_COMMENT_LENGTH)] + b"\0\0") != comment[len(_COMMENT) :]:
        raise _DamagedError("does not match its checksum")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if state.get("format") != FORMAT:
        raise InputError(
            f"{path} has checkpoint format {state.get('format')}, this version of edge_sk reads {FORMAT}; "
            "resume it with the version that wrote it"
        )
    return state


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
