"""Top-1, top-5 and loss over a labelled set, sharded over the processes, no image counted twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_sk.errors import InputError
from edge_sk.training.data import Batch
from edge_sk.training.distributed import World


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


class Normalizer:
    """Turns uint8 images into the network's input, ``(x / 255 - mean) / std``, on the device."""

    def __init__(self, mean: Iterable[float], std: Iterable[float], device: torch.device) -> None:
        self._mean = 255 * torch.tensor(list(mean), device=device).view(1, -1, 1, 1)
        self._std = 255 * torch.tensor(list(std), device=device).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise a batch ``(N, C, H, W)``."""
        images = images.to(self._mean.device, non_blocking=True)
        return (images.float() - self._mean) / self._std


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    normalizer: Normalizer,
    world: World,
    *,
    autocast: contextlib.AbstractContextManager | None = None,
    channels_last: bool = False,
    after_batch: Callable[[int], None] = lambda images: None,
) -> Metrics:
    """Evaluate ``model``, in evaluation mode, over this process's ``batches`` and sum over the processes.

    Args:
        model: A plain module, not wrapped for distribution: shares may differ in length.
        batches: This process's share.
        normalizer: Of the images.
        world: All processes; every one must call.
        autocast: Context of the forward pass.
        channels_last: Memory format of the images.
        after_batch: Called with the number of images after each batch.

    Raises:
        InputError: No image could be read.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64, device="cpu" if world.device.type == "mps" else world.device)
    unreadable: list[str] = []
    for batch in batches:
        unreadable.extend(batch.unreadable)
        if not len(batch.labels):
            continue
        images = normalizer(batch.images)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        labels = batch.labels.to(world.device, non_blocking=True)
        with autocast or contextlib.nullcontext():
            logits = model(images)
        logits = logits.float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = ranked == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums = [hits[:, 0].sum(), hits.sum(), loss, torch.tensor(len(labels), device=loss.device)]
        totals += torch.stack(
            [value.to(torch.float64 if loss.device.type != "mps" else torch.float32) for value in sums]
        ).to(totals)
        after_batch(len(labels))
    model.train(was_training)
    first, top5, loss_sum, count = world.sum(totals).tolist()
    if not count:
        raise InputError("the test set has no image that can be read")
    return Metrics(
        top1=100 * first / count,
        top5=100 * top5 / count,
        loss=loss_sum / count,
        images=int(count),
        unreadable=tuple(unreadable),
    )
