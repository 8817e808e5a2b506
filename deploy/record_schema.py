"""Print the JSON of records and reports in words, from the models themselves: docs/record.md."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from edge_sk.export.record import Record
from edge_sk.export.report.model import Report
from edge_sk.markdown import markdown_table

INTRODUCTION = """\
# The JSON of records and reports

`deploy/export.py` writes one record beside each file, `NAME.pte.json` or `NAME.mlpackage.json`; `deploy/benchmark.py`
adds latencies to it; `deploy/report.py` writes `report.json`, which holds many. All are read strictly: an unknown or
missing field is an error that names it. A record made on a phone or a Mac has the same form, and
`deploy/report.py --records` joins it: copy the record along with the file, and append to `latency`.

`null` or an empty list means "not measured". This page is printed by `python deploy/record_schema.py`.
"""


def describe() -> str:
    """The schema as Markdown, one table per part."""
    found: dict[str, type[BaseModel]] = {}
    for model in (Record, Report):
        _visit(model, found)
    return "\n".join([INTRODUCTION, *(_table(model) for model in found.values())])


def _visit(model: type[BaseModel], found: dict[str, type[BaseModel]]) -> None:
    if model.__name__ in found:
        return
    found[model.__name__] = model
    for field in model.model_fields.values():
        for part in _models_in(field.annotation):
            _visit(part, found)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models_in(inner)


def _table(model: type[BaseModel]) -> str:
    summary = (model.__doc__ or "").strip().splitlines()[0]
    rows = [
        (f"`{name}`", _type_text(field.annotation), field.description or "")
        for name, field in model.model_fields.items()
    ]
    return f"## {model.__name__}\n\n{summary}\n\n{markdown_table(('field', 'type', 'meaning'), rows)}\n"


def _type_text(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value!r}`" if isinstance(value, str) else str(value) for value in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_text(one) for one in inner)
    if origin in (list, dict):
        return f"{origin.__name__} of {_type_text(inner[-1])}"
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "anything"
    if issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return annotation.__name__


if __name__ == "__main__":
    print(describe(), end="")
