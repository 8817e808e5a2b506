"""Draw 64 images of scaled_glyphs: ``python recipes/glyph_samples.py --output docs/scaled_glyphs.png``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from edge_sk.errors import script
from edge_sk.files import atomic_write
from edge_sk.training.glyphs import CANVAS, EASY_EPOCHS, ScaledGlyphs

COLUMNS, ROWS = 16, 4


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Write the picture: two rows of training, two of the test."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":", 1)[0])
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    output = parser.parse_args(argv).output
    sheet = Image.new("L", (COLUMNS * (CANVAS + 2), ROWS * (CANVAS + 2)))
    for position in range(COLUMNS * ROWS):
        row, column = divmod(position, COLUMNS)
        image, _ = ScaledGlyphs("train" if row < ROWS / 2 else "test").draw(position, epoch=EASY_EPOCHS)
        sheet.paste(image, (column * (CANVAS + 2), row * (CANVAS + 2)))
    with atomic_write(output) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
