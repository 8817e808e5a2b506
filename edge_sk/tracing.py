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
from torch.nn import functional as F
from torch.utils import _pytree

# Elementwise, with the same function for every channel but for PReLU.
ACTIVATIONS = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,  # ReLU6 too
    nn.LeakyReLU,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.SELU,
    nn.Sigmoid,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
)
# The same as functions and methods.
ACTIVATION_FUNCTIONS = (
    F.elu,
    F.gelu,
    F.hardsigmoid,
    F.hardswish,
    F.hardtanh,
    F.leaky_relu,
    F.mish,
    F.relu,
    F.relu6,
    F.relu_,
    F.silu,
    F.softplus,
    torch.relu,
    torch.relu_,
    torch.sigmoid,
    torch.tanh,
)
ACTIVATION_METHODS = ("relu", "relu_", "sigmoid", "tanh")


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
        raise fx.proxy.TraceError("symbolically traced variables cannot be looked up in a set or a dictionary")

    def __str__(self) -> str:
        raise fx.proxy.TraceError("symbolically traced variables cannot be written as text")


class _TensorProxy(_Proxy):
    """A symbolic tensor, which ``isinstance`` takes for one."""

    __class__ = Tensor  # type: ignore[assignment]


def _writes_in_place(function: Any) -> Any:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


# fx itself turns `x += y` into `x = x + y`, which other names of the tensor do not see.
_IN_PLACE = (
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
    operator.iand,
    operator.ior,
    operator.ixor,
)
for _function in _IN_PLACE:
    setattr(_Proxy, f"__{_function.__name__}__", _writes_in_place(_function))


class Tracer(fx.Tracer):
    """Keeps torch's layers whole, and what timm and torchvision mark or need as such.

    Args:
        functions: More functions that stay one node.
    """

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

    def follow(self, module: nn.Module, arguments: Sequence[Any] | None = None) -> fx.Graph:
        """Trace a module in eval mode.

        Args:
            module: It may be left in disorder where its ``forward`` writes attributes: pass a copy.
            arguments: Of a call. ``None``, booleans and texts among them are constants of the graph, as are the
                defaults of arguments not given; the graph refuses other values. Without, the first argument is given.

        Raises:
            Exception: Whatever its Python code raises when it meets a symbolic value: it branches on its data.
            TraceError: It writes into a tensor that it makes itself, which the graph would keep between calls.
        """
        parameters = [
            parameter
            for parameter in inspect.signature(module.forward).parameters.values()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        given = parameters[:1] if arguments is None else parameters[: len(arguments)]
        constants = {p.name: p.default for p in parameters if p not in given and p.default is not p.empty}
        for parameter, value in zip(given, arguments or (), strict=False):
            if value is None or isinstance(value, bool | str):
                constants[parameter.name] = value
        self.given_tensors = {
            p.name for p, value in zip(given, arguments or (), strict=False) if isinstance(value, Tensor)
        }
        graph = self.trace(module, concrete_args=constants or None)
        # fx numbers constants' names; callers know them without.
        for node, parameter in zip(graph.find_nodes(op="placeholder"), parameters, strict=False):
            if parameter.name in constants:
                node.target = parameter.name
        for node in list(graph.find_nodes(op="call_function", target=fx._symbolic_trace._assert_is_none)):
            # A graph with this function, saved and loaded, breaks torch.fx in the process (torch 2.14).
            with graph.inserting_before(node):
                graph.call_function(
                    torch._assert, (graph.call_function(operator.eq, (node.args[0], None)), node.args[1])
                )
            graph.erase_node(node)
        for node in graph.find_nodes(op="get_attr"):
            if any(writes(user) for user in node.users):
                raise fx.proxy.TraceError(f"it writes into {node.target}, which the graph would keep between calls")
        return graph


def writes(node: fx.Node) -> bool:
    """Whether a node matters although nothing reads its result: it writes into a tensor, or checks a constant."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        parts = owner.get_submodule(str(node.target)).modules() if owner is not None else ()
        return any(getattr(part, "inplace", False) or getattr(part, "_is_impure", False) for part in parts)
    if node.is_impure() or node.target in (*_IN_PLACE, operator.setitem) or node.kwargs.get("out") is not None:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return node.op in ("call_method", "call_function") and (in_place or bool(node.kwargs.get("inplace")))


def hooks(module: nn.Module) -> list[Any]:
    """The hooks of a module, forward and backward."""
    kinds = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return [hook for kind in kinds for hook in kind.values()]


class Sharing:
    """Which modules of a model hold parameters that another module holds too, or that its forward reads directly."""

    def __init__(self, model: nn.Module) -> None:
        self._owners = Counter(id(tensor) for module in model.modules() for tensor in module.parameters(recurse=False))
        if isinstance(model, fx.GraphModule):
            read = [node.target for node in model.graph.find_nodes(op="get_attr")]
            self._owners.update(id(tensor) for name, tensor in model.named_parameters() if name in read)

    def ties(self, module: nn.Module) -> bool:
        """Whether one of the module's parameters is another module's too."""
        return any(self._owners[id(parameter)] > 1 for parameter in module.parameters())


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a structure of tuples, lists and dictionaries."""
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
