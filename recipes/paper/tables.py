"""Read the paper's tables and put our count beside every figure."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from edge_sk.models import create_model
from edge_sk.profiling import Profile, profile

PARAMS_TOLERANCE = 1.0  # per cent; a larger difference needs a note
MACS_TOLERANCE = 2.0
# Marks a figure that is quoted from memory.
RECALLED = " †"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table; tables.yaml explains the fields. The paper's figures are text, so that 25.0 stays 25.0."""

    name: str
    arch: str | None
    params: str | None = None
    macs: str | None = None
    errors: Sequence[str | None] = ()
    note: str = ""
    size: int | None = None
    densenet: Sequence[int] = ()

    @property
    def is_sk(self) -> bool:
        """Whether it is a network with selective kernels."""
        return (self.arch or "").startswith("sk") and "select=false" not in (self.arch or "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One table; tables.yaml explains the fields."""

    key: str
    title: str
    errors: Sequence[str]
    rows: Sequence[Row]
    unit: str = "G"
    note: str = ""

    @property
    def notes(self) -> list[str]:
        """Return the distinct notes of its rows, in order."""
        return list(dict.fromkeys(row.note for row in self.rows if row.note))


def _read() -> list[Table]:
    tables = yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8"))
    return [Table(**table | {"rows": [Row(**row) for row in table["rows"]]}) for table in tables]


TABLES = _read()


@functools.cache
def _profile(arch: str, size: int | None, densenet: tuple[int, ...]) -> Profile:
    if not densenet:
        return profile(create_model(arch), size)
    from timm.models.densenet import DenseNet

    growth_rate, *blocks = densenet
    return profile(DenseNet(growth_rate=growth_rate, block_config=tuple(blocks)), size)


def count(row: Row) -> Profile:
    """Count the network of a row, which must have one."""
    assert row.arch is not None, row.name
    return _profile(row.arch, row.size, tuple(row.densenet))


def number(figure: str | None) -> float | None:
    """Return a figure of the paper as a number, without the dagger."""
    return None if figure is None else float(figure.removesuffix(RECALLED))


def _off(ours: float, paper: str | None) -> float | None:
    theirs = number(paper)
    return None if theirs is None else round(100 * (ours / theirs - 1), 2)


def compute(table: Table) -> dict[str, Any]:
    """Return one table as data: the paper's figures, our counts, the differences in per cent."""
    rows = [_compute_row(row, table) for row in table.rows]
    return {
        "table": table.key,
        "title": table.title,
        "note": table.note,
        "mac_unit": table.unit,
        "errors": table.errors,
        "rows": rows,
    }


def _compute_row(row: Row, table: Table) -> dict[str, Any]:
    macs_key = f"{table.unit.lower()}macs"
    errors = dict(zip(table.errors, row.errors, strict=True))
    figures = {"params": row.params, "macs": row.macs} | errors
    ours = difference = None
    if row.arch is not None:
        cost = count(row)
        params, macs = cost.params / 1e6, cost.macs / {"G": 1e9, "M": 1e6}[table.unit]
        ours = {"params_m": round(params, 4), macs_key: round(macs, 4), "input_size": list(cost.input_size[1:])}
        difference = {"params": _off(params, row.params), "macs": _off(macs, row.macs)}
    paper = {
        "params_m": number(row.params),
        macs_key: number(row.macs),
        "top1_error_pct": {name: number(error) for name, error in errors.items()},
        "recalled": [name for name, figure in figures.items() if figure and figure.endswith(RECALLED)],
    }
    return {
        "name": row.name,
        "arch": row.arch,
        "paper": paper,
        "ours": ours,
        "difference_pct": difference,
        "note": row.note,
    }


def unexplained(result: dict[str, Any]) -> list[str]:
    """Return the rows of a computed table that lack a note: they differ by more than the tolerance or are not built."""
    found = []
    for row in result["rows"]:
        off = row["difference_pct"] or {"params": None, "macs": None}
        too_far = abs(off["params"] or 0) > PARAMS_TOLERANCE or abs(off["macs"] or 0) > MACS_TOLERANCE
        if (too_far or row["arch"] is None) and not row["note"]:
            found.append(row["name"])
    return found


def increments() -> list[dict[str, Any]]:
    """Return Table 4 as differences to the plain network: the paper's, ours, and ours with elementwise work."""
    rows = {row.name: row for table in TABLES if table.key == "4" for row in table.rows}
    found = []
    for width in ("0.5x", "1.0x"):
        plain = rows[f"ShuffleNetV2 {width} (the author's)"]
        base = count(plain)
        for gate in ("SE", "SK"):
            row = rows[f"ShuffleNetV2 {width} + {gate}"]
            ours = count(row)
            macs = (ours.macs - base.macs) / 1e6
            paper = {
                "params_m": round((number(row.params) or 0) - (number(plain.params) or 0), 2),
                "mmacs": round((number(row.macs) or 0) - (number(plain.macs) or 0), 2),
            }
            counted = {
                "params_m": round((ours.params - base.params) / 1e6, 3),
                "mmacs": round(macs, 2),
                "mmacs_with_elementwise": round(macs + (ours.elementwise - base.elementwise) / 1e6, 2),
            }
            found.append({"name": row.name, "paper": paper, "ours": counted})
    return found
