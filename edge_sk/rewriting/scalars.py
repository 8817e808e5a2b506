"""Turn whole-number constants into floats: a Python integer adds a conversion that the delegate does not take."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from edge_sk.rewriting.graph import argument, called_module, calls, known, replace_module
from edge_sk.tracing import hooks

_BINARY = (operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div)
_BINARY_METHODS = ("add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_")


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
    """Make integer operands of floating-point tensors' arithmetic floats."""
    count = 0
    for node in graph.graph.nodes:
        tensors = [tensor for source in node.all_input_nodes if (tensor := known(source)) is not None]
        if not calls(node, _BINARY, _BINARY_METHODS) or len(node.args) != 2:
            continue
        if not tensors or not all(tensor.dtype.is_floating_point for tensor in tensors):
            continue
        args = tuple(float(a) if isinstance(a, int) and not isinstance(a, bool) else a for a in node.args)
        if any(type(new) is not type(old) for new, old in zip(args, node.args, strict=True)):
            node.args = args
            count += 1
    return count


def expand_hard_sigmoid(graph: fx.GraphModule) -> int:
    """Rewrite hard-sigmoid, as a module or a function, with float constants."""
    count = 0
    for node in graph.graph.nodes:
        module, x = called_module(graph, node), argument(node, 0, "input")
        if type(module) is not nn.Hardsigmoid and not calls(node, (F.hardsigmoid,)):
            continue
        if module is not None and hooks(module):
            continue
        in_place = module.inplace if isinstance(module, nn.Hardsigmoid) else argument(node, 1, "inplace", default=False)
        if in_place and len(x.users) > 1:
            continue  # others read what it writes
        if module is not None:
            replace_module(graph, node, HardSigmoid())
        else:
            node.target, node.args, node.kwargs = hard_sigmoid, (x,), {}
        count += 1
    return count
