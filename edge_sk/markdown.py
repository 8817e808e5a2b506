"""Markdown from plain values: tables, and text that cannot become markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A table in GitHub's Markdown, without a line feed at its end.

    Cells are Markdown; pipes and line feeds in them are escaped.

    Args:
        head: Titles of the columns.
        rows: As many cells each.
        align: A letter per column, ``"l"`` or ``"r"``; further columns are aligned to the left.
    """
    rules = ["---:" if letter == "r" else "---" for letter in align.ljust(len(head), "l")]
    lines = [" | ".join(" ".join(cell.splitlines()).replace("|", r"\|") for cell in row) for row in (head, *rows)]
    first, *others = [f"| {line} |" for line in lines]
    return "\n".join([first, f"|{'|'.join(rules)}|", *others])


def escape(text: object) -> str:
    """Text on one line, which neither Markdown nor HTML reads as markup."""
    plain = html.escape(" ".join(str(text).split()), quote=False)
    # A character reference is shown as the character, and never read as markup or as a mention.
    return re.sub(r"[\\|*_`\[\]!~@]|#(?=\d)", lambda found: f"&#{ord(found[0])};", plain)


def code(text: str) -> str:
    """Text as code within a line; backticks in it become apostrophes."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"
