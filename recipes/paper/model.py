"""What a table of the paper holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import nn


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table of the paper; its figures are text, so that 25.0 stays 25.0.

    Args:
        name: As the paper calls it.
        arch: What ``create_model`` is given; ``None`` where we cannot build it (``note`` says why).
        params: The paper's parameters in millions.
        macs: The paper's "FLOPs" (multiply-accumulates), in the table's unit.
        errors: The paper's error rates in per cent, in the order of the table's columns.
        note: Why we differ, or what to know.
        size: Side of the image; ``None`` takes the network's.
        recalled: Figures quoted from memory that no source at hand confirms: ``params``, ``macs`` or an error column.
        build: Builds a network that has no name; ``arch`` then describes it.
    """

    name: str
    arch: str | None
    params: str | None = None
    macs: str | None = None
    errors: tuple[str | None, ...] = ()
    note: str = ""
    size: int | None = None
    recalled: tuple[str, ...] = ()
    build: Callable[[], nn.Module] | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the paper.

    Args:
        key: Its number.
        title: What it shows.
        errors: Names of its error columns.
        rows: Its rows.
        unit: ``G`` or ``M`` MACs.
        note: What holds for all rows.
    """

    key: str
    title: str
    errors: tuple[str, ...]
    rows: tuple[Row, ...]
    unit: str = "G"
    note: str = ""
