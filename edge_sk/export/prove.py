"""Second step of every export: run the file on test images and compare its outputs with the network's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edge_sk import running
from edge_sk.export import parity
from edge_sk.export.network import Network
from edge_sk.export.prepare import reference
from edge_sk.export.record import Accuracy, Format, OutputParity, ParityEvidence, Precision

BATCH = 16


def prove(
    network: Network,
    run: Callable[[Tensor], Sequence[Tensor]],
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
        run: Runs the file on images in [0, 1], ``(N, C, H, W)``, and returns its outputs, ``(N, ...)``, in the order of
            :attr:`Network.outputs`.
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
    compared = {
        name: parity.Comparison(decides=network.decides(shape), probabilities=softmax)
        for name, shape in network.outputs.items()
    }
    labelled = network.knows_data and network.is_classifier
    for batch, labels in network.test_images(images):
        if eight_bits:
            batch = (batch * 255).round() / 255
        with torch.no_grad():
            wanted = [running.named_tensors(model(part)).values() for part in batch.split(BATCH)]
        for comparison, expected, got in zip(compared.values(), zip(*wanted, strict=True), run(batch), strict=True):
            comparison.add(torch.cat(expected), got, labels if labelled else None)
    limits = parity.accepting(parity.threshold(file_format, precision, trained=network.trained), accept)
    if not network.is_classifier and limits.top1_agreement is not None:
        # Rounding may tip pixels between two classes that are as good as equal.
        limits = dataclasses.replace(limits, top1_agreement=min(limits.top1_agreement, 1 - running.TIPPED))
    measured = {name: comparison.result() for name, comparison in compared.items()}
    for name, one in measured.items():
        one.check(limits, what=f"{file} ({name})" if len(measured) > 1 else file)
    data = network.data_set()
    accuracy = None
    if labelled:
        (only,) = compared.values()
        top1, eager_top1 = (count / only.images for count in (only.right, only.eager_right))
        accuracy = Accuracy(top1=top1, eager_top1=eager_top1, images=only.images, data=data)
    context = {"data": f"{data} test", "runtime": runtime, "arithmetic": arithmetic, "accepted": list(accept)}
    context["outputs"] = {name: OutputParity.of(one) for name, one in measured.items()} if len(measured) > 1 else {}
    evidence = ParityEvidence.of(parity.worst([*measured.values()]), limits, **context)
    return evidence, accuracy
