"""What executes a saved package: Core ML where it exists, the interpreter everywhere."""

from __future__ import annotations

import dataclasses
import platform
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sk.export.coreml_tools import coremltools
from edge_sk.export.mil import MilProgram
from edge_sk.export.quiet import quiet
from edge_sk.export.record import CORE_ML

INTERPRETER = "edge_sk.export.mil (torch float32)"
INTERPRETER_NOTE = (
    "parity verifies the graph, the weights, the image preprocessing and the labels in the file, not the arithmetic of "
    "the Neural Engine or the GPU: run deploy/mac/check.py on a Mac for that"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a package answered.

    Args:
        outputs: ``(N, classes)``.
        probabilities: Whether ``outputs`` are probabilities; logits otherwise.
        labels: The label given to each image; empty when the package is no classifier.
        runtime: What executed it.
        arithmetic: What it computed in; ``None`` where Core ML decides.
        notes: What this run does not verify.
    """

    outputs: Tensor
    probabilities: bool
    labels: list[str]
    runtime: str
    notes: list[str]
    arithmetic: str | None = None


def run_package(program: MilProgram, pictures: np.ndarray) -> Run:
    """Run a package on images: on macOS by Core ML, elsewhere by the interpreter.

    Args:
        program: The loaded package.
        pictures: uint8, ``(N, H, W, 3)``, or ``(N, H, W)`` for grayscale.
    """
    return _with_core_ml(program, pictures) if platform.system() == "Darwin" else _interpreted(program, pictures)


def _interpreted(program: MilProgram, pictures: np.ndarray) -> Run:
    answers = [program.answer(picture) for picture in pictures]
    return Run(
        outputs=torch.stack([answer.logits for answer in answers]),
        probabilities=False,
        labels=[answer.label for answer in answers if answer.label is not None],
        runtime=INTERPRETER,
        notes=[INTERPRETER_NOTE],
        arithmetic="fp32",
    )


def _with_core_ml(program: MilProgram, pictures: np.ndarray) -> Run:
    """Core ML's own prediction, on all compute units."""
    from PIL import Image

    assert program.image is not None
    with quiet():
        model: Any = coremltools().models.MLModel(str(program.path))
        answers = [model.predict({program.image.name: Image.fromarray(picture)}) for picture in pictures]
    runtime = f"{CORE_ML} {platform.mac_ver()[0]}, all compute units"
    if program.labels is None:
        (name,) = program.output_names
        outputs = torch.stack([torch.as_tensor(answer[name]).float().flatten() for answer in answers])
        return Run(outputs, probabilities=False, labels=[], runtime=runtime, notes=[])
    label, by_label = program.answer_names
    rows = [[float(answer[by_label][each]) for each in program.labels] for answer in answers]
    return Run(
        outputs=torch.tensor(rows),
        probabilities=True,
        labels=[str(answer[label]) for answer in answers],
        runtime=runtime,
        notes=[],
    )
