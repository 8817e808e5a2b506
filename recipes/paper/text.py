"""Turn the tables into text, cell by cell, and into a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recipes.markdown_tables import markdown_table
from recipes.paper.tables import Row, Table, compute, increments

PREAMBLE = """\
# The paper's tables, counted

Li et al., *Selective Kernel Networks*, CVPR 2019. Every figure of parameters and MACs that the paper prints, beside our
count of the network that `edge_sk.create_model` builds. Error rates are the paper's (top-1, per cent), not ours. The
paper's "FLOPs" are multiply-accumulates; ours are convolutions and matrix products with batch norm folded. `off` is
ours against the paper's in per cent; more than 1 % in parameters or 2 % in MACs has a note. † marks figures of the
paper quoted from memory that no source at hand confirms. Selective kernels are in bold.

Written by `python recipes/paper_tables.py --write`; a test compares this file with a fresh count.
"""

# The columns of what SE and SK add, in Table 4.
INCREMENT_HEADER = (
    "network",
    "#P M, paper †",
    "#P M, ours",
    "MMACs, paper †",
    "MMACs, ours",
    "ours with elementwise work",
)


def header(table: Table) -> list[str]:
    """Return the names of a table's columns."""
    macs = f"{table.unit}MACs"
    counted = ["#P M, paper", "#P M, ours", "off %", f"{macs}, paper", f"{macs}, ours", "off %"]
    return ["network", "built as", *counted, *(f"error %, {name}" for name in table.errors), "note"]


def cells(table: Table) -> list[list[str]]:
    """Return the rows of a table as text; the last cell is the number of a note."""
    return [_row(row, table, computed) for row, computed in zip(table.rows, compute(table)["rows"], strict=True)]


def _row(row: Row, table: Table, computed: dict[str, Any]) -> list[str]:
    ours, off = computed["ours"] or {}, computed["difference_pct"] or {}
    params = [row.params or "-", _number(ours.get("params_m")), _percent(off.get("params"))]
    macs = [row.macs or "-", _number(ours.get(f"{table.unit.lower()}macs")), _percent(off.get("macs"))]
    note = str(table.notes.index(row.note) + 1) if row.note else ""
    return [row.name, row.arch or "not built", *params, *macs, *(error or "-" for error in row.errors), note]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    # Rounding can give -0.0; adding 0.0 makes it 0.0.
    return "-" if value is None else f"{round(value, 1) + 0.0:+.1f}"


def increment_cells() -> list[list[str]]:
    """Return the rows of :func:`recipes.paper.tables.increments` as text."""
    rows = []
    for row in increments():
        paper, ours = row["paper"], row["ours"]
        params = [f"{paper['params_m']:+.2f}", f"{ours['params_m']:+.3f}"]
        macs = [f"{paper['mmacs']:+.2f}", f"{ours['mmacs']:+.2f}", f"{ours['mmacs_with_elementwise']:+.2f}"]
        rows.append([row["name"], *params, *macs])
    return rows


def markdown(tables: Sequence[Table]) -> str:
    """Return tables as Markdown, and below Table 4 its differences."""
    parts = [PREAMBLE]
    for table in tables:
        titles, rows = header(table), cells(table)
        # A table without MACs or notes loses the columns that would be empty.
        keep = [i for i in range(len(titles)) if any(row[i] not in ("-", "") for row in rows)]
        for row, texts in zip(table.rows, rows, strict=True):
            texts[0] = f"**{texts[0]}**" if row.is_sk else texts[0]
            texts[1] = f"`{texts[1]}`" if row.arch and not row.densenet else texts[1]
        kept = [[texts[i] for i in keep] for texts in (titles, *rows)]
        shown = markdown_table(kept[0], kept[1:], "".join("l" if i < 2 else "r" for i in keep))
        parts += [f"## Table {table.key}: {table.title}\n", shown, ""]
        parts += [f"{position}. {note}" for position, note in enumerate(table.notes, 1)]
        parts += [""] if table.notes else []
        parts += [table.note, ""] if table.note else []
        if table.key == "4":
            parts += ["What SE and SK add to the plain network of the same width:", ""]
            parts += [markdown_table(INCREMENT_HEADER, increment_cells(), "lrrrrr"), ""]
    return "\n".join(parts).rstrip("\n") + "\n"
