"""Open ``--data``: for training the batches of an epoch from any step on, for a test every image once."""

from __future__ import annotations

import atexit
import dataclasses
import gc
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from edge_sk.errors import InputError
from edge_sk.training.distributed import World
from edge_sk.training.image_files import DECODE_ERRORS
from edge_sk.training.randomness import derive_seed, seed_sample
from edge_sk.training.recipe import DataRecipe
from edge_sk.training.sources import (
    MAX_DAMAGED,
    Images,
    Part,
    Sample,
    Shard,
    Split,
    is_drawn,
    is_embedded,
    open_images,
    unreadable,
)
from edge_sk.training.streaming import Stream, Tars, open_tars
from edge_sk.training.transforms import Transform, evaluation_transform

Key = tuple[int, int]  # epoch and index, which seed the augmentation of an image
MOST_WORKERS = 256


class Batch(NamedTuple):
    """Images as they come from the loader."""

    images: Tensor  # uint8, (N, C, H, W)
    labels: Tensor  # int64, (N,)
    unreadable: list[str]  # names of the images that could not be read


def make_loader(dataset: Dataset[Sample], shard: Shard, **options: Any) -> Any:
    """A ``DataLoader`` of a process's batches, which keeps its workers from one epoch to the next."""
    # Torch stops workers that persist when their loader is collected. Left to the exit of the process, they are killed,
    # which torch reports as an error.
    atexit.unregister(gc.collect)
    atexit.register(gc.collect)
    return DataLoader(
        dataset,
        num_workers=shard.workers,
        persistent_workers=shard.workers > 0,
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


def make_shard(data: str, world: World, workers: int | None = None) -> Shard:
    """The part of ``data`` that this process reads; by default with up to 8 workers, digits with 0.

    The processes of a node share its cores: together they have a worker per core.
    """
    if workers is None:
        in_memory = is_embedded(data) and not is_drawn(data)
        workers = 0 if in_memory else min(8, max(1, (os.cpu_count() or 1) // world.local_size))
    if not 0 <= workers <= MOST_WORKERS:
        raise InputError(f"--workers {workers} must be from 0 to {MOST_WORKERS} processes")
    return Shard(world.rank, world.size, workers, pin_memory=world.device.type == "cuda")


def open_split(
    data: str,
    split: Split,
    options: DataRecipe,
    *,
    expected_classes: list[str] | None = None,
    indexes: Sequence[Path] = (),
) -> Images | Tars:
    """Open one split of ``--data``; ``test`` is a folder's ``val``.

    ``indexes`` are as for :func:`~edge_sk.training.sources.open_images`. An ``InputError`` where the split is missing
    or empty, cannot be opened, or has other classes than expected.
    """
    if data.startswith("wds/"):
        return open_tars(data, split, options)
    images = open_images(data, split, options, indexes)
    if expected_classes and images.classes and images.classes != expected_classes:
        here, there = (
            f"{len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for names in (images.classes, expected_classes)
        )
        raise InputError(f"--data {data} has other classes ({here}) than the network ({there})")
    return images


def open_both(data: str, options: DataRecipe, *, indexes: Sequence[Path] = ()) -> tuple[Images | Tars, Images | Tars]:
    """The images to train on and those to validate on; errors as in :func:`open_split` and :func:`hold_out`."""
    train = open_split(data, "train", options, indexes=indexes)
    if options.holdout:
        return hold_out(train, options.holdout)
    return train, open_split(data, "test", options, expected_classes=train.classes, indexes=indexes)


def hold_out(train: Images | Tars, share: float) -> tuple[Images, Images]:
    """Split the training images at random into those to train on and a ``share`` to validate on, for every run alike.

    An ``InputError`` where they cannot be read by index, or one of the parts would be empty.
    """
    if not isinstance(train, Images):
        raise InputError(f"data.holdout={share:g} needs images that are read by index; {train.name} is tar files")
    count, generator = round(share * len(train)), torch.Generator().manual_seed(derive_seed("holdout"))
    if not 0 < count < len(train):
        raise InputError(f"data.holdout={share:g} of {len(train)} training images leaves {count} to validate on")
    order = torch.randperm(len(train), generator=generator).tolist()
    held, kept = sorted(order[:count]), sorted(order[count:])
    return Part(train.items, train.classes, kept), Part(train.items, train.classes, held)


def count_classes(data: str, classes: list[str] | None, options: DataRecipe) -> int:
    """Number of classes; an ``InputError`` where neither data set nor recipe gives it, or they differ."""
    if classes is None and options.num_classes is None:
        raise InputError(f"--data {data} does not say how many classes it has: --set data.num_classes=N")
    if classes and options.num_classes not in (None, len(classes)):
        raise InputError(f"data.num_classes={options.num_classes}, but --data {data} has {len(classes)} classes")
    return options.num_classes or len(classes or ())


def eval_batches(
    config: Mapping[str, Any],
    *,
    data: str = "digits",
    split: Split = "test",
    limit: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    options: DataRecipe | None = None,
    expected_classes: list[str] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Real images, preprocessed as evaluation does but not normalised.

    Args:
        config: A ``default_cfg`` or ``config.json``: ``input_size`` (C, H, W), ``crop_pct``, ``interpolation``.
        data: And ``split``, ``options``, ``expected_classes``: as for :func:`open_split`, by default of any classes.
        split: ``test`` is a folder's ``val``.
        limit: At most so many images, spread evenly over the data set; of tar files the first images.
        batch_size: Images per batch; the last may be smaller.
        workers: Loader processes.
        options: By default those of a recipe that sets nothing.
        expected_classes: See ``data``.

    Yields:
        Images, float32 RGB in [0, 1], ``(N, C, H, W)``; labels, int64 ``(N,)``.

    Raises:
        InputError: As for :func:`open_split`, or an image cannot be read.
    """
    transform = evaluation_transform(
        tuple(config["input_size"]), config.get("crop_pct") or 0.875, config.get("interpolation") or "bilinear"
    )
    opened = open_split(data, split, options or DataRecipe(), expected_classes=expected_classes)
    batches = ordered_batches(opened, transform, Shard(workers=workers), batch_size=batch_size, limit=limit)
    missing = sys.maxsize if limit is None else limit
    for images, labels, failed in batches:
        if failed:
            raise InputError(f"cannot read {failed[0]}; repair or remove it")
        yield images[:missing].float() / 255, labels[:missing]
        missing -= len(labels)
        if missing <= 0:
            return


def training_batches(
    split: Images | Tars, transform: Transform, shard: Shard, options: DataRecipe, *, seed: int
) -> Callable[[int, int], Iterator[Batch]]:
    """A function from epoch and step to this process's batches from there to the end of the epoch."""
    if isinstance(split, Images):
        sampler = StepSampler(len(split), options, shard, seed=seed)
        samples = _Samples(split, transform, seed)
        loader = make_loader(samples, shard, batch_sampler=sampler)

        def shuffled(epoch: int, step: int) -> Iterator[Batch]:
            sampler.epoch, sampler.start_step = epoch, step
            return iter(loader)

        return shuffled
    part, steps = part_size(options, shard.size), steps_per_epoch(len(split), options.batch_size)
    if len(split.paths) < shard.size:
        raise InputError(f"{split.name} has {len(split.paths)} shards, fewer than the {shard.size} processes")
    shard = dataclasses.replace(shard, workers=min(shard.workers, len(split.paths) // shard.size))
    position = torch.zeros(2, dtype=torch.int64).share_memory_()
    stream = make_loader(Stream(split, transform, shard, part, seed, position), shard, batch_size=part)

    def streamed(epoch: int, step: int) -> Iterator[Batch]:
        position.copy_(torch.tensor([epoch, step * options.accumulation]))
        return itertools.islice(stream, (steps - step) * options.accumulation)

    return streamed


def ordered_batches(
    split: Images | Tars, transform: Transform, shard: Shard, *, batch_size: int, limit: int | None = None
) -> Iterable[Batch]:
    """This process's share of the images, in order, none twice; of tar files whole files, without a ``limit``."""
    if isinstance(split, Tars):
        return make_loader(Stream(split, transform, shard), shard, batch_size=batch_size)
    keys = [(0, index) for index in share(len(split), shard, limit=limit)]
    return make_loader(_Samples(split, transform), shard, batch_size=batch_size, sampler=keys)


@dataclass(frozen=True)
class _Samples(Dataset[Sample]):
    """Images transformed; what is random depends on seed, epoch and index alone.

    With a seed, for training, the next readable image replaces an unreadable one, so that batches stay whole; without
    a seed, for evaluation, an unreadable image is skipped.
    """

    images: Images
    transform: Transform
    seed: int | None = None

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        failed: list[str] = []
        for offset in range(1 if self.seed is None else MAX_DAMAGED + 1):
            candidate = (index + offset) % len(self.images)
            try:
                image, label = self.images.load(candidate, seed=self.seed or 0, epoch=epoch)
                if self.seed is not None:
                    seed_sample(self.seed, "augment", epoch, index)
                return Sample(self.transform(image), label, tuple(failed))
            except DECODE_ERRORS as error:
                failed.append(unreadable(self.images.name(candidate), error))
        return Sample(None, -1, tuple(failed))


@dataclass
class StepSampler(Sampler[list[Key]]):
    """Shuffled batches of one epoch from any step on; of each batch the part of this process.

    Position ``p`` of a global batch belongs to part ``p // (B / A)`` (A accumulated parts) and within it to
    process ``p % (B / A) // (B / A / W)`` (W processes): every step sees the same images whatever A and W are.
    The images that remain after the last whole batch are dropped; another epoch's shuffle includes them.
    """

    images: int
    data: DataRecipe
    shard: Shard
    seed: int = 0
    epoch: int = 0
    start_step: int = 0

    def __post_init__(self) -> None:
        self._part = part_size(self.data, self.shard.size)
        self._end = steps_per_epoch(self.images, self.data.batch_size) * self.data.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = self.epoch, self.start_step * self.data.batch_size + self.shard.rank * self._part
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        order = torch.randperm(self.images, generator=generator)
        for position in range(first, self._end, self._part * self.shard.size):
            yield [(epoch, index) for index in order[position : position + self._part].tolist()]


def share(images: int, shard: Shard, *, limit: int | None = None) -> list[int]:
    """The images that a process tests on, by index; no padding, so no image is counted twice.

    ``limit`` images are spread evenly over the data set: folders are read class by class, and the first images would
    all be of one class.
    """
    chosen = images if limit is None else min(limit, images)
    return [images * position // chosen for position in range(shard.rank, chosen, shard.size)]
