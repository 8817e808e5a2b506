"""WebDataset's tar files: any step of an epoch can be gone on from, and a test sees every image once."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import re
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from edge_sk.errors import InputError
from edge_sk.training.data import open_split, ordered_batches, training_batches
from edge_sk.training.recipe import DataRecipe
from edge_sk.training.sources import Shard
from edge_sk.training.transforms import evaluation_transform

TRANSFORM = evaluation_transform((3, 8, 8), 1.0, "bilinear")
# A label is an image's number, so that labels tell images apart.
OPTIONS = DataRecipe(batch_size=4, num_classes=100, train_split="train-{0..3}.tar|40", val_split="val-{0..2}.tar|15")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("webdataset")
    root = tmp_path_factory.mktemp("shards")
    for split, tars, images in (("train", 4, 10), ("val", 3, 5)):
        for number in range(tars):
            with tarfile.open(root / f"{split}-{number}.tar", "w") as tar:
                for label in range(number * images, (number + 1) * images):
                    buffer = io.BytesIO()
                    Image.new("RGB", (8, 8), (label, 0, 0)).save(buffer, "png")
                    damaged = split == "val" and label == 7
                    image = b"no image" if damaged else buffer.getvalue()
                    for extension, content in (("png", image), ("cls", str(label).encode())):
                        info = tarfile.TarInfo(f"{label:04}.{extension}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
    return f"wds/{root}"


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_at_a_step_is_the_rest_of_the_epoch(data: str, workers: int) -> None:
    batches = training_batches(open_split(data, "train", OPTIONS), TRANSFORM, Shard(workers=workers), OPTIONS, seed=0)
    epochs = [[batch.labels.tolist() for batch in batches(epoch, 0)] for epoch in (0, 1)]
    assert [sorted(itertools.chain(*epoch)) for epoch in epochs] == [list(range(40))] * 2
    assert epochs[0] != epochs[1]
    for step in (1, 2, 7):
        assert [batch.labels.tolist() for batch in batches(1, step)] == epochs[1][step:]


def test_workers_outlive_an_epoch(data: str) -> None:
    def process_id(_: Image.Image) -> torch.Tensor:
        return torch.tensor(os.getpid())

    for split in ("train", "test"):
        opened, shard = open_split(data, split, OPTIONS), Shard(workers=2)
        training = training_batches(opened, process_id, shard, OPTIONS, seed=0) if split == "train" else None
        testing = ordered_batches(opened, process_id, shard, batch_size=4)
        epochs = [[*(training(epoch, 0) if training else testing)] for epoch in range(2)]
        first, second = ({int(number) for batch in epoch for number in batch.images} for epoch in epochs)
        assert len(first) == 2
        assert os.getpid() not in first
        assert first == second


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 0)])
def test_a_test_sees_every_readable_image_once(data: str, processes: int, workers: int) -> None:
    split = open_split(data, "test", OPTIONS)
    shards = [Shard(rank, processes, workers) for rank in range(processes)]
    batches = [batch for shard in shards for batch in ordered_batches(split, TRANSFORM, shard, batch_size=4)]
    assert sorted(torch.cat([batch.labels for batch in batches]).tolist()) == [*range(7), *range(8, 15)]
    (name,) = itertools.chain(*(batch.unreadable for batch in batches))
    assert "val-1.tar:0007 (cannot identify image file)" in name


def test_what_is_missing_is_named(data: str, tmp_path: Path) -> None:
    for field, message in (("val-0.tar", "has no count"), ("val-{0..4}.tar|25", "2 of 5 shards are missing")):
        with pytest.raises(InputError, match=message):
            len(open_split(data, "test", OPTIONS.model_copy(update={"val_split": field})))
    with pytest.raises(InputError, match="is not a folder with WebDataset shards"):
        open_split(f"wds/{tmp_path / 'none'}", "train", OPTIONS)


def test_more_workers_than_tar_files_give_every_batch(data: str) -> None:
    one = OPTIONS.model_copy(update={"train_split": "train-3.tar|10"})
    batches = training_batches(open_split(data, "train", one), TRANSFORM, Shard(workers=2), one, seed=0)
    assert [len(batch.labels) for batch in batches(0, 0)] == [4, 4]
    with pytest.raises(InputError, match=r"'train-3.tar.* has 1 shards, fewer than the 2 processes"):
        training_batches(open_split(data, "train", one), TRANSFORM, Shard(size=2), one, seed=0)


def test_damage_is_named_and_the_epoch_stays_whole(data: str, tmp_path: Path) -> None:
    for number in range(4):
        content = (Path(data.removeprefix("wds/")) / f"train-{number}.tar").read_bytes()
        (tmp_path / f"train-{number}.tar").write_bytes(content[:5000] if number == 2 else content)
    split = open_split(f"wds/{tmp_path}", "train", OPTIONS)
    batches = [*training_batches(split, TRANSFORM, Shard(), OPTIONS, seed=0)(0, 0)]
    assert [len(batch.labels) for batch in batches] == [4] * 10
    (name,) = set(itertools.chain(*(batch.unreadable for batch in batches)))
    assert re.match(rf"{tmp_path}/train-2.tar \(.*unexpected end of data", name)
    unlabelled = open_split(f"wds/{tmp_path}", "test", OPTIONS.model_copy(update={"val_split": "train-0.tar|10"}))
    missing = dataclasses.replace(unlabelled, label_key="species")
    (batch,) = ordered_batches(missing, TRANSFORM, Shard(), batch_size=10)
    assert len(batch.labels) == 0
    assert batch.unreadable[0] == f"{tmp_path}/train-0.tar:0000 (no 'json')"
