"""Check a saved ``.mlpackage``: its interface, its operators, and its outputs on test images."""

from __future__ import annotations

import collections
import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sk.errors import InputError
from edge_sk.export.coreml import coremltools
from edge_sk.export.coreml.mil import LARGEST_HALF, MilProgram
from edge_sk.export.network import Network
from edge_sk.export.prove import prove
from edge_sk.export.record import CORE_ML, Accuracy, ParityEvidence, Precision
from edge_sk.stderr import capture_stderr

MAX_RANK = 5

# Records of earlier versions have this name, too.
INTERPRETER = "edge_sk.export.mil (torch float32)"
INTERPRETER_NOTE = (
    "parity verifies the graph, the weights, the image preprocessing and the labels in the file, not the arithmetic of "
    "the Neural Engine or the GPU: run deploy/mac/check.py on a Mac for that"
)


def check_interface(program: MilProgram, network: Network, labels: list[str] | None) -> None:
    """Compare the package's input, labels and output with what was asked for.

    Raises:
        InputError: Labels missing or in another order, another image input, or a classifier without a softmax.
    """
    name = program.path.name
    if program.labels != labels:
        raise InputError(f"{name}: the labels in the package differ from the network's {labels}; export it again")
    if labels is not None and not program.ends_in_softmax:
        raise InputError(f"{name}: the classifier has no softmax: its probabilities would be logits; export it again")
    image = program.image
    if (image.channels, image.height, image.width) != tuple(network.input_size):
        raise InputError(f"{name}: the package takes {image}, the network {network.input_size}; export it again")


def check_operators(program: MilProgram, graph: torch.export.ExportedProgram) -> None:
    """Compare the saved program's operators with those of the graph that was converted.

    Raises:
        InputError: A rank beyond Core ML's, or transposes and casts that the network does not have.
    """
    name = program.path.name
    if program.max_rank > MAX_RANK:
        raise InputError(
            f"{name}: a value has {program.max_rank} axes and Core ML allows {MAX_RANK}; split the reshape"
        )
    asked = collections.Counter(
        node.target._opname for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)
    )
    # Half precision costs one conversion of the image and one of the output.
    allowed = {"transpose": asked["permute"] + asked["transpose"] + asked["t"], "cast": 2 + asked["_to_copy"]}
    for kind, most in allowed.items():
        found = program.operations[kind]
        if found > most:
            raise InputError(
                f"{name}: {found} {kind} operators where the network has {most}: coremltools added some, which "
                "slow the model down; look at the graph in Xcode or Netron"
            )


def check_outputs(
    program: MilProgram,
    network: Network,
    precision: Precision,
    *,
    images: int | None = None,
    accept: Sequence[str] = (),
) -> tuple[ParityEvidence, Accuracy | None, list[str]]:
    """Run the package on test images, on macOS by Core ML and elsewhere by the interpreter, and compare with eager.

    Args:
        program: The package, read back from disk.
        network: What it was made from.
        precision: It decides the thresholds.
        images: Test images; ``None`` as :meth:`edge_sk.export.network.Network.test_images` says.
        accept: Demands to replace, as :func:`edge_sk.export.parity.accepting` takes them.

    Returns:
        The evidence, the accuracy where it means something, and notes on what this did not verify.

    Raises:
        InputError: Beyond a threshold, a label that is not that of the highest output, or a value that half precision
            does not hold.
    """
    name = program.path.name
    on_mac = platform.system() == "Darwin"

    def interpret(image: np.ndarray) -> tuple[list[Tensor], str | None]:
        prediction = program.predict(image)
        if prediction.label is not None:
            return [prediction.logits], prediction.label
        return [torch.from_numpy(prediction.outputs[output])[0] for output in network.outputs], None

    predict = _core_ml(program, [*network.outputs]) if on_mac else interpret

    mislabelled: list[str] = []

    def run(batch: Tensor) -> list[Tensor]:
        rows = []
        for image in (batch * 255).round().to(torch.uint8).permute(0, 2, 3, 1).squeeze(-1).numpy():
            row, label = predict(image)
            if program.labels is not None and label != (highest := program.labels[int(row[0].argmax())]):
                mislabelled.append(f"an image gets the label {label!r}, and its highest output is that of {highest!r}")
            rows.append(row)
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    evidence, accuracy = prove(
        network,
        run,
        file=name,
        file_format="mlpackage",
        precision=precision,
        images=images,
        # Core ML gives a classifier's probabilities, the interpreter also what enters the softmax.
        softmax=on_mac and program.labels is not None,
        runtime=f"{CORE_ML} {platform.mac_ver()[0]}, all compute units" if on_mac else INTERPRETER,
        arithmetic=None if on_mac else "fp32",
        eight_bits=True,
        accept=accept,
    )
    if mislabelled:
        raise InputError(f"{name}: {mislabelled[0]}: the labels are out of order")
    if precision != "fp32" and program.largest_half > LARGEST_HALF:
        raise InputError(
            f"{name}: a value reaches {program.largest_half:.3g} and half precision ends at {LARGEST_HALF:.0f}: the "
            "phone would overflow; export fp32"
        )
    return evidence, accuracy, [] if on_mac else [INTERPRETER_NOTE]


def _core_ml(program: MilProgram, names: Sequence[str]) -> Callable[[np.ndarray], tuple[list[Tensor], str | None]]:
    """Load a package in Core ML; return a function from an image to its outputs and label."""
    from PIL import Image

    with capture_stderr():
        model: Any = coremltools().models.MLModel(str(program.path))
    description = program.description

    def predict(image: np.ndarray) -> tuple[list[Tensor], str | None]:
        with capture_stderr():
            outputs = model.predict({program.image.name: Image.fromarray(image)})
        if program.labels is None:
            return [torch.as_tensor(outputs[name]).float()[0] for name in names], None
        by_label = outputs[description.predictedProbabilitiesName]
        probabilities = torch.tensor([float(by_label[label]) for label in program.labels])
        return [probabilities], str(outputs[description.predictedFeatureName])

    return predict
