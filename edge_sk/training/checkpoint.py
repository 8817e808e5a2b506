"""A trained model on disk: ``model.safetensors`` with the weights, ``config.json`` with how to rebuild and feed it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from edge_sk.errors import InputError
from edge_sk.files import atomic_write, write_text
from edge_sk.models._weights import image_fields

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class RunConfig(BaseModel):
    """Everything needed to rebuild a trained model and to feed it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    arch: str
    options: dict[str, Any] = Field(default_factory=dict)
    num_classes: int
    classes: list[str] | None
    """Label names, in the order of the outputs."""
    in_chans: int
    input_size: tuple[int, int, int]
    """(C, H, W)"""
    mean: tuple[float, ...]
    """Of inputs in [0, 1], per channel."""
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    recipe: str
    data: str
    edge_sk_version: str


@dataclass(frozen=True)
class LoadedRun:
    """A model rebuilt from a run folder."""

    model: nn.Module
    """In evaluation mode, on the CPU."""
    config: RunConfig


def save_config(folder: Path, config: RunConfig) -> None:
    """Write ``config.json``."""
    write_text(folder / CONFIG, config.model_dump_json(indent=2) + "\n")


def save_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """Write ``model.safetensors``."""
    from safetensors.torch import save

    # Not save_file: it reports a full disk as its own error type instead of an OSError.
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    with atomic_write(folder / WEIGHTS) as temporary:
        temporary.write_bytes(content)


def load_config(path: str | Path) -> RunConfig:
    """Read a run folder's ``config.json``.

    Raises:
        InputError: There is no such folder or file, or it is not one of ours.
    """
    folder = Path(path)
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"--checkpoint {folder} {problem}: give the folder that recipes/train.py wrote")
    file = folder / CONFIG
    if not file.is_file():
        raise InputError(
            f"{folder} is not a run folder: it has no {CONFIG}; give the folder that recipes/train.py wrote"
        )
    try:
        return RunConfig.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file} is damaged or from another program ({reason})") from None


def load_run(path: str | Path) -> LoadedRun:
    """Rebuild the trained model of a run folder.

    Args:
        path: The folder that ``recipes/train.py`` wrote.

    Returns:
        The model (evaluation mode, CPU; its ``default_cfg`` says how the run prepared its images) and its
        configuration.

    Raises:
        InputError: Not a run folder, not finished, damaged, or its weights are another architecture's.
    """
    from edge_sk.models import create_model

    config = load_config(path)
    file = Path(path) / WEIGHTS
    if not file.is_file():
        raise InputError(f"{path} has no {WEIGHTS} yet: finish the run with recipes/train.py --resume")
    state = read_weights(file)
    model = create_model(config.arch, num_classes=config.num_classes, in_chans=config.in_chans, **config.options)
    check_same_weights(model, state, origin=str(file), arch=config.arch)
    model.load_state_dict(state)
    cfg: Any = model.default_cfg
    cfg.update(image_fields(config.model_dump()))
    return LoadedRun(model.eval(), config)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: It is damaged or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(file.read_bytes())
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{file} is damaged or not a safetensors file ({error})") from None


def check_same_weights(model: nn.Module, state: dict[str, Tensor], *, origin: str, arch: str) -> None:
    """Raise an InputError naming the first difference unless ``state`` fits ``model`` exactly."""
    expected = model.state_dict()
    for name in expected.keys() | state.keys():
        if name not in state or name not in expected or state[name].shape != expected[name].shape:
            here = tuple(state[name].shape) if name in state else "nothing"
            there = tuple(expected[name].shape) if name in expected else "nothing"
            raise InputError(f"{origin} does not hold the weights of {arch}: at {name} it has {here}, not {there}")
