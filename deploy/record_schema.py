"""Print docs/record.md: the fields of records and reports, from their models.

python deploy/record_schema.py > docs/record.md
"""

from __future__ import annotations

import argparse
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel

from edge_sk.errors import script
from edge_sk.export.record import Record
from edge_sk.export.report import Report
from recipes.markdown_tables import markdown_table

INTRODUCTION = """\
# The JSON of records and reports

`deploy/export.py` writes one record beside each file, `NAME.pte.json` or `NAME.mlpackage.json`; `deploy/benchmark.py`
adds latencies to it; `deploy/report.py` writes `report.json`, which holds many. All are read strictly: an unknown or
missing field is an error that names it. Records made on a phone or a Mac have the same fields, and
`deploy/report.py --records` joins them: copy the record along with the file, and append to `latency`.

`null` or an empty list means "not measured". `python deploy/record_schema.py` prints this page.
"""


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Print the page."""
    argparse.ArgumentParser(
        prog="deploy/record_schema.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    print(describe(), end="")
    return 0


def describe() -> str:
    """Return the page, with a table for each model."""
    # A dictionary removes duplicates and keeps the order.
    models = dict.fromkeys(found for model in (Record, Report) for found in _models(model))
    return "\n".join([INTRODUCTION, *map(_section, models)])


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in a type: itself, if it is one, and then those of its fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from _models(field.annotation)
    for part in typing.get_args(annotation):
        yield from _models(part)


def _section(model: type[BaseModel]) -> str:
    summary = (model.__doc__ or "").strip().splitlines()[0]
    rows = [
        (f"`{name}`", _type_text(field.annotation), field.description or "")
        for name, field in model.model_fields.items()
    ]
    return f"## {model.__name__}\n\n{summary}\n\n{markdown_table(('field', 'type', 'meaning'), rows)}\n"


def _type_text(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value!r}`" if isinstance(value, str) else str(value) for value in parts)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_type_text, parts))
    if origin is Annotated:
        return _type_text(parts[0])
    if origin in (list, dict):
        return f"{origin.__name__} of {_type_text(parts[-1])}"
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "anything"
    if issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return annotation.__name__


if __name__ == "__main__":
    sys.exit(main())
