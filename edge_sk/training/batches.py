"""What a process reads of a data set, and the loader that makes batches of it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edge_sk.errors import InputError
from edge_sk.training.randomness import derive_seed
from edge_sk.training.recipe import DataRecipe


@dataclass(frozen=True)
class Shard:
    """The part of a data set that one process of several reads, and how it reads."""

    rank: int = 0
    size: int = 1
    """Processes."""
    workers: int = 0
    """Loader processes; 0: the process reads itself."""
    pin_memory: bool = False
    """Page-locked batches, which go to a GPU faster."""


@dataclass(frozen=True)
class Sample:
    """One item of a batch to be; without an image where none could be read."""

    image: Tensor | None
    label: int
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Images as they come from the loader."""

    images: Tensor
    """uint8, ``(N, C, H, W)``."""
    labels: Tensor
    """int64, ``(N,)``."""
    unreadable: tuple[str, ...] = ()
    """Names of the images that could not be read."""

    def pin_memory(self) -> Batch:
        """Called by the loader."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.unreadable)


def make_loader(dataset: Dataset[Sample], shard: Shard, *, seed: int | None = None, **options: Any) -> Any:
    """A ``DataLoader`` of batches; ``seed``, from which its workers are seeded, is a constant by default."""
    return DataLoader(
        dataset,
        num_workers=shard.workers,
        pin_memory=shard.pin_memory,
        collate_fn=_collate,
        worker_init_fn=_ignore_interrupts,
        # Its own generator: the loader draws from the global one otherwise.
        generator=torch.Generator().manual_seed(derive_seed("loader") if seed is None else seed),
        **options,
    )


def _collate(samples: list[Sample]) -> Batch:
    images = [sample.image for sample in samples if sample.image is not None]
    return Batch(
        images=torch.stack(images) if images else torch.empty(0, dtype=torch.uint8),
        labels=torch.tensor([sample.label for sample in samples if sample.image is not None], dtype=torch.int64),
        unreadable=tuple(name for sample in samples for name in sample.unreadable),
    )


def _ignore_interrupts(_: int) -> None:
    # The signals that stop a run are for the main process, which still needs batches to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches in the training set.

    Raises:
        InputError: There is none.
    """
    if batch_size > images:
        raise InputError(
            f"the training set has {images} images, fewer than one batch of data.batch_size={batch_size}; "
            f"set data.batch_size to at most {images}"
        )
    return images // batch_size


def part_size(data: DataRecipe, processes: int) -> int:
    """Images per forward pass of one process.

    Raises:
        InputError: The batch does not divide into equal parts.
    """
    parts = processes * data.accumulation
    if data.batch_size % parts:
        raise InputError(
            f"data.batch_size={data.batch_size} is the batch of all processes together and does not divide into "
            f"{processes} processes x {data.accumulation} accumulated parts; "
            f"try {max(parts, data.batch_size // parts * parts)}"
        )
    return data.batch_size // parts
