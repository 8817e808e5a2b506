"""``--data`` opened: batches of an epoch from any step on for training, and the test images once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from edge_sk.errors import InputError
from edge_sk.training.batches import Batch, Sample, Shard, make_loader, part_size, steps_per_epoch
from edge_sk.training.distributed import World
from edge_sk.training.randomness import derive_seed, seed_sample
from edge_sk.training.recipe import DataRecipe
from edge_sk.training.sources import DECODE_ERRORS, KNOWN, Source, Split, is_embedded, open_source
from edge_sk.training.streaming import Streamed
from edge_sk.training.transforms import Transform, evaluation_transform

# So many unreadable images in a row are a broken data set, not a damaged file.
MAX_NEIGHBOURS = 100

# Epoch and index: the augmentation of a sample is seeded by both.
Key = tuple[int, int]


def make_shard(data: str, world: World, workers: int | None = None) -> Shard:
    """The part of ``data`` that this process reads; by default with a worker per core up to 8, embedded data with 0."""
    if workers is None:
        workers = 0 if is_embedded(data) else min(8, max(1, (os.cpu_count() or 1) // world.size))
    return Shard(world.rank, world.size, workers, pin_memory=world.device.type == "cuda")


def open_split(
    data: str, split: Split, options: DataRecipe, *, expected_classes: list[str] | None = None, limit: int | None = None
) -> Indexed | Streamed:
    """Open one split of ``--data``.

    Args:
        data: ``digits``, a folder, ``torch/NAME``, ``hfds/NAME`` or ``wds/FOLDER``.
        split: ``test`` is a folder's ``val``.
        options: The recipe's ``data`` section.
        expected_classes: A network's, which the data set's must equal; ``None`` when they are not known.
        limit: Test on at most so many images, spread evenly over the data set; no limit for ``wds``.

    Raises:
        InputError: It is not there, is empty, cannot be opened, or has other classes; the message says which.
    """
    if data.startswith("wds/"):
        return Streamed(data, split, options)
    source = open_source(data, split, options)
    if expected_classes and source.classes and source.classes != expected_classes:
        here, there = (
            f"{len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for names in (source.classes, expected_classes)
        )
        raise InputError(f"--data {data} has other classes ({here}) than the network ({there})")
    return Indexed(source, options, limit=limit)


def describe(data: str, options: DataRecipe) -> tuple[int, int]:
    """Training images and classes of ``--data``, without a download where the data set's definition has them."""
    name = data.removeprefix("torch/").lower()
    if data.startswith("torch/") and name in KNOWN:
        images, classes = KNOWN[name]
        return images, options.num_classes or classes
    train = open_split(data, "train", options)
    return len(train), count_classes(data, train.classes, options)


def count_classes(data: str, classes: list[str] | None, options: DataRecipe) -> int:
    """Number of classes; an ``InputError`` where the data set's names and the recipe do not tell it, or differ."""
    if classes is None and options.num_classes is None:
        raise InputError(f"--data {data} does not say how many classes it has: --set data.num_classes=N")
    if classes and options.num_classes not in (None, len(classes)):
        raise InputError(f"data.num_classes={options.num_classes}, but --data {data} has {len(classes)} classes")
    return options.num_classes or len(classes or ())


def eval_batches(
    config: Any,
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
        config: A ``RunConfig``, or a mapping such as ``model.default_cfg``: ``input_size`` (C, H, W),
            ``crop_pct`` and ``interpolation`` are read.
        data: And ``split``, ``options``, ``expected_classes``: as for :func:`open_split`.
        split: ``test`` is a folder's ``val``.
        limit: At most so many images, spread evenly over the data set; of tar files, which are written shuffled, the
            first ones.
        batch_size: Images per batch; the last may be smaller.
        workers: Loader processes.
        options: By default those of a recipe that sets none.
        expected_classes: By default any.

    Yields:
        Images, float32 RGB in [0, 1], ``(N, C, H, W)``; labels, int64 ``(N,)``.

    Raises:
        InputError: The data set cannot be opened, has other classes, or an image of it cannot be read.
    """
    cfg: dict[str, Any] = config if isinstance(config, dict) else config.model_dump()
    transform = evaluation_transform(
        tuple(cfg["input_size"]), cfg.get("crop_pct") or 0.875, cfg.get("interpolation") or "bilinear"
    )
    opened = open_split(data, split, options or DataRecipe(), expected_classes=expected_classes, limit=limit)
    missing = sys.maxsize if limit is None else limit
    for images, labels, unreadable in opened.test(transform, Shard(workers=workers), batch_size=batch_size):
        if unreadable:
            raise InputError(f"cannot read {unreadable[0]}; repair or remove it")
        yield images[:missing].float() / 255, labels[:missing]
        missing -= len(labels)
        if missing <= 0:
            return


class Indexed:
    """One split of a data set with random access."""

    def __init__(self, source: Source, options: DataRecipe, *, limit: int | None = None) -> None:
        self.classes = source.classes
        self._source, self._options, self._limit = source, options, limit

    def __len__(self) -> int:
        return len(self._source)

    def training(self, transform: Transform, shard: Shard, *, seed: int) -> Callable[[int, int], Iterator[Batch]]:
        """A function from epoch and step to this process's batches from there to the end of the epoch."""
        sampler = StepSampler(len(self), self._options, shard, seed=seed)
        samples = _Samples(self._source, transform, seed)
        loader = make_loader(samples, shard, batch_sampler=sampler, persistent_workers=shard.workers > 0)

        def batches(epoch: int, step: int) -> Iterator[Batch]:
            sampler.epoch, sampler.start_step = epoch, step
            return iter(loader)

        return batches

    def test(self, transform: Transform, shard: Shard, *, batch_size: int) -> Iterable[Batch]:
        """This process's share of the images, in order, none twice."""
        keys = [(0, index) for index in share(len(self), shard, limit=self._limit)]
        return make_loader(_Samples(self._source, transform), shard, batch_size=batch_size, sampler=keys)


@dataclass(frozen=True)
class _Samples(Dataset[Sample]):
    """A source's images transformed; what is random depends on seed, epoch and index alone.

    With a seed, for training, an unreadable image is replaced by the next readable one, so that batches stay whole;
    without one, for evaluation, it is skipped.
    """

    source: Source
    transform: Transform
    seed: int | None = None

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        unreadable: list[str] = []
        for offset in range(1 if self.seed is None else MAX_NEIGHBOURS + 1):
            candidate = (index + offset) % len(self.source)
            try:
                image, label = self.source.load(candidate)
                if self.seed is not None:
                    seed_sample(self.seed, "augment", epoch, index)
                return Sample(self.transform(image), label, tuple(unreadable))
            except DECODE_ERRORS as error:
                unreadable.append(f"{self.source.name(candidate)} ({str(error) or type(error).__name__})")
        return Sample(None, -1, tuple(unreadable))


class StepSampler(Sampler[list[Key]]):
    """Shuffled batches of one epoch from any step on, this process's part of each: nothing to save, nothing to lose.

    Position ``p`` of a global batch belongs to part ``p // (B / A)`` (A accumulated parts) and within it to
    process ``p % (B / A) // (B / A / W)`` (W processes): every step sees the same images whatever A and W are.
    The images that remain after the last whole batch are dropped; the next epoch's shuffle brings them back.
    """

    def __init__(self, images: int, data: DataRecipe, shard: Shard, *, seed: int = 0) -> None:
        self._part = part_size(data, shard.size)
        self._end = steps_per_epoch(images, data.batch_size) * data.batch_size
        self._images, self._batch_size, self._shard, self._seed = images, data.batch_size, shard, seed
        self.epoch, self.start_step = 0, 0

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = self.epoch, self.start_step * self._batch_size + self._shard.rank * self._part
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
        order = torch.randperm(self._images, generator=generator)
        for position in range(first, self._end, self._part * self._shard.size):
            yield [(epoch, index) for index in order[position : position + self._part].tolist()]


def share(images: int, shard: Shard, *, limit: int | None = None) -> list[int]:
    """The images that a process tests on: no padding, so no image is counted twice.

    ``limit`` images are spread evenly over the data set: folders are read class by class, and the first images would
    all be of one class.
    """
    chosen = images if limit is None else min(limit, images)
    return [images * position // chosen for position in range(shard.rank, chosen, shard.size)]
