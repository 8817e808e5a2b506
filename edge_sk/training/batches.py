"""The part of a data set that a process reads, and the loader that makes batches of it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edge_sk.errors import InputError
from edge_sk.training.recipe import DataRecipe


@dataclass(frozen=True)
class Shard:
    """The part of a data set that one process of several reads, and how it reads."""

    rank: int = 0
    size: int = 1  # processes
    workers: int = 0  # loader processes; 0: the process reads itself
    pin_memory: bool = False  # page-locked batches, which go to a GPU faster


class Sample(NamedTuple):
    """One image for a batch; ``None`` where no image could be read."""

    image: Tensor | None
    label: int
    unreadable: tuple[str, ...] = ()


class Batch(NamedTuple):
    """Images as they come from the loader."""

    images: Tensor  # uint8, (N, C, H, W)
    labels: Tensor  # int64, (N,)
    unreadable: list[str]  # names of the images that could not be read


def make_loader(dataset: Dataset[Sample], shard: Shard, **options: Any) -> Any:
    """A ``DataLoader`` of a process's batches."""
    return DataLoader(
        dataset,
        num_workers=shard.workers,
        pin_memory=shard.pin_memory,
        collate_fn=_collate,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # without one, the loader draws from the global generator
        **options,
    )


def _collate(samples: list[Sample]) -> Batch:
    images = [sample.image for sample in samples if sample.image is not None]
    return Batch(
        torch.stack(images) if images else torch.empty(0, dtype=torch.uint8),
        torch.tensor([sample.label for sample in samples if sample.image is not None], dtype=torch.int64),
        [name for sample in samples for name in sample.unreadable],
    )


def _ignore_interrupts(_: int) -> None:
    # The signals that stop a run are for the main process, which still needs batches to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches in a training set; an ``InputError`` where it has none."""
    if batch_size > images:
        raise InputError(
            f"the training set has {images} images, fewer than one batch of data.batch_size={batch_size}; "
            f"set data.batch_size to at most {images}"
        )
    return images // batch_size


def part_size(data: DataRecipe, processes: int) -> int:
    """Images per forward pass of one process; an ``InputError`` where the batch does not divide into equal parts."""
    parts = processes * data.accumulation
    if data.batch_size % parts:
        raise InputError(
            f"data.batch_size={data.batch_size} is the batch of all processes together and does not divide into "
            f"{processes} processes x {data.accumulation} accumulated parts; "
            f"try {max(parts, data.batch_size // parts * parts)}"
        )
    return data.batch_size // parts
