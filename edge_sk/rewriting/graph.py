"""Trace a module and note the rank and type of every node, for the steps to look up."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from edge_sk import tracing
from edge_sk.rewriting.verification import run

Layer = TypeVar("Layer", bound=nn.Module)


class TracedModule(fx.GraphModule):
    """A graph module that keeps the plain attributes of the module it was traced from, in copies too."""

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        twin = super().__deepcopy__(memo)
        carry_attributes(self, twin)
        return twin


def carry_attributes(source: nn.Module, target: nn.Module) -> None:
    """Give a module the public plain attributes of another (``default_cfg``, ``num_classes``, ...) that it lacks."""
    of_class = [name for name in ("default_cfg", "pretrained_cfg", "num_classes") if hasattr(source, name)]
    for name in (*of_class, *vars(source)):
        if not name.startswith("_") and not hasattr(target, name):
            value = getattr(source, name)
            setattr(target, name, dict(value) if type(value) is dict else value)


def shuffle_functions() -> tuple[Any, ...]:
    """The functions that interleave channel groups, ``f(x, groups)``: torch's, and torchvision's where it is loaded."""
    torchvision = sys.modules.get("torchvision.models.shufflenetv2")
    return (torch.channel_shuffle, *([torchvision.channel_shuffle] if torchvision else []))


class Tracer(tracing.Tracer):
    """Keeps fused units, channel shuffles, timm's norms with activation and modules with hooks whole, too."""

    def __init__(self) -> None:
        super().__init__(shuffle_functions())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays one node."""
        whole = getattr(m, "fx_leaf", False) or tracing.is_norm_act(m) or tracing.hooks(m)
        return bool(whole) or super().is_leaf_module(m, module_qualified_name)


def trace(module: nn.Module, arguments: Sequence[Any]) -> TracedModule:
    """Trace a copy of a module in eval mode with the arguments of a call, see :meth:`edge_sk.tracing.Tracer.follow`.

    Raises:
        Exception: Whatever its Python code raises when it meets a symbolic value.
    """
    twin = copy.deepcopy(module)  # whose forward may keep symbolic values
    traced = TracedModule(twin, Tracer().follow(twin, arguments), class_name=type(module).__name__)
    carry_attributes(module, traced)
    finish(traced)
    annotate(traced, arguments)
    return traced


def annotate(graph: fx.GraphModule, arguments: Sequence[Any]) -> None:
    """Run a graph and note what every node computes, for :func:`known`; its type is ``meta["type"]``."""
    run(ShapeProp(graph).propagate, arguments)


def known(node: Any) -> TensorMetadata | None:
    """Shape and type of the tensor that a node computes; ``None`` for other values, and for nodes that have not run."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return meta if isinstance(meta, TensorMetadata) else None


def is_map(node: Any) -> bool:
    """Whether a node computes a batch of floating-point feature maps, ``(N, C, H, W)``."""
    tensor = known(node)
    return tensor is not None and len(tensor.shape) == 4 and tensor.dtype.is_floating_point


def calls(node: fx.Node, functions: Sequence[Callable[..., Any]], methods: Sequence[str] = ()) -> bool:
    """Whether a node calls one of these functions or methods of a tensor."""
    return node.target in (functions if node.op == "call_function" else methods if node.op == "call_method" else ())


def argument(node: fx.Node, position: int, *names: str, default: Any = None) -> Any:
    """An argument of a call by its position, or by one of its names."""
    if len(node.args) > position:
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def called_module(graph: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that a node calls."""
    calls_module = isinstance(node, fx.Node) and node.op == "call_module"
    return graph.get_submodule(str(node.target)) if calls_module else None


class Layers:
    """The layers of a graph that a step may change: called at one place, without hooks and shared parameters."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self._calls = Counter(called_module(graph, node) for node in graph.graph.find_nodes(op="call_module"))
        self._shared = tracing.shared_parameters(graph)

    def own(self, node: Any, kind: type[Layer]) -> Layer | None:
        """The layer that a node calls with one tensor, if it is exactly of this kind and may be changed."""
        module = called_module(self.graph, node)
        if not isinstance(module, kind) or type(module) is not kind or self._calls[module] > 1:
            return None
        if len(node.args) != 1 or node.kwargs:
            return None
        hooked = any(tracing.hooks(part) for part in module.modules())
        return module if not hooked and self._shared.isdisjoint(module.parameters()) else None


def replace_node(node: fx.Node, value: fx.Node) -> None:
    """Let a node's readers read another value of its shape and type, and drop it."""
    if "tensor_meta" in node.meta:
        value.meta.setdefault("tensor_meta", node.meta["tensor_meta"])
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def finish(graph: fx.GraphModule) -> None:
    """Drop what nothing reads and what writes nothing, and generate the code again."""
    graph.graph.eliminate_dead_code(tracing.writes)
    graph.graph.lint()
    graph.recompile()
    graph.delete_all_unused_submodules()
