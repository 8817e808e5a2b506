"""Print tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edge_sk.markdown import cell

_RULES = {"l": "---", "r": "---:", "c": ":---:"}


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
    cells = [[cell(content) for content in row] for row in (header, *rows)]
    if {len(row) for row in (rules, *cells)} != {len(header)}:
        raise ValueError(f"every row needs {len(header)} cells, as many as the header")
    title, *lines = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([title, f"|{'|'.join(rules)}|", *lines])
