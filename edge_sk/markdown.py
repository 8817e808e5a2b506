"""Put text into Markdown so that it cannot become markup."""

from __future__ import annotations

import html
import re

# With an even number of backslashes before it; after an odd number it is escaped already.
_PIPE = re.compile(r"(?<!\\)((?:\\\\)*)\|")


def cell(content: object) -> str:
    """Return text that stays within one cell of a table: pipes escaped, on one line; other markup is kept."""
    return _PIPE.sub(r"\1\\|", " ".join(str(content).splitlines()))


def escape(text: object) -> str:
    """Return text on one line, which neither Markdown nor HTML reads as markup."""
    plain = html.escape(" ".join(str(text).split()), quote=False)
    # A character reference is shown as the character, and never read as markup or as a mention.
    return re.sub(r"[\\|*_`\[\]!~@]|#(?=\d)", lambda found: f"&#{ord(found[0])};", plain)


def code(text: str) -> str:
    """Return text as code within a line; backticks in it become apostrophes."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"
