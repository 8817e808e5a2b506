"""Which images a process reads, as a pure function of seed, epoch and step: nothing to save, nothing to lose."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
from torch.utils.data import Sampler

from edge_sk.errors import InputError
from edge_sk.training.randomness import derive_seed

# The epoch travels with the index because the augmentation of a sample is seeded by both.
Key = tuple[int, int]


class StepSampler(Sampler[list[Key]]):
    """Shuffled batches of one epoch from any step on, this process's part of each global batch.

    Position ``p`` of a global batch belongs to part ``p // (B / A)`` (A accumulated parts) and within it to
    process ``p % (B / A) // (B / A / W)`` (W processes): every step sees the same images whatever A and W are.
    The images left over after the last whole batch are dropped; the next epoch's shuffle brings them back.

    Args:
        images: Size of the data set.
        batch_size: Global batch B.
        rank: This process.
        world_size: W.
        accumulation: A.
        seed: The run's seed.

    Raises:
        InputError: B does not divide into A * W parts, or is larger than the data set.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        seed: int = 0,
    ) -> None:
        self.part_size = part_size(batch_size, world_size=world_size, accumulation=accumulation)
        if batch_size > images:
            raise InputError(
                f"the training set has {images} images, fewer than one batch of data.batch_size={batch_size}; "
                f"set data.batch_size to at most {images}"
            )
        self._images, self._batch_size, self._seed = images, batch_size, seed
        self._rank, self._world_size = rank, world_size
        self.steps_per_epoch = images // batch_size
        self.epoch, self.start_step = 0, 0

    def set_position(self, epoch: int, step: int) -> None:
        """Make the next iteration start at ``step`` of ``epoch``."""
        self.epoch, self.start_step = epoch, step

    def __len__(self) -> int:
        parts = self._batch_size // (self.part_size * self._world_size)
        return (self.steps_per_epoch - self.start_step) * parts

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", self.epoch))
        order = torch.randperm(self._images, generator=generator)
        first = self.start_step * self._batch_size + self._rank * self.part_size
        last = self.steps_per_epoch * self._batch_size
        epoch = self.epoch
        for position in range(first, last, self.part_size * self._world_size):
            yield [(epoch, index) for index in order[position : position + self.part_size].tolist()]


def part_size(batch_size: int, *, world_size: int, accumulation: int) -> int:
    """Images per forward pass of one process.

    Raises:
        InputError: The global batch does not divide into equal parts.
    """
    parts = world_size * accumulation
    if batch_size % parts:
        raise InputError(
            f"data.batch_size={batch_size} is the batch of all processes together and does not divide into "
            f"{world_size} processes x {accumulation} accumulated parts; "
            f"try {max(parts, batch_size // parts * parts)}"
        )
    return batch_size // parts


class ShardSampler(Sampler[Key]):
    """Every ``world_size``-th image from ``rank`` on: no padding, so no image is counted twice.

    ``limit`` images are spread evenly over the data set: folders are read class by class, and the first images would
    all be of one class.
    """

    def __init__(self, source: Sized, *, rank: int = 0, world_size: int = 1, limit: int | None = None) -> None:
        total = len(source)
        chosen = total if limit is None else min(limit, total)
        self._indices = [total * position // chosen for position in range(rank, chosen, world_size)]

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Key]:
        return ((0, index) for index in self._indices)
