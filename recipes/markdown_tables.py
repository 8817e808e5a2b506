"""Print tables in Markdown, and what a field may hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

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


def allowed(schema: dict[str, Any]) -> str:
    """The values that a field takes, from its JSON schema; a model is a link to its section."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return ", ".join(allowed(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum") or [schema["const"]]))
    kind = schema.get("type", "anything")
    if kind == "array":
        items = schema.get("prefixItems") or [schema["items"]]
        return f"[{', '.join(allowed(item) for item in items)}{'' if 'prefixItems' in schema else ', ...'}]"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"{{name: {allowed(values if isinstance(values, dict) else {})}, ...}}"
    names = {"boolean": "true, false", "string": "text", "integer": "whole number"}
    # Limits of 10^15 and more only keep nonsense out.
    low, high = (
        next((f"{word} {schema[key]:,}" for key, word in words.items() if abs(schema.get(key, 1e15)) < 1e15), "")
        for words in (_LOW, _HIGH)
    )
    return " ".join(filter(None, (names.get(kind, kind), low, high)))


_LOW = {"minimum": "from", "exclusiveMinimum": "above"}
_HIGH = {"maximum": "to", "exclusiveMaximum": "below"}
