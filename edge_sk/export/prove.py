"""Second step of every export: run the file on test images and compare its outputs with the network's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edge_sk.export import parity
from edge_sk.export.network import Network
from edge_sk.export.prepare import reference
from edge_sk.export.record import Accuracy, Format, ParityEvidence, Precision

BATCH = 16


def prove(
    network: Network,
    run: Callable[[Tensor], Tensor],
    *,
    file: str,
    file_format: Format,
    precision: Precision,
    images: int | None,
    softmax: bool,
    runtime: str,
    arithmetic: str | None,
    eight_bits: bool = False,
    accept: Sequence[str] = (),
) -> tuple[ParityEvidence, Accuracy | None]:
    """Compare a file with the network on test images, a batch at a time: they may not fit into memory together.

    Args:
        network: What the file was made from.
        run: Runs the file on images in [0, 1], ``(N, C, H, W)``, and returns ``(N, classes)``.
        file: Its name, for messages.
        file_format: With the precision, it decides the thresholds.
        precision: See ``file_format``.
        images: How many test images, as :meth:`edge_sk.export.network.Network.test_images` takes them.
        softmax: Whether ``run`` returns probabilities.
        runtime: What runs the file.
        arithmetic: What it computes in; ``None``: unknown.
        eight_bits: Round the images to 8 bits, as an image input has them.
        accept: Demands to replace, as :func:`edge_sk.export.parity.accepting` takes them.

    Returns:
        The evidence, and the accuracy where it means something.

    Raises:
        InputError: Beyond a threshold; each value that falls short is named.
    """
    model = reference(network, softmax=softmax)
    wanted: list[Tensor] = []
    outputs: list[Tensor] = []
    classes: list[Tensor] = []
    for batch, labels in network.test_images(images):
        if eight_bits:
            batch = (batch * 255).round() / 255
        with torch.no_grad():
            wanted += [model(part) for part in batch.split(BATCH)]
        outputs.append(run(batch))
        classes.append(labels)
    expected, got, truth = torch.cat(wanted), torch.cat(outputs), torch.cat(classes)
    measured = parity.measure(expected, got, truth if network.knows_data else None, probabilities=softmax)
    limits = parity.accepting(parity.threshold(file_format, precision, trained=network.trained), accept)
    measured.check(limits, what=file)
    data = network.data_set()
    accuracy = None
    if network.knows_data:
        top1, eager_top1 = ((logits.argmax(1) == truth).double().mean().item() for logits in (got, expected))
        accuracy = Accuracy(top1=top1, eager_top1=eager_top1, images=len(truth), data=data)
    context = {"data": f"{data} test", "runtime": runtime, "arithmetic": arithmetic, "accepted": list(accept)}
    evidence = ParityEvidence.of(measured, limits, **context)
    return evidence, accuracy
