"""From modules to fx graphs that the steps can change, and the questions steps ask about them."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import fx, nn

from edge_sk.rewrites.selective import DeploySelectiveKernel


def shuffle_functions() -> tuple[Any, ...]:
    """The functions that interleave channel groups, ``f(x, groups)``, in the libraries that are loaded."""
    names = ("edge_sk.models.shufflenetv2", "torchvision.models.shufflenetv2")
    return tuple(sys.modules[name].channel_shuffle for name in names if name in sys.modules)


class Tracer(fx.Tracer):
    """Keeps torch's layers, deploy-form units and channel shuffles whole, and looks into everything else."""

    def __init__(self) -> None:
        functions = shuffle_functions()
        if "timm.layers" in sys.modules:
            functions += tuple(sys.modules["timm.layers"].get_notrace_functions())
        super().__init__(autowrap_functions=functions, param_shapes_constant=True)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays one node."""
        if isinstance(m, DeploySelectiveKernel) or getattr(m, "fx_leaf", False):
            return True
        if "timm.layers" in sys.modules and type(m) in sys.modules["timm.layers"].get_notrace_modules():
            return True
        return super().is_leaf_module(m, module_qualified_name)


def trace(module: nn.Module) -> fx.GraphModule:
    """Trace a module in eval mode.

    Raises:
        Exception: Whatever its Python code raises when it meets a symbolic value: it branches on its data.
    """
    graph = Tracer().trace(module)
    return fx.GraphModule(module, graph, class_name=type(module).__name__)


def called_module(graph: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that a node calls."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph.get_submodule(str(node.target))
    return None


def call_counts(graph: fx.GraphModule) -> dict[int, int]:
    """How often each module is called, by ``id``: one that is called twice must not be changed for one caller."""
    counts: dict[int, int] = {}
    for node in graph.graph.nodes:
        module = called_module(graph, node)
        if module is not None:
            counts[id(module)] = counts.get(id(module), 0) + 1
    return counts


def replace_module(graph: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Put another module where a node calls one."""
    graph.set_submodule(str(node.target), module)


def finish(graph: fx.GraphModule) -> None:
    """Drop what nothing uses, and generate the code again."""
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    graph.delete_all_unused_submodules()


IS_CALL = ("call_function", "call_method", "call_module")
ELEMENTWISE_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.SiLU,
    nn.GELU,
    nn.Sigmoid,
    nn.Tanh,
    nn.LeakyReLU,
    nn.ELU,
    nn.Identity,
    nn.Dropout,
)
ELEMENTWISE_FUNCTIONS = (
    torch.relu,
    torch.sigmoid,
    torch.clamp,
    nn.functional.relu,
    nn.functional.relu6,
    nn.functional.hardswish,
    nn.functional.hardsigmoid,
    nn.functional.silu,
    nn.functional.gelu,
)


def is_elementwise(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node maps each value of one tensor by itself, whatever its channel."""
    module = called_module(graph, node)
    if module is not None:
        return isinstance(module, ELEMENTWISE_MODULES)
    if node.op == "call_function":
        return node.target in ELEMENTWISE_FUNCTIONS
    return node.op == "call_method" and node.target in ("relu", "sigmoid", "clamp", "contiguous")
