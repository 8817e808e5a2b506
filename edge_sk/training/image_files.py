"""Image files: which names are read, and how a file becomes an image of eight bits a channel."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2"]
)
# Pillow goes by the content, and would start a PostScript interpreter for some.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")

# What Pillow raises for truncated and bit-flipped files, by experience.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError)


def read_image(file: str | Path | IO[bytes]) -> Image.Image:
    """Decode a file; raises one of :data:`DECODE_ERRORS` where it holds no image that can be trained on."""
    with Image.open(file, formats=FORMATS) as image:
        image.load()
        return eight_bits(image)


def eight_bits(image: Image.Image) -> Image.Image:
    """An image with eight bits a channel: of 16-bit grey, the upper eight.

    Pillow's own ``convert`` cuts 16-bit values off at 255, which is white.

    Raises:
        ValueError: Its pixels are floating-point or 32-bit numbers, whose range no file format says.
    """
    is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if is_16_bit:
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range: save the image with 8 or 16 bits")
    return image
