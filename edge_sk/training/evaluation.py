"""Top-1, top-5 and loss over a labelled set, sharded over the processes, no image counted twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from edge_sk.errors import InputError
from edge_sk.training.batches import Batch
from edge_sk.training.distributed import World
from edge_sk.training.transforms import Normalizer


@dataclass(frozen=True)
class Metrics:
    """Result of an evaluation."""

    top1: float
    """Per cent."""
    top5: float
    """Per cent; 100 with five classes or fewer."""
    loss: float
    """Mean cross-entropy, without label smoothing."""
    images: int
    unreadable: tuple[str, ...] = ()
    """Images of this process's share that could not be read and are not in the numbers."""


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    normalizer: Normalizer,
    world: World,
    *,
    autocast: contextlib.AbstractContextManager | None = None,
    channels_last: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> Metrics:
    """Evaluate ``model``, in evaluation mode, over this process's ``batches`` and sum over the processes.

    Args:
        model: A plain module, not wrapped for distribution: shares may differ in length.
        batches: This process's share.
        normalizer: Of the images.
        world: All processes; every one must call.
        autocast: Context of the forward pass.
        channels_last: Memory format of the images.
        after_batch: Called after each batch.

    Raises:
        InputError: No image could be read.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64, device="cpu" if world.device.type == "mps" else world.device)
    unreadable: list[str] = []
    for batch in batches:
        unreadable += batch.unreadable
        if not len(batch.labels):
            continue
        images = normalizer(batch.images)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        labels = batch.labels.to(world.device, non_blocking=True)
        with autocast or contextlib.nullcontext():
            logits = model(images)
        logits = logits.float()
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([hits[:, 0].sum(), hits.sum(), loss, loss.new_tensor(len(labels))]).to(totals)
        after_batch()
    model.train(was_training)
    first, top5, loss_sum, count = world.sum(totals).tolist()
    if not count:
        raise InputError("the test set has no image that can be read")
    return Metrics(100 * first / count, 100 * top5 / count, loss_sum / count, int(count), tuple(unreadable))
