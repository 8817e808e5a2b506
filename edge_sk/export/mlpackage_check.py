"""Hold a saved ``.mlpackage`` against the network that it was made from."""

from __future__ import annotations

import collections

import torch
from torch import Tensor

from edge_sk.errors import InputError
from edge_sk.export import parity
from edge_sk.export.coreml_runtime import run_package
from edge_sk.export.deploy_form import with_preprocessing
from edge_sk.export.mil import LARGEST_HALF, MilProgram
from edge_sk.export.network import Network
from edge_sk.export.record import Accuracy, ParityEvidence, Precision

MAX_RANK = 5


def check_interface(program: MilProgram, network: Network, labels: list[str] | None) -> None:
    """Hold the package's input, labels and output against what was asked for.

    Raises:
        InputError: Labels missing or in another order, another image input, or a classifier without a softmax.
    """
    name = program.path.name
    if program.labels != labels:
        raise InputError(f"{name}: the labels in the package differ from the network's {labels}; export it again")
    if labels is not None and not program.ends_in_softmax:
        raise InputError(f"{name}: the classifier has no softmax: its probabilities would be logits; export it again")
    image = program.image
    if image is None or (image.channels, image.height, image.width) != tuple(network.input_size):
        raise InputError(f"{name}: the package takes {image}, the network {network.input_size}; export it again")


def check_operators(program: MilProgram, graph: torch.export.ExportedProgram) -> None:
    """Hold the saved program's operators against those of the graph that was converted.

    Raises:
        InputError: A rank beyond Core ML's, or transposes and casts that the network does not have.
    """
    name = program.path.name
    if program.max_rank() > MAX_RANK:
        raise InputError(
            f"{name}: a value has {program.max_rank()} axes and Core ML allows {MAX_RANK}; split the reshape"
        )
    asked = collections.Counter(
        node.target._opname for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)
    )
    found = program.operations()
    # Half precision costs one conversion of the image and one of the output.
    allowed = {"transpose": asked["permute"] + asked["transpose"] + asked["t"], "cast": 2 + asked["_to_copy"]}
    for kind, most in allowed.items():
        if found[kind] > most:
            raise InputError(
                f"{name}: {found[kind]} {kind} operators where the network has {most}: coremltools added some, which "
                "slow the model down; look at the graph in Xcode or Netron"
            )


def prove(
    program: MilProgram, network: Network, precision: Precision, *, images: int | None = None
) -> tuple[ParityEvidence, Accuracy | None, list[str]]:
    """Run the package on test images and hold its answers against eager.

    Args:
        program: The package, read back from disk.
        network: What it was made from.
        precision: It decides the thresholds.
        images: Test images; ``None`` as :meth:`edge_sk.export.network.Network.test_images` says.

    Returns:
        The evidence, the accuracy where it means something, and notes on what this did not verify.

    Raises:
        InputError: Beyond a threshold, a label that is not that of the highest output, or a value that half precision
            does not hold.
    """
    name = program.path.name
    # Core ML's image input has 8 bits per channel; so have the test images.
    batches = [((batch * 255).round().to(torch.uint8), labels) for batch, labels in network.test_images(images)]
    pixels, truth = torch.cat([batch for batch, _ in batches]), torch.cat([labels for _, labels in batches])
    eager = with_preprocessing(network.model, mean=network.mean, std=network.std)
    with torch.no_grad():
        expected = torch.cat([eager(batch.float() / 255) for batch in pixels.split(16)])
    run = run_package(program, pixels.permute(0, 2, 3, 1).squeeze(-1).numpy())
    # Core ML itself gives a classifier's probabilities; the interpreter also what enters the softmax.
    reference = expected.softmax(1) if run.probabilities else expected
    measured = parity.compare(reference, run.outputs)
    limits = parity.threshold("mlpackage", precision, trained=network.trained)
    measured.check(limits, what=name)
    if program.labels is not None:
        _check_answers(program.labels, run.labels, run.outputs, name)
    if precision != "fp32" and program.largest_half > LARGEST_HALF:
        raise InputError(
            f"{name}: a value reaches {program.largest_half:.3g} and half precision ends at {LARGEST_HALF:.0f}: the "
            "phone would overflow; export fp32"
        )
    accuracy = None
    if network.knows_data:
        accuracy = Accuracy(
            top1=_share(run.outputs.argmax(1) == truth),
            eager_top1=_share(expected.argmax(1) == truth),
            images=len(truth),
            data=network.data_set(),
        )
    evidence = ParityEvidence.of(
        measured, limits, data=f"{network.data_set()} test", runtime=run.runtime, arithmetic=run.arithmetic
    )
    return evidence, accuracy, run.notes


def _check_answers(labels: list[str], answers: list[str], outputs: Tensor, name: str) -> None:
    """The label that an application sees must be that of the highest output."""
    for index, (answer, output) in enumerate(zip(answers, outputs, strict=True)):
        if answer != labels[int(output.argmax())]:
            raise InputError(
                f"{name}: image {index} is answered {answer!r}, and the highest output is that of "
                f"{labels[int(output.argmax())]!r}: the labels are out of order"
            )


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()
