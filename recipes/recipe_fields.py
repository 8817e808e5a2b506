"""Write what every field of a recipe means into recipes/README.md: ``python recipes/recipe_fields.py``.

Defaults and limits are the recipe's (``edge_sk/training/recipe.py``), meanings the comments behind its fields.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import script  # isort: skip (before torch: Ctrl-C)
from edge_sk.files import write_text
from edge_sk.training import recipe
from recipes.markdown_tables import allowed, markdown_table

README = Path(__file__).resolve().parent / "README.md"
MARKS = ("<!-- fields -->\n", "<!-- end of the fields -->\n")


def meanings() -> dict[str, dict[str, str]]:
    """The comment behind every field, by the name of its section's class."""
    source = inspect.getsource(recipe)
    lines = source.splitlines()
    return {
        node.name: {
            field.target.id: lines[field.lineno - 1][field.end_col_offset or 0 :].strip().removeprefix("# ")
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def fields() -> str:
    """A heading, a sentence and a table for every section."""
    parts, comments = list[str](), meanings()
    schemas = recipe.Recipe.model_json_schema()["$defs"]
    for section, info in recipe.Recipe.model_fields.items():
        kind: Any = info.annotation
        rows = []
        for name, schema in schemas[kind.__name__]["properties"].items():
            free = " ⟳" if f"{section}.{name}" in recipe.FREE else ""
            default = json.dumps(schema["default"]).replace('"', "")
            rows.append([f"`{section}.{name}`{free}", f"`{default}`", allowed(schema), comments[kind.__name__][name]])
        table = markdown_table(["field", "default", "values", "meaning"], rows)
        parts.append(f"### {section}\n\n{inspect.cleandoc(kind.__doc__).replace('``', '`')}\n\n{table}\n\n")
    return "".join(parts)


def page(text: str) -> str:
    """The README with its fields written anew."""
    before, _, rest = text.partition(MARKS[0])
    return before + MARKS[0] + fields() + MARKS[1] + rest.partition(MARKS[1])[2]


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Write the README."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0]).parse_args(argv)
    write_text(README, page(README.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
