"""What is drawn depends on seed, epoch and index alone, and the test shows what training has not seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_sk.errors import InputError
from edge_sk.training import glyphs
from edge_sk.training.data import Batch, open_split, training_batches
from edge_sk.training.glyphs import CANVAS, CLASSES, EASY_EPOCHS, EASY_SCALE, SCALES, TYPEFACES, ScaledGlyphs
from edge_sk.training.recipe import AugmentRecipe, DataRecipe
from edge_sk.training.sources import Shard
from edge_sk.training.transforms import training_transform

TRAIN = ScaledGlyphs("train")


def pixels(data: ScaledGlyphs, index: int, **which: int) -> np.ndarray:
    return np.asarray(data.draw(index, **which)[0])


def test_every_epoch_and_seed_has_images_of_its_own_and_the_test_none() -> None:
    first = pixels(TRAIN, 5, seed=1, epoch=2)
    assert first.shape == (CANVAS, CANVAS)
    assert np.array_equal(first, pixels(ScaledGlyphs("train"), 5, seed=1, epoch=2))
    for other in ({"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}):
        assert not np.array_equal(first, pixels(TRAIN, 5, **other))
    assert not np.array_equal(first, pixels(TRAIN, 6, seed=1, epoch=2))
    test = ScaledGlyphs("test")
    assert np.array_equal(pixels(test, 5, seed=1, epoch=2), pixels(test, 5))


def test_the_validation_part_is_neither_seen_in_training_nor_the_test() -> None:
    opened = open_split("scaled_glyphs", "test", DataRecipe(val_split="validation"))
    assert len(opened) == 3_000
    assert opened.load(5, seed=1)[0].tobytes() == ScaledGlyphs("validation").draw(5)[0].tobytes()
    assert not np.array_equal(pixels(ScaledGlyphs("validation"), 5), pixels(ScaledGlyphs("test"), 5))
    with pytest.raises(InputError, match=r"data.val_split=val: scaled_glyphs is tested on test or validation"):
        open_split("scaled_glyphs", "test", DataRecipe(val_split="val"))


def test_typefaces_and_photographs_of_the_test_are_unseen() -> None:
    assert len({face for faces in TYPEFACES.values() for face in faces}) == sum(map(len, TYPEFACES.values()))
    for split, faces in TYPEFACES.items():
        drawn = [ScaledGlyphs(split).glyph(index, epoch=EASY_EPOCHS) for index in range(400)]
        assert {glyph.typeface for glyph in drawn} == {*faces}
        assert min(glyph.scale for glyph in drawn) < 0.2 < 0.8 < max(glyph.scale for glyph in drawn) <= SCALES[1]
        assert abs(np.log([glyph.scale for glyph in drawn]).mean() - np.log(SCALES).mean()) < 0.1  # log-uniform
    for left, right in zip(glyphs._photographs("train"), glyphs._photographs("test"), strict=True):
        assert left.width + right.width == 640


def test_training_begins_with_large_glyphs_on_plain_grey() -> None:
    smallest = [min(TRAIN.glyph(index, epoch=epoch).scale for index in range(200)) for epoch in range(EASY_EPOCHS + 2)]
    assert smallest[0] >= EASY_SCALE > smallest[1] > smallest[EASY_EPOCHS]
    greys = [np.median([len(np.unique(pixels(TRAIN, index, epoch=epoch))) for index in range(20)]) for epoch in (0, 2)]
    assert greys[0] < 100 < greys[1]
    assert ScaledGlyphs("test")._hardness(0) == TRAIN._hardness(EASY_EPOCHS) == TRAIN._hardness(99) == 1


def test_every_class_looks_like_no_other_in_its_typeface() -> None:
    for faces in TYPEFACES.values():
        for face in faces:
            shapes = [np.asarray(glyphs._mask(face, name).resize((48, 48)), dtype=float) / 255 for name in CLASSES]
            distances = [np.abs(a - b).mean() for i, a in enumerate(shapes) for b in shapes[:i]]
            assert min(distances) > 0.02, face


def test_the_glyph_has_its_scale_and_stands_out() -> None:
    for scale in (0.2, 0.5, 0.95):
        data = ScaledGlyphs("test", scale=scale)
        assert [data.glyph(i)[:2] for i in range(9)] == [ScaledGlyphs("test").glyph(i)[:2] for i in range(9)]
        mask = glyphs._resized(glyphs._mask("cmss10", "h"), scale)
        assert max(mask.size) == round(scale * CANVAS)
        image = np.full((CANVAS, CANVAS), 128, dtype=np.float32)
        glyphs._ink(image, mask, np.random.default_rng(0))
        assert np.abs(image - 128).max() >= glyphs.LEAST_CONTRAST - 1
        rows, columns = np.nonzero(np.abs(image - 128) > 20)
        assert abs(max(np.ptp(rows), np.ptp(columns)) + 1 - scale * CANVAS) <= 2


def test_workers_draw_what_the_process_draws_and_a_step_can_be_resumed() -> None:
    options = DataRecipe(batch_size=6)
    transform = training_transform(AugmentRecipe(crop="none", hflip=0.0), (3, 32, 32), "bilinear")

    def batches(workers: int, step: int) -> list[Batch]:
        split = open_split("scaled_glyphs", "train", options)
        feed = training_batches(split, transform, Shard(workers=workers), options, seed=3)(1, step)
        return [next(feed) for _ in range(3)]

    alone = batches(0, 0)
    for workers in (0, 2):
        for batch, expected in zip(batches(workers, 1), alone[1:], strict=False):
            assert torch.equal(batch.images, expected.images)
            assert torch.equal(batch.labels, expected.labels)


@pytest.mark.parametrize("name", ["scaled_glyphs@2", "scaled_glyphs@0.1", "scaled_glyphs@nan", "scaled_glyphs@small"])
def test_a_scale_out_of_range_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="scaled_glyphs@"):
        open_split(name, "test", DataRecipe())
