"""WebDataset shards through timm's reader: order and augmentation repeatable, so that a run resumes at any step."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from edge_sk.errors import InputError, require
from edge_sk.training.data import Batch, Sample, collate, start_worker
from edge_sk.training.randomness import derive_seed, seed_sample
from edge_sk.training.recipe import DataRecipe, Recipe
from edge_sk.training.sampler import part_size
from edge_sk.training.sources import Split, quiet_readers
from edge_sk.training.transforms import Transform, evaluation_transform, training_transform


class ShardFeed:
    """``wds/FOLDER``: tar shards described by the folder's ``_info.json`` or by the recipe's splits.

    Every process and loader worker reads its own shards, so an epoch of several processes is whole only if
    their shards hold equally many images; timm's reader repeats images of the shorter ones, as is usual for shards.
    A run resumed within an epoch reads past the images it has seen, at the speed of decoding.
    """

    def __init__(
        self, data: str, recipe: Recipe, form: Any, *, seed: int, workers: int, rank: int, world_size: int
    ) -> None:
        options = recipe.data
        self.classes: list[str] | None = None
        if options.num_classes is None:
            raise InputError(f"--data {data} does not say how many classes it has: --set data.num_classes=N")
        self.num_classes = options.num_classes
        self.train_images = count_images(data, "train", options)
        if options.batch_size > self.train_images:
            raise InputError(
                f"the training set has {self.train_images} images, fewer than one batch of "
                f"data.batch_size={options.batch_size}"
            )
        self.steps_per_epoch = self.train_images // options.batch_size
        self._data, self._recipe, self._form, self._seed = data, recipe, form, seed
        self._workers, self._rank, self._world_size = workers, rank, world_size
        self._part = part_size(options.batch_size, world_size=world_size, accumulation=options.accumulation)

    def training(self, epoch: int, step: int) -> Iterator[Batch]:
        """See ``Feed``."""
        recipe, form = self._recipe, self._form
        stream = _Stream(
            self._data,
            "train",
            recipe.data,
            training_transform(recipe.augment, form.input_size, form.interpolation),
            training=True,
            batch_size=self._part,
            seed=self._seed,
            epoch=epoch,
            skip_batches=step * recipe.data.accumulation,
            rank=self._rank,
            world_size=self._world_size,
        )
        loader = _loader(stream, batch_size=self._part, workers=self._workers, seed=(self._seed, epoch), drop_last=True)
        wanted = (self.steps_per_epoch - step) * recipe.data.accumulation
        return itertools.islice(iter(loader), wanted)

    def test(self) -> Iterable[Batch]:
        """See ``Feed``."""
        return evaluation_batches(
            self._data,
            "test",
            self._recipe.data,
            evaluation_transform(self._form.input_size, self._form.crop_pct, self._form.interpolation),
            batch_size=self._recipe.data.eval_batch_size,
            workers=self._workers,
            rank=self._rank,
            world_size=self._world_size,
        )


def evaluation_batches(
    data: str,
    split: Split,
    options: DataRecipe,
    transform: Transform,
    *,
    batch_size: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterable[Batch]:
    """This process's share of a split's shards, in order; every image exactly once over all processes and workers."""
    stream = _Stream(
        data,
        split,
        options,
        transform,
        training=False,
        batch_size=batch_size,
        seed=0,
        epoch=0,
        skip_batches=0,
        rank=rank,
        world_size=world_size,
    )
    return _loader(stream, batch_size=batch_size, workers=workers, seed=(0, 0), drop_last=False)


def count_images(data: str, split: Split, options: DataRecipe) -> int:
    """Images of a split, as its description says.

    Raises:
        InputError: No such folder or split, or no count.
    """
    images = _open_reader(data, split, options).num_samples
    if not images:
        raise InputError(f"{_name(split, options)!r} of --data {data} has no count: write it as SHARDS.tar|IMAGES")
    return images


class _Stream(IterableDataset):
    """One epoch of this process's part of a split, transformed."""

    def __init__(
        self,
        data: str,
        split: Split,
        options: DataRecipe,
        transform: Transform,
        *,
        training: bool,
        batch_size: int,
        seed: int,
        epoch: int,
        skip_batches: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._data, self._options = data, options
        self._split: Split = split
        self._training = training
        self._transform, self._batch_size = transform, batch_size
        self._seed, self._epoch, self._skip_batches = seed, epoch, skip_batches
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        # A fresh reader: an epoch depends on its number, not on the epochs read before it.
        reader = _open_reader(
            self._data,
            self._split,
            self._options,
            training=self._training,
            batch_size=self._batch_size,
            seed=derive_seed(self._seed, "shards", self._epoch) % 2**31,
            rank=self._rank,
            world_size=self._world_size,
        )
        reader.set_loader_cfg(num_workers=workers)
        # The loader takes batches from its workers in turn.
        done = self._skip_batches * self._batch_size
        skipped_here = len(range(worker, self._skip_batches, workers)) * self._batch_size if done else 0
        with _collect_warnings() as warnings:
            for position, (image, label) in enumerate(reader):
                if position < skipped_here:
                    continue
                if self._training:
                    seed_sample(self._seed, "augment", self._epoch, self._rank, worker, position)
                unreadable = tuple(warnings)
                warnings.clear()
                yield Sample(self._transform(image), int(label), unreadable)
            if warnings:
                yield Sample(None, -1, tuple(warnings))


def _loader(stream: _Stream, *, batch_size: int, workers: int, seed: tuple[int, int], drop_last: bool) -> Any:
    return DataLoader(
        stream,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=start_worker,
        drop_last=drop_last,
        # The workers' seeds, which order the images, come from this generator.
        generator=torch.Generator().manual_seed(derive_seed(*seed, "loader")),
    )


@contextlib.contextmanager
def _collect_warnings() -> Iterator[list[str]]:
    """Catch what timm's reader logs about the images that it skips."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = sys.exc_info()[1]
            messages.append(f"{_sample_at_fault(error)} ({error or record.getMessage()})")

    logger = logging.getLogger("timm.data.readers.reader_wds")
    handler = Collector()
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _sample_at_fault(error: BaseException | None) -> str:
    """Shard and key of the sample: webdataset's exception has neither, the loop that it passed through has both."""
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        sample = trace.tb_frame.f_locals.get("sample")
        if isinstance(sample, dict) and "__key__" in sample:
            return f"{sample.get('__url__', '?')}:{sample['__key__']}"
        trace = trace.tb_next
    return "an image of the shards"


def _name(split: Split, options: DataRecipe) -> str:
    if split == "train":
        return options.train_split or "train"
    return options.val_split or "validation"


def _open_reader(
    data: str,
    split: Split,
    options: DataRecipe,
    *,
    training: bool = False,
    batch_size: int = 1,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Any:
    require("webdataset", extra="train", needed_for=f"--data {data}")
    from timm.data.readers.reader_wds import ReaderWds

    root = Path(data.removeprefix("wds/"))
    if not root.is_dir():
        raise InputError(f"--data {data}: {root} is not a folder with WebDataset shards")
    name = _name(split, options)

    def read(name: str) -> Any:
        with quiet_readers():
            return ReaderWds(
                str(root),
                split=name,
                is_training=training,
                batch_size=batch_size,
                seed=seed,
                input_key=options.image_key or "jpg;png;webp",
                target_key=options.label_key,
            )

    try:
        reader = read(name)
    except (RuntimeError, KeyError, ValueError, TypeError, json.JSONDecodeError) as error:
        raise InputError(
            f"--data {data} has no split {name!r} ({error}); describe it in {root}/_info.json or set data.train_split "
            'and data.val_split, for example "train-{0000..0009}.tar|10000"'
        ) from None
    shards = list(reader.split_info.filenames)
    missing = [shard for shard in shards if not os.path.exists(root / shard)]
    if missing:
        raise InputError(
            f"--data {data}: {len(missing)} of {len(shards)} shards are missing, the first is {root / missing[0]}"
        )
    if training:
        reader.dist_rank, reader.dist_num_replicas = rank, world_size
    else:
        # timm's sharded evaluation pads with repeated images; whole shards are dealt out here instead.
        reader.dist_rank, reader.dist_num_replicas = 0, 1
        reader.split_info.filenames = tuple(shards[rank::world_size])
    return reader
