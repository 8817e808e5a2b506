"""Trace a network with torch.fx: the one tracer, and the one table of activations."""

from __future__ import annotations

import inspect
import operator
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _assert_is_none
from torch.fx.proxy import TraceError
from torch.nn import functional as F

_MODULES = """
    CELU ELU GELU Hardsigmoid Hardswish Hardtanh LeakyReLU Mish PReLU ReLU ReLU6 SELU Sigmoid SiLU Softplus Tanh
"""
_FUNCTIONS = "elu gelu hardsigmoid hardswish hardtanh leaky_relu mish relu relu6 relu_ silu softplus"
# Elementwise, with the same function for every channel but for PReLU; the same as methods, and as functions.
ACTIVATIONS = tuple(getattr(nn, name) for name in _MODULES.split())
ACTIVATION_METHODS = ("relu", "relu_", "sigmoid", "tanh")
ACTIVATION_FUNCTIONS = (
    *(getattr(F, name) for name in _FUNCTIONS.split()),
    *(getattr(torch, name) for name in ACTIVATION_METHODS),
)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an elementwise activation of torch's or timm's."""
    return isinstance(module, ACTIVATIONS) or type(module).__module__.startswith("timm.layers.activations")


def timm_layers() -> Any:
    """``timm.layers`` if it has been imported, as it has where a network of timm's exists; else ``None``."""
    return sys.modules.get("timm.layers")


def is_norm_act(module: nn.Module) -> bool:
    """Whether a module is timm's batch norm with an activation inside."""
    timm = timm_layers()
    return timm is not None and type(module) is timm.BatchNormAct2d


def calls_activation(node: fx.Node) -> bool:
    """Whether a node calls an activation as a function or a method."""
    known = {"call_function": ACTIVATION_FUNCTIONS, "call_method": ACTIVATION_METHODS}.get(node.op, ())
    return node.target in known


class _Proxy(fx.Proxy):
    """A symbolic value that writes in place where a tensor does, and that no dictionary or text can be made of."""

    def __hash__(self) -> int:
        raise TraceError("symbolically traced variables cannot be looked up in a set or a dictionary")

    def __str__(self) -> str:
        raise TraceError("symbolically traced variables cannot be written as text")


class _TensorProxy(_Proxy):
    """A symbolic tensor, which ``isinstance`` takes for one."""

    __class__ = Tensor  # type: ignore[assignment]


def _writes_in_place(function: Any) -> Any:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


# fx itself turns `x += y` into `x = x + y`, which other names of the tensor do not see.
_IN_PLACE = {
    name: getattr(operator, name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
}
for _name, _function in _IN_PLACE.items():
    setattr(_Proxy, f"__{_name}__", _writes_in_place(_function))


class Tracer(fx.Tracer):
    """Keeps torch's layers whole, what timm and torchvision mark or need as such, and the functions given."""

    def __init__(self, functions: Sequence[Any] = ()) -> None:
        timm = timm_layers()
        self.given_tensors: set[str] = set()
        self.opaque: tuple[Any, ...] = tuple(timm.get_notrace_modules()) if timm else ()
        functions = (*functions, *(timm.get_notrace_functions() if timm else ()))
        # torchvision's own feature extraction keeps the functions of torchvision.ops whole, too.
        modules: Any = tuple(sys.modules[name] for name in ("math", "torchvision.ops") if name in sys.modules)
        super().__init__(autowrap_modules=modules, autowrap_functions=functions, param_shapes_constant=True)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The symbolic value of a node."""
        return (_TensorProxy if node.op == "placeholder" and node.target in self.given_tensors else _Proxy)(node, self)

    def create_arg(self, a: Any) -> Any:
        """The argument of a node, for a value met in tracing."""
        return a.node if type(a) is _TensorProxy else super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays one node."""
        return type(m) in self.opaque or super().is_leaf_module(m, module_qualified_name)

    def follow(self, module: nn.Module, arguments: Sequence[Any] = (...,)) -> fx.Graph:
        """Trace a module in eval mode.

        Args:
            module: It may be left in disorder where its ``forward`` writes attributes: pass a copy.
            arguments: Of a call; ``...``: any value. ``None``, booleans and texts are constants of the graph, as are
                the defaults of arguments not given; the graph refuses other values.

        Raises:
            Exception: Whatever its Python code raises when it meets a symbolic value: it branches on its data.
            TraceError: It writes into a tensor that it makes itself, which the graph would keep between calls.
        """
        parameters = inspect.signature(module.forward).parameters.values()
        parameters = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        given = {parameter.name: value for parameter, value in zip(parameters, arguments, strict=False)}
        self.given_tensors = {name for name, value in given.items() if isinstance(value, Tensor)}
        constants = {name: value for name, value in given.items() if value is None or isinstance(value, bool | str)}
        constants |= {p.name: p.default for p in parameters if p.name not in given and p.default is not p.empty}
        graph = self.trace(module, concrete_args=constants or None)
        # fx numbers constants' names; callers know them without.
        for node, parameter in zip(graph.find_nodes(op="placeholder"), parameters, strict=False):
            if parameter.name in constants:
                node.target = parameter.name
        for node in list(graph.find_nodes(op="call_function", target=_assert_is_none)):
            # A graph with this function, saved and loaded, breaks torch.fx in the process (torch 2.14).
            with graph.inserting_before(node):
                is_none = graph.call_function(operator.eq, (node.args[0], None))
                graph.call_function(torch._assert, (is_none, node.args[1]))
            graph.erase_node(node)
        for node in graph.find_nodes(op="get_attr"):
            if any(writes(user) for user in node.users):
                raise TraceError(f"it writes into {node.target}, which the graph would keep between calls")
        return graph


def writes(node: fx.Node) -> bool:
    """Whether a node matters although nothing reads its result: it writes into a tensor, or checks a constant."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        parts = owner.get_submodule(str(node.target)).modules() if owner is not None else ()
        return any(getattr(part, "inplace", False) or getattr(part, "_is_impure", False) for part in parts)
    if node.is_impure() or node.target in (*_IN_PLACE.values(), operator.setitem) or node.kwargs.get("out") is not None:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return node.op in ("call_method", "call_function") and (in_place or bool(node.kwargs.get("inplace")))


def hooks(module: nn.Module) -> list[Any]:
    """The hooks of a module, forward and backward."""
    kinds = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return [hook for kind in kinds for hook in kind.values()]


def shared_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that several modules of a model hold, or that the forward of a traced model reads directly."""
    holders = Counter(parameter for module in model.modules() for parameter in module.parameters(recurse=False))
    shared = {parameter for parameter, count in holders.items() if count > 1}
    if isinstance(model, fx.GraphModule):
        read = {node.target for node in model.graph.find_nodes(op="get_attr")}
        shared |= {parameter for name, parameter in model.named_parameters() if name in read}
    return shared
