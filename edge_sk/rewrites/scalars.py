"""Whole-number constants become floats: a Python integer leaves a conversion of its own outside the delegate."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from edge_sk.rewrites.trace import called_module, replace_module

_BINARY = {operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div}
_BINARY_METHODS = {"add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_"}
_HARD_SIGMOIDS = ("hard_sigmoid", "hardsigmoid")


class HardSigmoid(nn.Module):
    """``clamp(x / 6 + 1 / 2, 0, 1)`` with float constants: torch's own decomposes into integers.

    Shape:
        - Any, unchanged
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply to every value."""
        return hard_sigmoid(x)


def hard_sigmoid(x: Tensor) -> Tensor:
    """The function of :class:`HardSigmoid`."""
    return torch.clamp(x * (1 / 6) + 0.5, 0.0, 1.0)


def use_float_constants(graph: fx.GraphModule) -> int:
    """Make integer operands of tensor arithmetic floats."""
    sizes = _sizes(graph)
    count = 0
    for node in graph.graph.nodes:
        binary = node.target in (_BINARY if node.op == "call_function" else _BINARY_METHODS)
        if not binary or node in sizes or node.op == "call_module" or len(node.args) != 2:
            continue
        args = tuple(float(a) if isinstance(a, int) and not isinstance(a, bool) else a for a in node.args)
        if any(type(new) is not type(old) for new, old in zip(args, node.args, strict=True)):
            node.args = args
            count += 1
    return count


def _sizes(graph: fx.GraphModule) -> set[fx.Node]:
    """Nodes that compute shapes rather than tensors."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        asks = (node.op == "call_method" and node.target in ("size", "dim", "numel")) or (
            node.target is getattr and node.args[1] in ("shape", "ndim")
        )
        arithmetic = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
        inputs = node.all_input_nodes
        if asks or (arithmetic and inputs and all(source in found for source in inputs)):
            found.add(node)
    return found


def expand_hard_sigmoid(graph: fx.GraphModule) -> int:
    """Rewrite hard-sigmoid, as a module or a function, with float constants."""
    count = 0
    for node in graph.graph.nodes:
        module: Any = called_module(graph, node)
        name = type(module).__name__ if module is not None else getattr(node.target, "__name__", "")
        if name.lower() not in _HARD_SIGMOIDS:
            continue
        if module is not None:
            replace_module(graph, node, HardSigmoid())
        elif node.op == "call_function":
            node.target, node.args, node.kwargs = hard_sigmoid, node.args[:1], {}
        else:
            continue
        count += 1
    return count
