"""The cost of a network, of its modules, and of its largest tensor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge_sk.errors import InputError
from edge_sk.profiling.tables import make_table, plain_text

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass(frozen=True)
class ModuleCost:
    """What one module costs, its children included.

    Args:
        type: Class name.
        params: Parameters; one that is shared counts once.
        macs: Multiply-accumulates of convolutions and matrix products.
        gate_macs: Those of them inside channel attention.
        activations: Elements that convolutions and matrix products write.
        elementwise: Elements that all other operators go over.
    """

    type: str
    params: int
    macs: int
    gate_macs: int
    activations: int
    elementwise: int


@dataclasses.dataclass(frozen=True)
class FeatureMap:
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
        return plain_text(self.table())

    def table(self) -> Table:
        """A rich table with one row per module, children indented."""
        rows = (
            (
                f"{'  ' * _level(name)}{name.split('.')[-1] or '(network)'}",
                cost.type,
                *(f"{n:,}" for n in (cost.params, cost.macs, cost.gate_macs, cost.elementwise, cost.activations)),
            )
            for name, cost in self.items()
        )
        return make_table(
            ("module", "class"), ("params", "MACs", "in gates", "elementwise", "activations"), rows, last=()
        )


@dataclasses.dataclass(frozen=True)
class Profile(ModuleCost):
    """What a network costs for one input. See :mod:`edge_sk.profiling` for the conventions.

    Args:
        name: Architecture or class.
        input_size: Shape of the input, batch included.
        modules: Cost of every module.
        operators: MACs by operator.
        elementwise_operators: Elementwise work by operator.
        largest_feature_map: The largest tensor that an operator wrote.
        unsupported: Operators that are not counted, and how often each ran.
    """

    name: str
    input_size: tuple[int, ...]
    modules: ModuleTable
    operators: dict[str, int]
    elementwise_operators: dict[str, int]
    largest_feature_map: FeatureMap
    unsupported: dict[str, int]

    def by_module(self, depth: int | None = 1) -> ModuleTable:
        """Costs of the modules down to ``depth`` levels below the network (``None``: all).

        Raises:
            InputError: A negative depth.
        """
        if depth is not None and depth < 0:
            raise InputError(f"depth {depth} is negative; 0 is the network, 1 its children, None every module")
        return ModuleTable(
            (name, cost) for name, cost in self.modules.items() if depth is None or _level(name) <= depth
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the modules, as plain data."""
        entry = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del entry["type"], entry["modules"]
        largest = dataclasses.asdict(self.largest_feature_map) | {"elements": self.largest_feature_map.elements}
        return entry | {"largest_feature_map": largest}

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
        if self.unsupported:
            lines.append(f"  not counted: {_unsupported_text(self)}")
        return "\n".join(lines)


def comparison(profiles: Sequence[Profile], title: str | None = None) -> Table:
    """A rich table with one row per network; operators that are not counted get a column if there are any."""
    unsupported = any(one.unsupported for one in profiles)
    rows = (
        (
            one.name,
            "x".join(map(str, one.input_size[1:])),
            f"{one.params / 1e6:,.3f}",
            f"{one.macs / 1e6:,.2f}",
            f"{one.gate_macs / 1e6:,.3f}",
            f"{one.elementwise / 1e6:,.2f}",
            f"{one.activations / 1e6:,.2f}",
            str(one.largest_feature_map),
            *([_unsupported_text(one)] if unsupported else []),
        )
        for one in profiles
    )
    table = make_table(
        ("network",),
        ("input", "params M", "MACs M", "in gates M", "elementwise M", "activations M"),
        rows,
        last=("largest feature map", *(["not counted"] if unsupported else [])),
    )
    table.title, table.title_justify = title, "left"
    return table


def _level(name: str) -> int:
    """How far below the network a module is; the network itself is at 0."""
    return name.count(".") + 1 if name else 0


def _unsupported_text(one: Profile) -> str:
    return ", ".join(f"{name.removeprefix('aten::')} x{times}" for name, times in one.unsupported.items())
