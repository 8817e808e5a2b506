"""Measure top-1, top-5 and loss over a labelled set; several processes share it and count no image twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from edge_sk.errors import InputError
from edge_sk.running import evaluating
from edge_sk.training.data import Batch
from edge_sk.training.distributed import World
from edge_sk.training.transforms import Normalizer


@dataclass(frozen=True)
class Metrics:
    """Result of an evaluation."""

    top1: float  # per cent
    top5: float  # per cent; 100 with five classes or fewer
    loss: float  # mean cross-entropy, without label smoothing
    images: int
    unreadable: tuple[str, ...] = ()  # images of this process's share, which are not in the numbers


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context of a forward pass in ``fp32``, ``bf16`` or ``fp16``."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    normalizer: Normalizer,
    world: World,
    precision: str = "fp32",
    after_batch: Callable[[], None] = lambda: None,
) -> Metrics:
    """Evaluate ``model``, in evaluation mode, over this process's ``batches`` and sum over the processes.

    Every process must call it, with a module that is not wrapped for distribution: shares may differ in length. An
    ``InputError`` where no image could be read.
    """
    totals = torch.zeros(4, dtype=torch.float64, device="cpu" if world.device.type == "mps" else world.device)
    unreadable: list[str] = []
    with evaluating(model):
        for batch in batches:
            unreadable += batch.unreadable
            if not len(batch.labels):
                continue
            labels = batch.labels.to(world.device, non_blocking=True)
            with autocast(world.device, precision):
                logits = model(normalizer(batch.images)).float()
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            first = logits.argmax(1) == labels  # of int8's equal scores, topk takes any
            totals += torch.stack([first.sum(), hits.sum(), loss, loss.new_tensor(len(labels))]).to(totals)
            after_batch()
    top1, top5, loss_sum, count = world.sum(totals).tolist()
    if not count:
        raise InputError("the test set has no image that can be read")
    return Metrics(100 * top1 / count, 100 * top5 / count, loss_sum / count, int(count), tuple(unreadable))
