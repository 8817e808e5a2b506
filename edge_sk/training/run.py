"""A run folder: the trained network, how to rebuild and feed it, its recipe, its history, and where to go on from."""

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
from pydantic import Field, ValidationError
from torch import Tensor, nn

from edge_sk.errors import InputError
from edge_sk.files import atomic_write, check_output, write_text
from edge_sk.models import _weights, create_model
from edge_sk.training.metrics import read_csv
from edge_sk.training.recipe import DataRecipe, Recipe, read_recipe, recipe_to_yaml
from edge_sk.training.sources import is_embedded
from edge_sk.training.transforms import Preprocessing

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


class RunConfig(Preprocessing):
    """Everything needed to rebuild a trained model and to feed it: ``config.json``."""

    arch: str
    options: dict[str, Any] = Field(default_factory=dict)
    num_classes: int
    classes: list[str] | None  # label names, in the order of the outputs
    in_chans: int
    recipe: str
    data: str
    edge_sk_version: str


def check_new(folder: Path) -> None:
    """Refuse a folder for a new run that holds something: an ``InputError``."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        remedy = "--resume continues it" if (folder / CHECKPOINT).exists() else "it is not empty"
        raise InputError(f"{folder} exists already: {remedy}, another --output starts a new run")


def describe_run(folder: Path, config: RunConfig, recipe: Recipe, made: dict[str, Any]) -> None:
    """Write ``manifest.json``, in which a resumed run adds to the first entry, ``config.json`` and ``recipe.yaml``."""
    check_output(folder)
    if (folder / MANIFEST).is_file():
        first = saved_manifest(folder)
        made = first | {"resumed": [*first.get("resumed", []), made]}
    write_text(folder / MANIFEST, json.dumps(made, indent=2) + "\n")
    save_config(folder, config)
    # Last: a folder with a recipe can be resumed.
    title = f"# The resolved recipe of {config.arch} {config.recipe} seed {made['seed']}\n"
    write_text(folder / RECIPE, title + recipe_to_yaml(recipe))


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
    config, file = load_config(path), Path(path) / WEIGHTS
    if not file.is_file():
        raise InputError(f"{path} has no {WEIGHTS} yet: finish the run with recipes/train.py --resume")
    state, images = _weights.read(file)
    model = create_model(config.arch, num_classes=config.num_classes, in_chans=config.in_chans, **config.options)
    given, wanted = ({name: tuple(value.shape) for name, value in part.items()} for part in (state, model.state_dict()))
    if given != wanted:
        name = next(name for name in [*wanted, *given] if given.get(name) != wanted.get(name))
        here, there = given.get(name, "nothing"), wanted.get(name, "nothing")
        raise InputError(f"{file} does not hold the weights of {config.arch}: at {name} it has {here}, not {there}")
    model.load_state_dict(state)
    cfg: Any = model.default_cfg
    cfg.update(images)
    return LoadedRun(model.eval(), config)


def save_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """Write ``model.safetensors``."""
    from safetensors.torch import save

    # Not save_file: it reports a full disk as its own error type instead of an OSError.
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    with atomic_write(folder / WEIGHTS) as temporary:
        temporary.write_bytes(content)


def load_config(path: str | Path) -> RunConfig:
    """Read a run folder's ``config.json``; an ``InputError`` where it is missing or not one of ours."""
    try:
        return RunConfig.model_validate_json(_file(path, CONFIG).read_bytes())
    except ValidationError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{Path(path) / CONFIG} is damaged or from another program ({reason})") from None


def save_config(folder: Path, config: RunConfig) -> None:
    """Write ``config.json``."""
    write_text(folder / CONFIG, config.model_dump_json(indent=2) + "\n")


def saved_recipe(folder: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The resolved recipe of a run folder, with ``overrides``; errors as in :func:`~recipe.read_recipe`."""
    return read_recipe(_file(folder, RECIPE), overrides)


def data_options(folder: str | Path, data: str) -> DataRecipe:
    """How the run in ``folder`` read ``data``: its recipe's ``data`` section; embedded data sets need none."""
    return DataRecipe() if is_embedded(data) else saved_recipe(folder).data


def saved_manifest(folder: str | Path) -> dict[str, Any]:
    """How a run was made: ``seed``, ``commit``, ..., and under ``resumed`` the same for each continuation."""
    path = _file(folder, MANIFEST)
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error})") from None
    if not isinstance(values, dict) or not isinstance(values.get("seed"), int):
        raise InputError(f"{path} is damaged: it names no seed")
    return values


def _file(folder: str | Path, name: str) -> Path:
    """A file that every run folder has; an ``InputError`` where it has not."""
    path, remedy = Path(folder) / name, "give the folder that recipes/train.py wrote"
    if not path.parent.is_dir():
        problem = "is not a folder" if path.parent.exists() else "does not exist"
        raise InputError(f"--checkpoint {folder} {problem}: {remedy}")
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder: it has no {name}; {remedy}")
    return path


def unfinished(folder: str | Path) -> str | None:
    """How far an unfinished run was trained, as ``3 of 100 epochs``; ``None`` for a finished one.

    ``metrics.csv`` tells: the last epoch's row is written after the weights. The weights of a killed run can be older
    than the last row.
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
