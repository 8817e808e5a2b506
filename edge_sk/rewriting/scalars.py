"""Turn whole-number constants into floats: a Python integer adds a conversion that the delegate does not take."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from edge_sk.rewriting.graph import argument, called_module, calls, known, replace_node
from edge_sk.tracing import hooks

_BINARY = (operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div)
_BINARY += (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_BINARY_METHODS = ("add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_")


def hard_sigmoid(x: Tensor) -> Tensor:
    """``clamp(x / 6 + 1 / 2, 0, 1)`` with float constants: torch's own decomposes into integers."""
    return torch.clamp(x * (1 / 6) + 0.5, 0.0, 1.0)


def use_float_constants(graph: fx.GraphModule) -> int:
    """Make integer operands of floating-point tensors' arithmetic floats."""
    count = 0
    for node in graph.graph.nodes:
        floating = [tensor.dtype.is_floating_point for source in node.all_input_nodes if (tensor := known(source))]
        if not calls(node, _BINARY, _BINARY_METHODS) or len(node.args) != 2 or not floating or not all(floating):
            continue
        args = tuple(float(a) if isinstance(a, int) and not isinstance(a, bool) else a for a in node.args)
        if any(type(new) is not type(old) for new, old in zip(args, node.args, strict=True)):
            node.args = args
            count += 1
    return count


def expand_hard_sigmoid(graph: fx.GraphModule) -> int:
    """Rewrite hard-sigmoid, as a module or a function, with float constants."""
    count = 0
    for node in list(graph.graph.nodes):
        module, x = called_module(graph, node), argument(node, 0, "input")
        if type(module) is nn.Hardsigmoid and not hooks(module):
            in_place = module.inplace
        elif calls(node, (F.hardsigmoid,)):
            in_place = argument(node, 1, "inplace", default=False)
        else:
            continue
        if in_place and len(x.users) > 1:
            continue  # others read what it writes
        with graph.graph.inserting_before(node):
            replace_node(node, graph.graph.call_function(hard_sigmoid, (x,)))
        count += 1
    return count
