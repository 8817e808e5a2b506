"""The cost of a network and of its modules, as data and as tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edge_sk.errors import InputError, shown

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass(frozen=True)
class ModuleCost:
    """What one module costs, its children included."""

    type: str  # class name
    params: int  # a shared parameter counts once
    macs: int  # multiply-accumulates of convolutions and matrix products
    gate_macs: int  # those of them inside channel attention
    activations: int  # elements that convolutions and matrix products write
    elementwise: int  # elements that all other operators go over


class FeatureMap(NamedTuple):
    """A tensor and the module that made it."""

    shape: tuple[int, ...]
    module: str

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} ({self.module or 'network'})"


class ModuleTable(dict[str, ModuleCost]):
    """Costs by module name, in the order of the modules; the network's own name is ``""``."""

    def __str__(self) -> str:
        return _plain_text(self.table())

    def table(self) -> Table:
        """Return a rich table with one row per module, children indented."""
        rows = []
        for name, cost in self.items():
            numbers = (cost.params, cost.macs, cost.gate_macs, cost.elementwise, cost.activations)
            title = f"{'  ' * _level(name)}{name.split('.')[-1] or '(network)'}"
            rows.append([title, cost.type, *(f"{number:,}" for number in numbers)])
        header = ["module", "class", "params", "MACs", "in gates", "elementwise", "activations"]
        return rich_table(header, rows, "llrrrrr")


@dataclasses.dataclass(frozen=True)
class Profile(ModuleCost):
    """What a network costs for one input. See :mod:`edge_sk.profiling` for the conventions."""

    name: str  # architecture or class
    input_size: tuple[int, ...]  # batch included
    modules: ModuleTable
    operators: dict[str, int]  # MACs by operator
    elementwise_operators: dict[str, int]  # elements by operator
    largest_feature_map: FeatureMap  # the largest tensor that an operator wrote
    unsupported: dict[str, int]  # operators that are not counted, and how often each ran

    def by_module(self, depth: int | None = 1) -> ModuleTable:
        """Return the costs of the modules down to ``depth`` levels below the network (``None``: all).

        Raises:
            InputError: A negative depth.
        """
        if depth is not None and (not isinstance(depth, int) or depth < 0):
            raise InputError(f"depth {shown(depth)} is negative or no number; 0 is the network, None is every module")
        return ModuleTable(
            (name, cost) for name, cost in self.modules.items() if depth is None or _level(name) <= depth
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the modules, as plain data."""
        entry = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del entry["type"], entry["modules"]
        largest = self.largest_feature_map
        return entry | {"largest_feature_map": largest._asdict() | {"elements": largest.elements}}

    def __str__(self) -> str:
        lines = [
            f"{self.name}, input {'x'.join(map(str, self.input_size))}",
            f"  parameters           {self.params:>15,}",
            f"  MACs                 {self.macs:>15,}  convolutions and matrix products, batch norm folded",
            f"    inside gates       {self.gate_macs:>15,}  channel attention",
            f"  activations          {self.activations:>15,}  written by convolutions and matrix products",
            f"  elementwise          {self.elementwise:>15,}  elements in all other operators",
            f"  largest feature map  {self.largest_feature_map.elements:>15,}  {self.largest_feature_map}",
        ]
        return "\n".join([*lines, *([f"  not counted: {_unsupported_text(self)}"] if self.unsupported else [])])


def comparison(profiles: Sequence[Profile]) -> Table:
    """Return a rich table with one row per network; it lists uncounted operators if there are any."""
    header = ["network", "input", "params M", "MACs M", "in gates M", "elementwise M", "activations M"]
    rows = []
    for cost in profiles:
        numbers = ((cost.params, 3), (cost.macs, 2), (cost.gate_macs, 3), (cost.elementwise, 2), (cost.activations, 2))
        millions = [f"{number / 1e6:,.{digits}f}" for number, digits in numbers]
        rows.append([cost.name, "x".join(map(str, cost.input_size[1:])), *millions, str(cost.largest_feature_map)])
    header, align = [*header, "largest feature map"], "lrrrrrrl"
    if any(cost.unsupported for cost in profiles):
        header, align = [*header, "not counted"], f"{align}l"
        rows = [[*row, _unsupported_text(cost)] for row, cost in zip(rows, profiles, strict=True)]
    return rich_table(header, rows, align)


def _level(name: str) -> int:
    """Return how far a module is below the network, which is at 0."""
    return name.count(".") + 1 if name else 0


def _unsupported_text(cost: Profile) -> str:
    return ", ".join(f"{name.removeprefix('aten::')} x{times}" for name, times in cost.unsupported.items())


def rich_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str, title: str | None = None) -> Table:
    """Return a rich table; ``align`` has ``l`` or ``r`` for each column."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column, side in zip(header, align, strict=True):
        table.add_column(column, justify="right" if side == "r" else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def print_table(table: Table) -> None:
    """Print a rich table: in colours on a terminal; elsewhere as plain text of any width."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(table)
    else:
        print(_plain_text(table))


def _plain_text(table: Table) -> str:
    from rich.console import Console

    console = Console(width=1000, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")
