"""Read and write a run folder: the trained network, how to rebuild and feed it, its recipe, history and checkpoint."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from edge_sk.errors import InputError
from edge_sk.files import atomic_write, check_output, write_text
from edge_sk.models import _folders, _weights, create_model
from edge_sk.models._registry import todays_name
from edge_sk.quantization import FakeQuantized
from edge_sk.reading import read_json, read_yaml, short, validated
from edge_sk.training.recipe import Count, DataRecipe, Recipe, read_recipe, recipe_to_yaml
from edge_sk.training.sources import is_embedded
from edge_sk.training.transforms import Preprocessing

WEIGHTS = "model.safetensors"  # the trained network
BEST = "model_best.safetensors"  # that of the epoch with the highest val_top1: chosen on the images it is measured on
CONFIG = "config.json"  # how to rebuild and feed it
RECIPE = "recipe.yaml"  # with every field
MANIFEST = "manifest.json"  # the command, the versions, the host
CHECKPOINT = "checkpoint.pt"  # where to resume
PREVIOUS = "checkpoint.previous.pt"
DAMAGED = "checkpoint.damaged.pt"
INDEX = "index"  # folder for the lists of a data set's images
FORMAT = 2  # of checkpoints; 1 is version 0.1's, whose sk_ networks are others
CSV = "metrics.csv"  # a row per epoch
COLUMNS = (
    "epoch",  # finished epochs
    "step",  # optimizer steps
    "lr",  # of the last step
    "train_loss",  # mean over the epoch, as the loss is trained: smoothed, augmented
    "val_loss",  # mean cross-entropy; this and the next three are empty in an epoch that was not evaluated
    "val_top1",  # per cent
    "val_top5",  # per cent
    "val_images",
    "images_per_second",  # training, all processes together
    "data_wait",  # fraction of the training time spent waiting for the loader
    "seconds",  # since the run began, pauses not counted
)

Row = dict[str, float]


class RunConfig(Preprocessing):
    """Everything needed to rebuild a trained model and to feed it: ``config.json``."""

    arch: str
    options: dict[str, Any] = Field(default_factory=dict)
    num_classes: Count
    classes: list[str] | None  # label names, in the order of the outputs
    in_chans: int
    recipe: str
    data: str
    edge_sk_version: str
    qat: bool = False  # the weights are those of a FakeQuantized network, whose mean is 0 and std 1

    @model_validator(mode="before")
    @classmethod
    def _without_timms(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if key not in _folders.TIMMS}

    @model_validator(mode="after")
    def _agree(self) -> RunConfig:
        if self.in_chans != self.input_size[0]:
            raise ValueError(f"in_chans is {self.in_chans} and input_size has {self.input_size[0]} channels")
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(f"classes has {len(self.classes)} names for num_classes={self.num_classes}")
        if given := {"name", "num_classes", "in_chans", "init_from"} & self.options.keys():
            raise ValueError(f"options must not hold {', '.join(sorted(given))}")
        return self


class Diverged(BaseModel):
    """A loss, or weights, that were not finite."""

    step: int
    problem: str


class RunManifest(BaseModel, extra="allow"):
    """What is read of ``manifest.json``."""

    seed: int
    commit: str | None = None
    resumed: list[dict[str, Any]] = []  # the same for each continuation, and what was special about it (``notes``)
    diverged: list[Diverged] = []


def check_new(folder: Path) -> None:
    """Refuse a folder for a new run that holds something: an ``InputError``."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; give a folder")
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"--output {short(folder)} is not UTF-8: metrics and reports could not name it") from None
    # A start that failed has written no more than this.
    started = {MANIFEST, CONFIG, RECIPE, INDEX}
    if folder.is_dir() and any(entry.name not in started for entry in folder.iterdir()):
        remedy = "--resume continues it" if (folder / CHECKPOINT).exists() else "it is not empty"
        raise InputError(f"{folder} exists already: {remedy}, another --output starts a new run")


def describe_run(folder: Path, config: RunConfig, recipe: Recipe, made: dict[str, Any]) -> None:
    """Write ``manifest.json``, in which a resumed run adds to the first entry, ``config.json`` and ``recipe.yaml``."""
    check_output(folder)
    if (folder / MANIFEST).is_file():
        first = saved_manifest(folder)
        made = first | {"resumed": [*first["resumed"], made]}
    write_text(folder / MANIFEST, json.dumps(made, indent=2) + "\n")
    save_config(folder, config)
    # Last: a folder with a recipe can be resumed.
    title = f"# The resolved recipe of {config.arch} {config.recipe} seed {made['seed']}\n"
    write_text(folder / RECIPE, title + recipe_to_yaml(recipe))


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed had not finished writing: after many kills it would fill the disk."""
    for name in (CHECKPOINT, WEIGHTS, BEST, CSV, "curves.png", MANIFEST, CONFIG, RECIPE, "edge_sk-"):
        for path in folder.glob(f".{name}*"):
            path.unlink(missing_ok=True)


def note_divergence(folder: Path, step: int, problem: str) -> None:
    """Add to the manifest that the run diverged: it may then be continued with other ``REMEDIES``."""
    if (folder / MANIFEST).is_file():
        manifest = saved_manifest(folder)
        manifest["diverged"].append({"step": step, "problem": problem})
        write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


class LoadedRun(NamedTuple):
    """A model rebuilt from a run folder."""

    model: nn.Module  # in evaluation mode, on the CPU
    config: RunConfig


def load_run(path: str | Path) -> LoadedRun:
    """Rebuild the trained model of a run folder; its ``default_cfg`` says how the run prepared its images.

    An ``InputError`` where it is no run folder, not finished, damaged, or holds another architecture's weights.
    """
    config, file = load_config(path), Path(path) / WEIGHTS
    if not file.is_file():
        raise InputError(f"{path} has no {WEIGHTS} yet: finish the run with edge-sk train --resume")
    model = create_model(config.arch, num_classes=config.num_classes, in_chans=config.in_chans, **config.options)
    if config.qat:
        model = FakeQuantized(model, config.input_size, mean=config.mean, std=config.std)
    _weights.read(file).load(model, network=config.arch, new_classes=False)
    return LoadedRun(model.eval(), config)


def save_weights(folder: Path, state: dict[str, Tensor], name: str = WEIGHTS) -> None:
    """Write ``model.safetensors``."""
    _weights.write(folder / name, state)


def load_config(path: str | Path) -> RunConfig:
    """Read a run folder's ``config.json``; an ``InputError`` where it is missing or not one of ours."""
    file = _file(path, CONFIG)
    config = validated(RunConfig, read_json(file), file)
    return config.model_copy(update={"arch": todays_name(config.arch, config.edge_sk_version)})


def save_config(folder: Path, config: RunConfig) -> None:
    """Write ``config.json``, with what timm needs to load the folder."""
    content = config.model_dump(mode="json")
    cfg = {key: content[key] for key in (*Preprocessing.model_fields, "num_classes")} | {"label_names": config.classes}
    content |= {} if config.qat else _folders.for_timm(config.arch, cfg, config.options)
    write_text(folder / CONFIG, json.dumps(content, indent=2) + "\n")


def saved_recipe(folder: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The resolved recipe of a run folder, with ``overrides``; errors as in :func:`~recipe.read_recipe`."""
    path = _file(folder, RECIPE)
    # The last line of every version's recipes: a file that was cut lacks it, and would read as defaults from there on.
    if "wandb" not in ((read_yaml(path) or {}).get("log") or {}):
        raise InputError(f"{path} is damaged: its end, log.wandb, is missing")
    return read_recipe(path, overrides)


def data_options(folder: str | Path, data: str) -> DataRecipe:
    """How the run in ``folder`` read ``data``: its recipe's ``data`` section; embedded data sets need none."""
    return DataRecipe() if is_embedded(data) else saved_recipe(folder).data


def saved_manifest(folder: str | Path) -> dict[str, Any]:
    """How a run was made: ``seed``, ``commit``, ..., and under ``resumed`` the same for each continuation."""
    path = _file(folder, MANIFEST)
    return validated(RunManifest, read_json(path), path).model_dump()


def _file(folder: str | Path, name: str) -> Path:
    """A file that every run folder has; an ``InputError`` where it has not."""
    folder = Path(folder)
    path, remedy = folder / name, "give the folder that edge-sk train wrote"
    if not path.parent.is_dir():
        problem = "is not a folder" if path.parent.exists() else "does not exist"
        raise InputError(f"--checkpoint {folder} {problem}: {remedy}")
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder: it has no {name}; {remedy}")
    return path


def write_csv(folder: Path, history: Sequence[Row]) -> None:
    """Write ``metrics.csv`` whole: after a resume it holds no row of the lost steps."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in history:
        values: Any = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
        writer.writerow(values)
    write_text(folder / CSV, text.getvalue())


def read_csv(folder: str | Path) -> list[Row]:
    """``epoch``, ``seconds`` and, where there is one, ``val_top1`` of each row; nothing where there is no such file."""
    path = Path(folder) / CSV
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8") as file:
            rows = [
                {name: float(row[name]) for name in ("epoch", "val_top1", "seconds") if row[name] or name != "val_top1"}
                for row in map(todays_row, csv.DictReader(file))
            ]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {short(error)})") from None
    if not all(math.isfinite(value) for row in rows for value in row.values()):
        raise InputError(f"{path} is damaged: it holds a value that is not finite")
    return rows


def todays_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of a history under today's names; version 0.1 named the columns of the validation after a test."""
    return {re.sub("^test_", "val_", str(name)): value for name, value in row.items()}


def unfinished(folder: str | Path) -> str | None:
    """How far an unfinished run was trained, as ``3 of 100 epochs``; ``None`` for a finished run.

    The last epoch's row in ``metrics.csv`` is written after the weights. In a killed run, the weights can be older
    than the last row.
    """
    planned = saved_recipe(folder).schedule.epochs
    rows = read_csv(folder)
    done = int(rows[-1]["epoch"]) if rows else 0
    return None if done >= planned else f"{done} of {planned} epochs"


def can_resume(folder: Path) -> bool:
    """Whether the folder has a checkpoint."""
    return (folder / CHECKPOINT).is_file() or (folder / PREVIOUS).is_file()


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write ``checkpoint.pt``; the checkpoint before becomes ``checkpoint.previous.pt``.

    The new file is complete and synced before an old one is renamed: one of the two names always has a whole
    checkpoint. An ``OSError``, of a full disk for example, leaves the old files as they were.
    """
    buffer = io.BytesIO()
    torch.save(state | {"format": FORMAT}, buffer)
    with atomic_write(folder / CHECKPOINT) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        if (folder / CHECKPOINT).exists():
            os.fsync(file.fileno())
            (folder / CHECKPOINT).replace(folder / PREVIOUS)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], str | None] | None:
    """Read the newest whole checkpoint of a run folder, if it has any; with it, what was wrong with a newer one.

    A damaged ``checkpoint.pt`` is renamed to ``checkpoint.damaged.pt``, so that the next save cannot put it in the
    place of the good previous one. Every process of a run calls this at once: one of them renames the file, and to
    the others it may be gone at any moment.

    Raises:
        InputError: There are files, none of them whole; or a file of another program.
    """
    problems: list[str] = []
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        try:
            state = _read_checkpoint(path)
        except FileNotFoundError:
            continue
        if isinstance(state, str):
            problems.append(f"{path} {state}")
            continue
        if problems:
            with contextlib.suppress(FileNotFoundError):
                (folder / CHECKPOINT).replace(folder / DAMAGED)
        return state, "; ".join(problems) or None
    if problems:
        raise InputError(f"nothing to resume from: {'; '.join(problems)}; start again with another --output")
    return None


def _read_checkpoint(path: Path) -> dict[str, Any] | str:
    """The state, or what is wrong with the file."""
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
    except Exception:  # a dozen types, by the place of the damage
        return "is truncated or was not written by edge-sk train"
    if damaged:
        return "does not match its checksum"
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # torch raises a dozen types, some with advice to load it unsafely
        return "holds more than tensors and plain values"
    if state.get("format") != FORMAT:
        raise InputError(
            f"{path} has checkpoint format {state.get('format')}, this version of edge_sk reads {FORMAT}; "
            "resume it with the version that wrote it"
        )
    return state
