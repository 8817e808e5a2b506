"""The cost of a network, of its modules, and of its largest tensor."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from edge_sk.errors import InputError


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
        """Write shape and module."""
        return f"{'x'.join(map(str, self.shape))} ({self.module or 'network'})"


class ModuleTable(dict[str, ModuleCost]):
    """Costs by module name, in the order of the modules; the network's own name is ``""``."""

    def __str__(self) -> str:
        """Write the costs as a table."""
        # At first use: the tables are made of these classes.
        from edge_sk.profiling.tables import module_table, plain_text

        return plain_text(module_table(self))


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a network costs for one input. See :mod:`edge_sk.profiling` for the conventions.

    Args:
        name: Architecture or class.
        input_size: Shape of the input, batch included.
        modules: Cost of every module.
        operators: MACs by operator.
        elementwise_operators: Elementwise work by operator.
        largest_feature_map: The largest tensor that an operator wrote.
        unsupported: Operators that no one counted, and how often each was met.
        fvcore_total: ``fvcore.nn.FlopCountAnalysis(model, input).total()``.
    """

    name: str
    input_size: tuple[int, ...]
    modules: ModuleTable
    operators: dict[str, int]
    elementwise_operators: dict[str, int]
    largest_feature_map: FeatureMap
    unsupported: dict[str, int]
    fvcore_total: int

    @property
    def params(self) -> int:
        """Parameters, buffers not included."""
        return self.modules[""].params

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and matrix products, batch norm folded."""
        return self.modules[""].macs

    @property
    def gate_macs(self) -> int:
        """MACs inside channel attention (part of :attr:`macs`)."""
        return self.modules[""].gate_macs

    @property
    def activations(self) -> int:
        """Elements that convolutions and matrix products write."""
        return self.modules[""].activations

    @property
    def elementwise(self) -> int:
        """Elements that all other operators go over."""
        return self.modules[""].elementwise

    def by_module(self, depth: int | None = 1) -> ModuleTable:
        """Costs of the modules down to ``depth`` levels below the network (``None``: all).

        Raises:
            InputError: A negative depth.
        """
        if depth is not None and depth < 0:
            raise InputError(f"depth {depth} is negative; 0 is the network, 1 its children, None every module")
        return ModuleTable((name, cost) for name, cost in self.modules.items() if depth is None or level(name) <= depth)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the modules, as plain data."""
        return {
            "name": self.name,
            "input_size": list(self.input_size),
            "params": self.params,
            "macs": self.macs,
            "gate_macs": self.gate_macs,
            "activations": self.activations,
            "elementwise": self.elementwise,
            "largest_feature_map": {
                "shape": list(self.largest_feature_map.shape),
                "elements": self.largest_feature_map.elements,
                "module": self.largest_feature_map.module,
            },
            "operators": self.operators,
            "elementwise_operators": self.elementwise_operators,
            "unsupported": self.unsupported,
            "fvcore_total": self.fvcore_total,
        }

    def __str__(self) -> str:
        """Write the totals, one per line."""
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
            lines.append(f"  not counted: {unsupported_text(self)}")
        return "\n".join(lines)


def level(name: str) -> int:
    """How far below the network a module is; the network itself is at 0."""
    return name.count(".") + 1 if name else 0


def unsupported_text(one: Profile) -> str:
    """The operators that no one counted, on one line."""
    return ", ".join(f"{name.removeprefix('aten::')} x{times}" for name, times in one.unsupported.items())
