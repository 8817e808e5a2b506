"""Costs as tables for people."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge_sk.profiling.cost import ModuleTable, Profile, level, unsupported_text

if TYPE_CHECKING:
    from rich.table import Table


def comparison(profiles: Sequence[Profile], title: str | None = None) -> Table:
    """A rich table with one row per network."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("network", no_wrap=True)
    for column in ("input", "params M", "MACs M", "in gates M", "elementwise M", "activations M"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("largest feature map", no_wrap=True)
    unsupported = any(one.unsupported for one in profiles)
    if unsupported:
        table.add_column("not counted")
    for one in profiles:
        row = [
            one.name,
            "x".join(map(str, one.input_size[1:])),
            *(
                f"{value / 1e6:,.{digits}f}"
                for value, digits in (
                    (one.params, 3),
                    (one.macs, 2),
                    (one.gate_macs, 3),
                    (one.elementwise, 2),
                    (one.activations, 2),
                )
            ),
            str(one.largest_feature_map),
        ]
        table.add_row(*row, *([unsupported_text(one)] if unsupported else []))
    return table


def module_table(costs: ModuleTable) -> Table:
    """A rich table with one row per module, children indented."""
    from rich.table import Table

    table = Table()
    table.add_column("module", no_wrap=True)
    table.add_column("class", no_wrap=True)
    for column in ("params", "MACs", "in gates", "elementwise", "activations"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, cost in costs.items():
        values = (cost.params, cost.macs, cost.gate_macs, cost.elementwise, cost.activations)
        table.add_row(
            f"{'  ' * level(name)}{name.split('.')[-1] or '(network)'}",
            cost.type,
            *(f"{value:,}" for value in values),
        )
    return table


def print_table(table: Table) -> None:
    """Print a table: in colours on a terminal, whole whatever the width elsewhere."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(table)
    else:
        print(plain_text(table))


def plain_text(table: Table) -> str:
    """A rich table as plain text that no terminal width cuts."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=1000, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")
