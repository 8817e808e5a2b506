"""A data set as training wants it: batches of an epoch from a step on, and the test images once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from edge_sk.errors import InputError
from edge_sk.training.data import Batch, Samples, evaluation_loader, training_loader
from edge_sk.training.recipe import DataRecipe, Recipe
from edge_sk.training.sampler import StepSampler
from edge_sk.training.sources import KNOWN_CLASSES, KNOWN_SIZES, is_embedded, open_source
from edge_sk.training.transforms import evaluation_transform, training_transform


@dataclass(frozen=True)
class Format:
    """How images are to be given to the network."""

    input_size: tuple[int, int, int]
    crop_pct: float
    interpolation: str


class Feed(Protocol):
    """Training and test batches of one data set, for one process of several."""

    train_images: int
    classes: list[str] | None
    num_classes: int
    steps_per_epoch: int

    def training(self, epoch: int, step: int) -> Iterator[Batch]:
        """This process's parts of the batches of ``epoch``, from ``step`` on; ``accumulation`` parts a step."""
        ...

    def test(self) -> Iterable[Batch]:
        """This process's share of the test images."""
        ...


class ImageFeed:
    """A data set with random access."""

    def __init__(
        self,
        data: str,
        recipe: Recipe,
        form: Format,
        *,
        seed: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        train = open_source(data, "train", recipe.data)
        self.train_images, self.classes = len(train), train.classes
        self.num_classes = count_classes(data, train.classes, recipe.data)
        self._sampler = StepSampler(
            self.train_images,
            recipe.data.batch_size,
            rank=rank,
            world_size=world_size,
            accumulation=recipe.data.accumulation,
            seed=seed,
        )
        self.steps_per_epoch = self._sampler.steps_per_epoch
        transform = training_transform(recipe.augment, form.input_size, form.interpolation)
        self._training = training_loader(
            Samples(train, transform, seed=seed), self._sampler, workers=workers, pin_memory=pin_memory
        )
        self._test = open_test(
            data,
            recipe.data,
            form,
            expected_classes=train.classes,
            batch_size=recipe.data.eval_batch_size,
            workers=workers,
            rank=rank,
            world_size=world_size,
        )

    def training(self, epoch: int, step: int) -> Iterator[Batch]:
        """See ``Feed``."""
        self._sampler.set_position(epoch, step)
        return iter(self._training)

    def test(self) -> Iterable[Batch]:
        """See ``Feed``."""
        return self._test


def open_feed(
    data: str,
    recipe: Recipe,
    form: Format,
    *,
    seed: int,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Feed:
    """Open ``--data``.

    Args:
        data: ``digits``, a folder, ``torch/NAME``, ``hfds/NAME`` or ``wds/FOLDER``.
        recipe: The recipe.
        form: How the network wants its images.
        seed: The run's seed.
        workers: Loader processes; ``None`` takes one per core up to 8, none for the embedded data sets.
        rank: This process.
        world_size: All processes.
        pin_memory: Page-locked batches, for a GPU.

    Raises:
        InputError: It cannot be opened, is empty, or is smaller than a batch.
    """
    if workers is None:
        workers = default_workers(data, world_size)
    if data.startswith("wds/"):
        from edge_sk.training.streaming import ShardFeed

        return ShardFeed(data, recipe, form, seed=seed, workers=workers, rank=rank, world_size=world_size)
    return ImageFeed(
        data, recipe, form, seed=seed, workers=workers, rank=rank, world_size=world_size, pin_memory=pin_memory
    )


def open_test(
    data: str,
    options: DataRecipe,
    form: Format,
    *,
    expected_classes: list[str] | None,
    batch_size: int,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterable[Batch]:
    """This process's share of the test images, none twice; an unreadable one is named and left out.

    Args:
        data: As for ``open_feed``.
        options: The recipe's ``data`` section.
        form: How the network wants its images.
        expected_classes: The network's; ``None`` when it does not know their names.
        batch_size: Images per batch.
        workers: As for ``open_feed``.
        rank: This process.
        world_size: All processes.

    Raises:
        InputError: It cannot be opened, or its classes are not the network's.
    """
    if workers is None:
        workers = default_workers(data, world_size)
    transform = evaluation_transform(form.input_size, form.crop_pct, form.interpolation)
    if data.startswith("wds/"):
        from edge_sk.training.streaming import evaluation_batches

        return evaluation_batches(
            data, "test", options, transform, batch_size=batch_size, workers=workers, rank=rank, world_size=world_size
        )
    source = open_source(data, "test", options, expected_classes=expected_classes)
    return evaluation_loader(
        Samples(source, transform), batch_size=batch_size, workers=workers, rank=rank, world_size=world_size
    )


def default_workers(data: str, world_size: int = 1) -> int:
    """Loader processes per training process when ``--workers`` is not given."""
    return 0 if is_embedded(data) else min(8, max(1, (os.cpu_count() or 1) // world_size))


def describe(data: str, options: DataRecipe) -> tuple[int, int]:
    """Training images and classes of ``--data``, without a download where the data set's definition has them."""
    name = data.removeprefix("torch/").lower()
    if data.startswith("torch/") and name in KNOWN_SIZES:
        return KNOWN_SIZES[name]["train"], options.num_classes or KNOWN_CLASSES[name]
    if data.startswith("wds/"):
        from edge_sk.training.streaming import count_images

        return count_images(data, "train", options), count_classes(data, None, options)
    source = open_source(data, "train", options)
    return len(source), count_classes(data, source.classes, options)


def count_classes(data: str, classes: list[str] | None, options: DataRecipe) -> int:
    """Number of outputs.

    Raises:
        InputError: Neither the data set nor the recipe says it, or they differ.
    """
    if classes is None:
        if options.num_classes is None:
            raise InputError(f"--data {data} does not say how many classes it has: --set data.num_classes=N")
        return options.num_classes
    if options.num_classes is not None and options.num_classes != len(classes):
        raise InputError(f"data.num_classes={options.num_classes}, but --data {data} has {len(classes)} classes")
    return len(classes)
