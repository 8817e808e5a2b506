"""Trace a module and note the rank and type of every node, for the steps to look up."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree

from edge_sk import tracing

Layer = TypeVar("Layer", bound=nn.Module)


class TracedModule(fx.GraphModule):
    """A graph module that keeps the plain attributes of the module it was traced from, in copies too."""

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        twin = super().__deepcopy__(memo)
        carry_attributes(self, twin)
        return twin


def carry_attributes(source: nn.Module, target: nn.Module) -> None:
    """Give a module the public plain attributes of another (``default_cfg``, ``num_classes``, ...) that it lacks."""
    named = {
        name: getattr(source, name)
        for name in ("default_cfg", "pretrained_cfg", "num_classes")
        if hasattr(source, name)
    }
    for name, value in (named | vars(source)).items():
        if not name.startswith("_") and not hasattr(target, name):
            setattr(target, name, dict(value) if type(value) is dict else value)


def shuffle_functions() -> tuple[Any, ...]:
    """The functions that interleave channel groups, ``f(x, groups)``, in the libraries that are loaded."""
    names = ("edge_sk.models.shufflenetv2", "torchvision.models.shufflenetv2")
    return tuple(sys.modules[name].channel_shuffle for name in names if name in sys.modules)


class Tracer(tracing.Tracer):
    """Keeps deploy-form units, channel shuffles, timm's norms with activation and modules with hooks whole, too."""

    def __init__(self) -> None:
        super().__init__(shuffle_functions())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays one node."""
        whole = getattr(m, "fx_leaf", False) or tracing.is_norm_act(m) or tracing.hooks(m)
        return bool(whole) or super().is_leaf_module(m, module_qualified_name)


def trace(module: nn.Module, arguments: Sequence[Any] | None = None) -> TracedModule:
    """Trace a module in eval mode; it is not changed.

    Args:
        module: What to trace.
        arguments: Of a call, see :meth:`edge_sk.tracing.Tracer.follow`; with them, nodes know rank and type.

    Raises:
        Exception: Whatever its Python code raises when it meets a symbolic value.
    """
    twin = copy.deepcopy(module)  # whose forward may keep symbolic values
    traced = TracedModule(twin, Tracer().follow(twin, arguments), class_name=type(module).__name__)
    carry_attributes(module, traced)
    finish(traced)
    if arguments is not None:
        with torch.no_grad():
            annotate(traced, *_pytree.tree_map_only(Tensor, torch.clone, tuple(arguments)))  # it may write into them
    return traced


@dataclasses.dataclass(frozen=True)
class Known:
    """What a run showed about the tensor that a node computes."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class _Annotating(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["known"] = Known(tuple(result.shape), result.dtype)
        n.meta["is_number"] = isinstance(result, int)
        return result

    def output(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _plain(args[0])


def _plain(value: Any) -> Any:
    """Turn fx's immutable lists and dictionaries into ordinary ones, which the generated code returns."""
    if isinstance(value, immutable_dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, immutable_list):
        return [_plain(part) for part in value]
    if type(value) is tuple:
        return tuple(map(_plain, value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_plain, value))
    return value


def annotate(graph: fx.GraphModule, *arguments: Any) -> Any:
    """Run a graph and note what every node computes, for :func:`known`; returns what it returns."""
    return _Annotating(graph).run(*arguments)


def known(node: Any) -> Known | None:
    """Shape and type of the tensor that a node computes; ``None`` for other values, and for nodes that have not run."""
    return node.meta.get("known") if isinstance(node, fx.Node) else None


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
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph.get_submodule(str(node.target))
    return None


class Layers:
    """The layers of a graph that a step may change: called at one place, without hooks and shared parameters."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self._calls = Counter(id(called_module(graph, node)) for node in graph.graph.find_nodes(op="call_module"))
        self._sharing = tracing.Sharing(graph)

    def own(self, node: Any, kind: type[Layer]) -> Layer | None:
        """The layer that a node calls with one tensor, if it is exactly of this kind and may be changed."""
        module = called_module(self.graph, node)
        if not isinstance(module, kind) or type(module) is not kind or self._calls[id(module)] > 1:
            return None
        if len(node.args) != 1 or node.kwargs:
            return None
        hooked = any(tracing.hooks(part) for part in module.modules())
        return None if hooked or self._sharing.ties(module) else module


def add_module(graph: fx.GraphModule, name: str, module: nn.Module) -> str:
    """Add a module under a name that is free, and return the name."""
    taken = {path for path, _ in graph.named_modules()}
    while name in taken:
        name += "_"
    graph.add_submodule(name, module)
    return name


def replace_module(graph: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Put another module where a node calls one."""
    graph.set_submodule(str(node.target), module)


def replace_node(node: fx.Node, value: fx.Node) -> None:
    """Let a node's readers read another value of its shape and type, and drop it."""
    if "known" in node.meta:
        value.meta.setdefault("known", node.meta["known"])
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def finish(graph: fx.GraphModule) -> None:
    """Drop what nothing reads and what writes nothing, and generate the code again."""
    graph.graph.eliminate_dead_code(tracing.writes)
    graph.graph.lint()
    graph.recompile()
    graph.delete_all_unused_submodules()


IS_CALL = ("call_function", "call_method", "call_module")


def is_elementwise(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node maps each value of one tensor by itself, whatever its channel."""
    if node.op not in IS_CALL or len(node.all_input_nodes) != 1:
        return False
    module = called_module(graph, node)
    if module is not None:
        alike = isinstance(module, (*tracing.ACTIVATIONS, nn.Identity, nn.Dropout)) and not isinstance(module, nn.PReLU)
        return alike and not tracing.hooks(module)
    return tracing.calls_activation(node) or calls(node, (torch.clamp,), ("clamp", "contiguous"))
