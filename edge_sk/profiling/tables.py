"""Print tables."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def make_table(left: Sequence[str], right: Sequence[str], rows: Iterable[Sequence[str]], last: Sequence[str]) -> Table:
    """A rich table whose columns are ``left``, then the right-aligned ``right``, then ``last``."""
    from rich.table import Table

    table = Table()
    for column in (*left, *right, *last):
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
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
