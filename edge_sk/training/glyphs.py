"""Letters and digits of many typefaces, drawn at known scales over photographs, without end."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFont

from edge_sk.errors import InputError, require
from edge_sk.training.randomness import derive_seed

# Left out: what differs from another by its size alone (c o p s u v w x z k 0), or in some typeface not at all (I l).
CLASSES = [*"123456789ABCDEFGHJKLMNOPQRSTUVWXYZabdefghijmnqrty"]
# Of those inside matplotlib. Each is seen in one split alone. The validation part is for choosing a learning rate.
TYPEFACES = {
    "train": (
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono-Bold", "DejaVuSerif"),
        *("DejaVuSerif-Bold", "STIXGeneral", "STIXGeneralItalic", "cmr10", "cmb10", "cmtt10"),
    ),
    "validation": ("DejaVuSansMono-Oblique", "DejaVuSerif-BoldItalic", "STIXGeneralBolIta"),
    "test": ("DejaVuSans-BoldOblique", "DejaVuSansMono", "DejaVuSerif-Italic", "STIXGeneralBol", "cmss10", "cmti10"),
}
# Of an epoch; another epoch's and another seed's training images are others.
IMAGES = {"train": 20_000, "validation": 3_000, "test": 5_000}
# Epochs in which training images become as hard as test images: from large glyphs on plain grey to small ones on
# photographs. Without them networks guess for more than 60,000 images.
EASY_EPOCHS = 2
EASY_SCALE = 0.45  # the smallest in the first epoch
CANVAS = 96
SCALES = (0.15, 0.95)
ANGLE = 12.0  # degrees, at most
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
TRAIN_SHARE = 0.7  # of a photograph's width
CROPS = (64, 192)  # pixels per side of what is cut from a photograph
CLUTTER_PIECES = 2
CLUTTER_SCALES = (0.1, 0.4)
LEAST_CONTRAST = 60  # grey levels between ink and what lies under it
MASK = 192  # pixels of the larger side of a glyph before it is drawn


class Glyph(NamedTuple):
    """What is drawn: its class, and the larger side of its box as a fraction of the canvas."""

    label: int
    typeface: str
    scale: float


class ScaledGlyphs:
    """Images by index, each a function of the arguments, the seed, the epoch and the index alone.

    With a ``scale`` only the scale changes: the same characters in the same places on the same background.
    """

    def __init__(self, split: str, *, scale: float | None = None) -> None:
        low, high = SCALES
        if split not in IMAGES:
            raise InputError(f"data.val_split={split}: scaled_glyphs is tested on test or validation")
        if scale is not None and not low <= scale <= high:
            raise InputError(f"scaled_glyphs@{scale}: the scale must be from {low} to {high}")
        require("matplotlib", extra="train", needed_for="--data scaled_glyphs")
        self.split, self.scale = split, scale

    def __len__(self) -> int:
        return IMAGES[self.split]

    def glyph(self, index: int, *, seed: int = 0, epoch: int = 0) -> Glyph:
        """What an image shows, without drawing it."""
        return self._choose(self._generator(index, seed, epoch), self._hardness(epoch))

    def draw(self, index: int, *, seed: int = 0, epoch: int = 0) -> tuple[Image.Image, int]:
        """A grey image of 96 x 96 pixels, and its label."""
        random, hardness = self._generator(index, seed, epoch), self._hardness(epoch)
        glyph = self._choose(random, hardness)
        image = _background(self.split, random, hardness)
        for _ in range(round(CLUTTER_PIECES * hardness)):
            _ink(image, self._piece(random), random)
        mask = _resized(_mask(glyph.typeface, CLASSES[glyph.label]), glyph.scale)
        mask = mask.rotate(random.uniform(-ANGLE, ANGLE), Image.Resampling.BILINEAR, expand=True)
        _ink(image, mask, random)
        return Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8)), glyph.label

    def _generator(self, index: int, seed: int, epoch: int) -> np.random.Generator:
        # The validation and test images are the same for every run.
        drawn = (seed, epoch) if self.split == "train" else ()
        return np.random.default_rng(derive_seed("scaled glyphs", self.split, *drawn, index))

    def _hardness(self, epoch: int) -> float:
        return min(1.0, epoch / EASY_EPOCHS) if self.split == "train" else 1.0

    def _choose(self, random: np.random.Generator, hardness: float) -> Glyph:
        label, typeface = random.integers(len(CLASSES)), random.choice(TYPEFACES[self.split])
        smallest = EASY_SCALE + hardness * (SCALES[0] - EASY_SCALE)
        scale = np.exp(random.uniform(*np.log((smallest, SCALES[1]))))
        return Glyph(int(label), str(typeface), float(scale) if self.scale is None else self.scale)

    def _piece(self, random: np.random.Generator) -> Image.Image:
        """A quarter of a glyph, which no longer shows which one it was."""
        whole = _mask(str(random.choice(TYPEFACES[self.split])), CLASSES[random.integers(len(CLASSES))])
        width, height = whole.width // 2, whole.height // 2
        left, top = (int(random.integers(whole.width - width + 1)), int(random.integers(whole.height - height + 1)))
        return _resized(whole.crop((left, top, left + width, top + height)), random.uniform(*CLUTTER_SCALES))


@functools.cache
def _mask(typeface: str, character: str) -> Image.Image:
    """The ink of a character, its larger side ``MASK`` pixels."""
    import matplotlib

    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{typeface}.ttf", MASK)
    drawn: Any = font.getmask(character, mode="L")
    ink = Image.frombytes("L", drawn.size, bytes(drawn))
    ink = ink.crop(ink.getbbox())
    return ink.resize(_size(ink, MASK), Image.Resampling.BICUBIC)


@functools.cache
def _photographs(split: str) -> list[Image.Image]:
    from sklearn.datasets import load_sample_image

    parts = []
    for name in PHOTOGRAPHS:
        whole = Image.fromarray(load_sample_image(name)).convert("L")
        border = round(TRAIN_SHARE * whole.width)
        parts.append(whole.crop((border, 0, *whole.size) if split == "test" else (0, 0, border, whole.height)))
    return parts


def _background(split: str, random: np.random.Generator, hardness: float) -> np.ndarray:
    """A piece of a photograph, of random contrast, as float32 grey levels ``(CANVAS, CANVAS)``; plain grey if easy."""
    photograph = _photographs(split)[random.integers(len(PHOTOGRAPHS))]
    side = int(random.integers(*CROPS))
    left, top = (int(random.integers(photograph.width - side)), int(random.integers(photograph.height - side)))
    piece = photograph.resize((CANVAS, CANVAS), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    levels = np.asarray(piece, dtype=np.float32)[:, :: random.choice((-1, 1))]
    return levels.mean() + hardness * random.uniform(0.3, 1.0) * (levels - levels.mean())


def _ink(image: np.ndarray, mask: Image.Image, random: np.random.Generator) -> None:
    """Draw with a mask, in place, somewhere, in a grey that stands out from what lies under it."""
    where = random.random(2)
    ink = np.asarray(mask, dtype=np.float32)[:CANVAS, :CANVAS] / 255
    top, left = (where * (CANVAS - np.array(ink.shape) + 1)).astype(int)
    region = image[top : top + ink.shape[0], left : left + ink.shape[1]]
    under = region.mean()
    darker, brighter = max(0.0, under - LEAST_CONTRAST), min(255.0, under + LEAST_CONTRAST)
    # On a mean grey either is possible; the wider room is the likelier.
    level = (
        random.uniform(0, darker)
        if random.uniform(0, darker + 255 - brighter) < darker
        else random.uniform(brighter, 255)
    )
    region += ink * (level - region)


def _resized(mask: Image.Image, scale: float) -> Image.Image:
    return mask.resize(
        _size(mask, scale * CANVAS), Image.Resampling.BOX if scale * CANVAS < MASK / 2 else Image.Resampling.BILINEAR
    )


def _size(image: Image.Image, larger: float) -> tuple[int, int]:
    factor = larger / max(image.size)
    return max(1, round(image.width * factor)), max(1, round(image.height * factor))
