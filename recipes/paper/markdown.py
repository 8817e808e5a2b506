"""The tables as one page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from recipes.paper import cells
from recipes.paper.count import compute
from recipes.paper.model import Table

PREAMBLE = """\
# The paper's tables, counted

Li et al., *Selective Kernel Networks*, CVPR 2019. Every figure of parameters and MACs that the paper prints, beside our
count of the network that `edge_sk.create_model` builds. Error rates are the paper's (top-1, per cent), not ours. The
paper's "FLOPs" are multiply-accumulates; ours are convolutions and matrix products with batch norm folded. `off` is
ours against the paper's in per cent; more than 1 % in parameters or 2 % in MACs has a note. † marks figures of the
paper quoted from memory that no source at hand confirms. Selective kernels are in bold.

Written by `python recipes/paper_tables.py --write`; a test compares this file with a fresh count.
"""


def markdown(tables: Sequence[Table]) -> str:
    """Tables as Markdown; the differences of Table 4 follow it."""
    parts = [PREAMBLE]
    for table in tables:
        header, rows, notes = cells.header(table), cells.rows(table, compute(table)), cells.notes(table)
        # A table without MACs or notes loses the columns that would be empty.
        keep = [i for i in range(len(header)) if any(row[i] not in ("-", "") for row in rows)]
        parts.append(f"## Table {table.key}: {table.title}\n")
        parts.append(f"| {' | '.join(header[i] for i in keep)} |")
        parts.append(f"|{'|'.join('---' if i in (0, 1) else '---:' for i in keep)}|")
        for row, texts in zip(table.rows, rows, strict=True):
            texts[0] = f"**{texts[0]}**" if cells.is_sk(row) else texts[0]
            texts[1] = f"`{texts[1]}`" if row.arch and not row.build else texts[1]
            parts.append(f"| {' | '.join(texts[i] for i in keep)} |")
        parts.append("")
        parts += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
        parts += [""] if notes else []
        parts += [table.note, ""] if table.note else []
        if table.key == "4":
            parts.append(_increments_markdown())
    return "\n".join(parts).rstrip("\n") + "\n"


def _increments_markdown() -> str:
    lines = ["What SE and SK add to the plain network of the same width:", ""]
    lines += [f"| {' | '.join(cells.INCREMENT_HEADER)} |", "|---|---:|---:|---:|---:|---:|"]
    lines += [f"| {' | '.join(texts)} |" for texts in cells.increment_cells()]
    return "\n".join([*lines, ""])
