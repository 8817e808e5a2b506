"""Our count beside the paper's figures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from edge_sk.models import create_model
from edge_sk.profiling import Profile, profile
from recipes.paper.model import Row, Table
from recipes.paper.tables import TABLES

PARAMS_TOLERANCE = 1.0  # per cent; a larger difference needs a note
MACS_TOLERANCE = 2.0


@functools.cache
def _profile(arch: str, size: int | None, build: Callable[[], nn.Module] | None) -> Profile:
    model = build() if build else create_model(arch)
    return profile(model, size)


def count(row: Row) -> Profile | None:
    """Our count of a row; ``None`` where we cannot build it."""
    return None if row.arch is None else _profile(row.arch, row.size, row.build)


def counted(row: Row) -> Profile:
    """Our count of a row that we can build."""
    ours = count(row)
    assert ours is not None, row.name
    return ours


def _float(figure: str | None) -> float | None:
    return None if figure is None else float(figure)


def _off(ours: float, paper: str | None) -> float | None:
    return None if paper is None else round(100 * (ours / float(paper) - 1), 2)


def compute(table: Table) -> dict[str, Any]:
    """One table as data: what the paper says, what we count, the difference in per cent."""
    scale = {"G": 1e9, "M": 1e6}[table.unit]
    rows = []
    for row in table.rows:
        ours = count(row)
        rows.append(
            {
                "name": row.name,
                "arch": row.arch,
                "paper": {
                    "params_m": _float(row.params),
                    f"{table.unit.lower()}macs": _float(row.macs),
                    "top1_error_pct": dict(zip(table.errors, map(_float, row.errors), strict=True)),
                    "recalled": list(row.recalled),
                },
                "ours": None
                if ours is None
                else {
                    "params_m": round(ours.params / 1e6, 4),
                    f"{table.unit.lower()}macs": round(ours.macs / scale, 4),
                    "input_size": list(ours.input_size[1:]),
                },
                "difference_pct": None
                if ours is None
                else {
                    "params": _off(ours.params / 1e6, row.params),
                    "macs": _off(ours.macs / scale, row.macs),
                },
                "note": row.note,
            }
        )
    return {
        "table": table.key,
        "title": table.title,
        "note": table.note,
        "mac_unit": table.unit,
        "errors": list(table.errors),
        "rows": rows,
    }


def unexplained(result: dict[str, Any]) -> list[str]:
    """Rows of a computed table that differ by more than the tolerance and say nothing about it."""
    found = []
    for row in result["rows"]:
        off = row["difference_pct"] or {"params": None, "macs": None}
        too_far = abs(off["params"] or 0) > PARAMS_TOLERANCE or abs(off["macs"] or 0) > MACS_TOLERANCE
        if (too_far or row["arch"] is None) and not row["note"]:
            found.append(row["name"])
    return found


def increments() -> list[dict[str, Any]]:
    """Table 4 as differences to the plain row of each width: the paper's, ours, and ours with elementwise work."""
    rows = {row.name: row for table in TABLES if table.key == "4" for row in table.rows}
    found = []
    for width in ("0.5x", "1.0x"):
        plain = rows[f"ShuffleNetV2 {width} (the author's)"]
        for gate in ("SE", "SK"):
            row = rows[f"ShuffleNetV2 {width} + {gate}"]
            ours, base = counted(row), counted(plain)
            macs = (ours.macs - base.macs) / 1e6
            found.append(
                {
                    "name": row.name,
                    "paper": {
                        "params_m": round(float(row.params or 0) - float(plain.params or 0), 2),
                        "mmacs": round(float(row.macs or 0) - float(plain.macs or 0), 2),
                    },
                    "ours": {
                        "params_m": round((ours.params - base.params) / 1e6, 3),
                        "mmacs": round(macs, 2),
                        "mmacs_with_elementwise": round(macs + (ours.elementwise - base.elementwise) / 1e6, 2),
                    },
                }
            )
    return found
