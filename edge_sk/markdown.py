"""Print Markdown: tables, and text that cannot become markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_RULES = {"l": "---", "r": "---:", "c": ":---:"}
# With an even number of backslashes before it; after an odd number it is escaped already.
_PIPE = re.compile(r"(?<!\\)((?:\\\\)*)\|")


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """Return a table in GitHub's Markdown, without a line feed at its end.

    Any text is safe in a cell: pipes are escaped and line breaks become spaces. Other markup is kept.

    Args:
        header: One title per column.
        rows: Cells of each row, one per column.
        align: ``l``, ``r`` or ``c`` for each column; all are aligned left by default.

    Raises:
        ValueError: A row, or ``align``, has more or fewer columns than the header.
    """
    rules = [_RULES[letter] for letter in align or "l" * len(header)]
    cells = [[_PIPE.sub(r"\1\\|", " ".join(str(cell).splitlines())) for cell in row] for row in (header, *rows)]
    if {len(row) for row in (rules, *cells)} != {len(header)}:
        raise ValueError(f"every row needs {len(header)} cells, as many as the header")
    title, *lines = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([title, f"|{'|'.join(rules)}|", *lines])


def escape(text: object) -> str:
    """Text on one line, which neither Markdown nor HTML reads as markup."""
    plain = html.escape(" ".join(str(text).split()), quote=False)
    # A character reference is shown as the character, and never read as markup or as a mention.
    return re.sub(r"[\\|*_`\[\]!~@]|#(?=\d)", lambda found: f"&#{ord(found[0])};", plain)


def code(text: str) -> str:
    """Text as code within a line; backticks in it become apostrophes."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"
