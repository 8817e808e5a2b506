"""WebDataset's tar files through timm's reader, in an order that can be repeated: a run resumes at any step."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from edge_sk.errors import InputError, require
from edge_sk.training.batches import Batch, Sample, Shard, make_loader, part_size, steps_per_epoch
from edge_sk.training.randomness import derive_seed, seed_sample
from edge_sk.training.recipe import DataRecipe
from edge_sk.training.sources import Split
from edge_sk.training.transforms import Transform


class Streamed:
    """One split of ``wds/FOLDER``: tar files named by the folder's ``_info.json`` or by the recipe's splits.

    Every process and loader worker reads its own tar files, so an epoch of several processes is whole only if their
    files hold equally many images; timm's reader repeats images of the shorter ones, as is usual. A run resumed
    within an epoch reads past the images it has seen, at the speed of decoding. An ``InputError`` says which folder,
    split or tar file is not there.
    """

    classes: list[str] | None = None

    def __init__(self, data: str, split: Split, options: DataRecipe) -> None:
        require("webdataset", extra="train", needed_for=f"--data {data}")
        self._data, self._options = data, options
        self._root = Path(data.removeprefix("wds/"))
        if not self._root.is_dir():
            raise InputError(f"--data {data}: {self._root} is not a folder with WebDataset shards")
        self._split = (options.train_split or "train") if split == "train" else (options.val_split or "validation")
        reader = self.read()
        self._images: int = reader.num_samples
        names = list(reader.split_info.filenames)
        missing = [name for name in names if not (self._root / name).exists()]
        if missing:
            first = self._root / missing[0]
            raise InputError(f"--data {data}: {len(missing)} of {len(names)} shards are missing, the first is {first}")

    def __len__(self) -> int:
        """Images of the split; an ``InputError`` where its description does not say."""
        if not self._images:
            raise InputError(f"{self._split!r} of --data {self._data} has no count: write it as SHARDS.tar|IMAGES")
        return self._images

    def training(self, transform: Transform, shard: Shard, *, seed: int) -> Callable[[int, int], Iterator[Batch]]:
        """A function from epoch and step to this process's batches from there to the end of the epoch."""
        options = self._options
        part, steps = part_size(options, shard.size), steps_per_epoch(len(self), options.batch_size)

        def batches(epoch: int, step: int) -> Iterator[Batch]:
            skip = step * options.accumulation
            stream = _Stream(self, transform, shard, batch_size=part, seed=seed, epoch=epoch, skip_batches=skip)
            # The workers' seeds, which order the images, come from the loader's.
            loader = make_loader(
                stream, shard, seed=derive_seed(seed, epoch, "loader"), batch_size=part, drop_last=True
            )
            return itertools.islice(loader, steps * options.accumulation - skip)

        return batches

    def test(self, transform: Transform, shard: Shard, *, batch_size: int) -> Iterable[Batch]:
        """This process's tar files in order; every image exactly once over all processes and workers."""
        return make_loader(_Stream(self, transform, shard), shard, batch_size=batch_size)

    def read(self, **options: Any) -> Any:
        """Open timm's reader of the split."""
        from timm.data.readers.reader_wds import ReaderWds

        try:
            with _collect_warnings():
                return ReaderWds(
                    str(self._root),
                    split=self._split,
                    input_key=self._options.image_key or "jpg;png;webp",
                    target_key=self._options.label_key,
                    **options,
                )
        except (RuntimeError, KeyError, ValueError, TypeError, json.JSONDecodeError) as error:
            raise InputError(
                f"--data {self._data} has no split {self._split!r} ({error}); describe it in {self._root}/_info.json "
                'or set data.train_split and data.val_split, for example "train-{0000..0009}.tar|10000"'
            ) from None


@dataclass(frozen=True)
class _Stream(IterableDataset[Sample]):
    """This process's part of a split, transformed; with a seed one epoch of training, from a batch on."""

    split: Streamed
    transform: Transform
    shard: Shard
    batch_size: int = 1
    seed: int | None = None
    epoch: int = 0
    skip_batches: int = 0

    def __iter__(self) -> Iterator[Sample]:
        # A fresh reader: an epoch depends on its number, not on the epochs read before it.
        reader = self._reader()
        worker, workers = 0, 1
        if (info := get_worker_info()) is not None:
            workers = info.num_workers
            # The loader takes batches from its workers in turn, and begins with the first: after a resume it reads in
            # the place of the worker whose turn it is.
            worker = (info.id + self.skip_batches) % workers
            reader.worker_info, reader.worker_seed = info, info.seed - info.id + worker
            reader.global_worker_id = reader.dist_rank * workers + worker
        reader.set_loader_cfg(num_workers=workers)
        skipped_here = len(range(worker, self.skip_batches, workers)) * self.batch_size
        with _collect_warnings() as warnings:
            for position, (image, label) in enumerate(reader):
                if position < skipped_here:
                    continue
                if self.seed is not None:
                    seed_sample(self.seed, "augment", self.epoch, self.shard.rank, worker, position)
                unreadable = tuple(warnings)
                warnings.clear()
                yield Sample(self.transform(image), int(label), unreadable)
            if warnings:
                yield Sample(None, -1, tuple(warnings))

    def _reader(self) -> Any:
        rank, size = self.shard.rank, self.shard.size
        if self.seed is None:
            reader = self.split.read()
            # timm's sharded evaluation pads with repeated images; whole tar files are dealt out here instead.
            reader.dist_rank, reader.dist_num_replicas = 0, 1
            reader.split_info.filenames = tuple(reader.split_info.filenames[rank::size])
        else:
            seed = derive_seed(self.seed, "shards", self.epoch) % 2**31
            reader = self.split.read(is_training=True, batch_size=self.batch_size, seed=seed)
            reader.dist_rank, reader.dist_num_replicas = rank, size
        return reader


@contextlib.contextmanager
def _collect_warnings() -> Iterator[list[str]]:
    """Catch what timm's reader logs: of a folder what is reported as an error, then the images that it skips."""
    messages: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        error = sys.exc_info()[1]
        # Without the addresses of objects: a message names an image, and the next epoch must give it the same name.
        reason = re.sub(r" <[^<>]* at 0x[0-9a-f]+>", "", str(error or record.getMessage()))
        messages.append(f"{_sample_at_fault(error)} ({reason})")
        return False

    logger = logging.getLogger("timm.data.readers.reader_wds")
    logger.addFilter(collect)
    try:
        yield messages
    finally:
        logger.removeFilter(collect)


def _sample_at_fault(error: BaseException | None) -> str:
    """Tar file and key of the sample: webdataset's exception has neither, the loop that it passed through has both."""
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        sample = trace.tb_frame.f_locals.get("sample")
        if isinstance(sample, dict) and "__key__" in sample:
            return f"{sample.get('__url__', '?')}:{sample['__key__']}"
        trace = trace.tb_next
    return "an image of the shards"
