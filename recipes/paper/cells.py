"""A table as text, cell by cell."""

from __future__ import annotations

from typing import Any

from recipes.paper.count import increments
from recipes.paper.model import Row, Table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _figure(row: Row, name: str, figure: str | None) -> str:
    return "-" if figure is None else f"{figure} †" if name in row.recalled else figure


def _percent(value: float | None) -> str:
    # Adding 0.0 turns the -0.0 that rounding leaves into 0.0.
    return "-" if value is None else f"{round(value, 1) + 0.0:+.1f}"


def header(table: Table) -> list[str]:
    """The names of a table's columns."""
    macs = f"{table.unit}MACs"
    errors = [f"error %, {name}" for name in table.errors]
    counted = ["#P M, paper", "#P M, ours", "off %", f"{macs}, paper", f"{macs}, ours", "off %"]
    return ["network", "built as", *counted, *errors, "note"]


def rows(table: Table, result: dict[str, Any]) -> list[list[str]]:
    """The rows of a table as text; the last cell refers to a note."""
    known = notes(table)
    found = []
    for row, computed in zip(table.rows, result["rows"], strict=True):
        ours, off = computed["ours"] or {}, computed["difference_pct"] or {}
        found.append(
            [
                row.name,
                row.arch or "not built",
                _figure(row, "params", row.params),
                _number(ours.get("params_m")),
                _percent(off.get("params")),
                _figure(row, "macs", row.macs),
                _number(ours.get(f"{table.unit.lower()}macs")),
                _percent(off.get("macs")),
                *(_figure(row, name, figure) for name, figure in zip(table.errors, row.errors, strict=True)),
                str(known.index(row.note) + 1) if row.note else "",
            ]
        )
    return found


def notes(table: Table) -> list[str]:
    """The distinct notes of a table, in order; a row refers to one by its position."""
    return list(dict.fromkeys(row.note for row in table.rows if row.note))


def is_sk(row: Row) -> bool:
    """Whether a row is a network with selective kernels."""
    return (row.arch or "").startswith("sk") and "select=false" not in (row.arch or "")


# The columns of what SE and SK add, in Table 4.
INCREMENT_HEADER = (
    "network",
    "#P M, paper †",
    "#P M, ours",
    "MMACs, paper †",
    "MMACs, ours",
    "ours with elementwise work",
)


def increment_cells() -> list[list[str]]:
    """The rows of :func:`recipes.paper.count.increments` as text."""
    return [
        [
            row["name"],
            f"{row['paper']['params_m']:+.2f}",
            f"{row['ours']['params_m']:+.3f}",
            f"{row['paper']['mmacs']:+.2f}",
            f"{row['ours']['mmacs']:+.2f}",
            f"{row['ours']['mmacs_with_elementwise']:+.2f}",
        ]
        for row in increments()
    ]
