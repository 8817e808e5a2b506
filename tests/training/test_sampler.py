from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from edge_sk.errors import InputError
from edge_sk.training.data import StepSampler, eval_batches, share
from edge_sk.training.recipe import DataRecipe
from edge_sk.training.sources import Shard


def steps(world_size: int, accumulation: int, *, epoch: int = 0, start: int = 0, seed: int = 0) -> list[list[int]]:
    """Images of each global step, parts and processes in order."""
    data = DataRecipe(batch_size=12, accumulation=accumulation)
    samplers = [StepSampler(103, data, Shard(rank, world_size), seed=seed) for rank in range(world_size)]
    for sampler in samplers:
        sampler.epoch, sampler.start_step = epoch, start
    parts = [list(sampler) for sampler in samplers]
    images = [[index for rank in range(world_size) for _, index in parts[rank][i]] for i in range(len(parts[0]))]
    return [list(itertools.chain(*images[i : i + accumulation])) for i in range(0, len(images), accumulation)]


def test_an_epoch_sees_every_image_at_most_once_in_whole_batches() -> None:
    epoch = steps(1, 1)
    assert [len(step) for step in epoch] == [12] * 8
    seen = list(itertools.chain(*epoch))
    assert len(set(seen)) == len(seen) == 96


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 3), (2, 3), (4, 1)])
def test_a_step_sees_the_same_images_however_it_is_divided(world_size: int, accumulation: int) -> None:
    assert steps(world_size, accumulation) == steps(1, 1)


@pytest.mark.parametrize("start", [0, 1, 5, 8])
def test_starting_at_a_step_is_the_rest_of_the_epoch(start: int) -> None:
    assert steps(2, 2, epoch=3, start=start) == steps(2, 2, epoch=3)[start:]


def test_epochs_and_seeds_shuffle_differently() -> None:
    assert steps(1, 1) != steps(1, 1, epoch=1)
    assert steps(1, 1) != steps(1, 1, seed=1)


def test_a_batch_that_does_not_divide_or_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"data.batch_size=10 .* 2 processes x 3 accumulated parts; try 6"):
        StepSampler(100, DataRecipe(batch_size=10, accumulation=3), Shard(size=2))
    with pytest.raises(InputError, match=r"has 9 images, fewer than one batch of data\.batch_size=10"):
        StepSampler(9, DataRecipe(batch_size=10), Shard())


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_counts_no_image_twice_and_misses_none(world_size: int) -> None:
    shares = [share(10, Shard(rank, world_size)) for rank in range(world_size)]
    assert sorted(itertools.chain(*shares)) == list(range(10))


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize(("limit", "expected"), [(4, [0, 2, 5, 7]), (10, [*range(10)]), (99, [*range(10)]), (0, [])])
def test_a_limit_is_spread_over_the_data_set(world_size: int, limit: int, expected: list[int]) -> None:
    shares = [share(10, Shard(rank, world_size), limit=limit) for rank in range(world_size)]
    assert sorted(itertools.chain(*shares)) == expected


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_few_images_of_a_folder_are_of_every_class(tmp_path: Path, split: Literal["train", "test"]) -> None:
    for folder, name in itertools.product(("train", "val"), ("ant", "bee", "cat")):
        place = tmp_path / folder / name
        place.mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (8, 8)).save(place / f"{number}.png")
    form = {"input_size": (3, 8, 8)}
    (batch,) = eval_batches(form, data=str(tmp_path), split=split, limit=6)
    assert batch[1].tolist() == [0, 0, 1, 1, 2, 2]
