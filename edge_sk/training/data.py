"""From images to batches: reading, augmenting and batching, repeatably and from any step on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edge_sk.errors import InputError
from edge_sk.training.digits import digits
from edge_sk.training.randomness import derive_seed, seed_sample
from edge_sk.training.recipe import DataRecipe
from edge_sk.training.sampler import Key, ShardSampler, StepSampler
from edge_sk.training.sources import DECODE_ERRORS, Source, open_source
from edge_sk.training.transforms import Transform, evaluation_transform

__all__ = ["Batch", "Samples", "digits", "eval_batches", "evaluation_loader", "training_loader"]


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
        """For the loader: page-locked copies, which transfer asynchronously."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.unreadable)


@dataclass(frozen=True)
class Sample:
    """One item of a batch to be."""

    image: Tensor | None
    label: int
    unreadable: tuple[str, ...] = ()


class Samples(Dataset[Sample]):
    """A source's images transformed; what is random depends on seed, epoch and index alone.

    Args:
        source: The images.
        transform: Image to uint8 tensor.
        seed: Given for training: the transform is random, and an unreadable image is replaced by the next
            readable one, so that batches stay whole. ``None`` for evaluation: an unreadable one is left out.
    """

    def __init__(self, source: Source, transform: Transform, *, seed: int | None = None) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        unreadable: list[str] = []
        for offset in range(len(self.source)):
            candidate = (index + offset) % len(self.source)
            try:
                image, label = self.source.load(candidate)
                if self.seed is not None:
                    seed_sample(self.seed, "augment", epoch, index)
                return Sample(self.transform(image), label, tuple(unreadable))
            except DECODE_ERRORS as error:
                unreadable.append(f"{self.source.name(candidate)} ({str(error) or type(error).__name__})")
            if self.seed is None or len(unreadable) > MAX_NEIGHBOURS:
                break
        return Sample(None, -1, tuple(unreadable))


# So many unreadable images in a row are a broken data set, not a damaged file.
MAX_NEIGHBOURS = 100


def collate(samples: list[Sample]) -> Batch:
    """Stack what could be read, collect the names of what could not."""
    images = [sample.image for sample in samples if sample.image is not None]
    return Batch(
        images=torch.stack(images) if images else torch.empty(0, dtype=torch.uint8),
        labels=torch.tensor([sample.label for sample in samples if sample.image is not None], dtype=torch.int64),
        unreadable=tuple(name for sample in samples for name in sample.unreadable),
    )


def start_worker(_: int) -> None:
    """Leave signals to the main process (``worker_init_fn`` of every loader)."""
    # The signals that stop a run are for the main process, which still needs batches to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def training_loader(samples: Samples, sampler: StepSampler, *, workers: int, pin_memory: bool = False) -> Any:
    """Batches of ``sampler``, read ahead by ``workers`` processes (0: in this process)."""
    return DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=start_worker,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        # Its own generator: the loader draws from the global one otherwise.
        generator=torch.Generator().manual_seed(derive_seed("loader")),
    )


def evaluation_loader(
    samples: Samples,
    *,
    batch_size: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
) -> Any:
    """This process's share of the images, in order, none twice."""
    return DataLoader(
        samples,
        batch_size=batch_size,
        sampler=ShardSampler(samples, rank=rank, world_size=world_size, limit=limit),
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=start_worker,
        generator=torch.Generator().manual_seed(derive_seed("loader")),
    )


def eval_batches(
    config: Any,
    *,
    data: str = "digits",
    split: Literal["train", "test"] = "test",
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
        data: As ``--data``: ``digits``, a folder, ``torch/NAME``, ``hfds/NAME``, ``wds/FOLDER``.
        split: ``test`` is a folder's ``val``.
        limit: At most so many images, spread evenly over the data set; of shards, which are written shuffled, the
            first ones.
        batch_size: Images per batch; the last may be smaller.
        workers: Loader processes.
        options: The recipe's ``data`` section, for the data sets that need more than a name.
        expected_classes: A network's, which the data set's must equal; ``None`` when they are not known.

    Yields:
        Images, float32 RGB in [0, 1], ``(N, C, H, W)``; labels, int64 ``(N,)``.

    Raises:
        InputError: The data set cannot be opened, has other classes, or an image of it cannot be read.
    """
    cfg: dict[str, Any] = config if isinstance(config, dict) else config.model_dump()
    transform = evaluation_transform(
        tuple(cfg["input_size"]), cfg.get("crop_pct") or 0.875, cfg.get("interpolation") or "bilinear"
    )
    options = options or DataRecipe()
    batches: Iterable[Batch]
    if data.startswith("wds/"):
        from edge_sk.training.streaming import evaluation_batches

        batches = evaluation_batches(data, split, options, transform, batch_size=batch_size, workers=workers)
    else:
        samples = Samples(open_source(data, split, options, expected_classes=expected_classes), transform)
        batches = evaluation_loader(samples, batch_size=batch_size, workers=workers, limit=limit)
    left = sys.maxsize if limit is None else limit
    for batch in batches:
        if batch.unreadable:
            raise InputError(f"cannot read {batch.unreadable[0]}; repair or remove it")
        yield batch.images[:left].float() / 255, batch.labels[:left]
        left -= len(batch.labels)
        if left <= 0:
            return
