"""Count a network's operators during one forward pass."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from edge_sk.profiling.cost import FeatureMap

# Other libraries' channel attention: class names by module. A module that nobody has imported has no instances. Our own
# classes have the attribute ``is_gate``.
GATES = {
    "timm.layers.cbam": ("CbamModule", "LightCbamModule"),
    "timm.layers.eca": ("EcaModule",),
    "timm.layers.selective_kernel": ("SelectiveKernelAttn",),
    "timm.layers.squeeze_excite": ("SEModule", "EffectiveSEModule", "SqueezeExciteCl"),
    "timm.models._efficientnet_blocks": ("SqueezeExcite",),
    "timm.models.senet": ("SEModule",),
    "torchvision.ops.misc": ("SqueezeExcitation",),
}
# Matrix products: label, and which argument is the left matrix.
PRODUCTS = {"addmm": ("linear", 1), "mm": ("linear", 0), "linear": ("linear", 0)}
PRODUCTS |= {"bmm": ("matmul", 0), "baddbmm": ("matmul", 1)}
# Operators that copy or fill. Views are recognised by their schema.
MOVING = re.compile(
    r"cat|stack|clone|copy|to_copy|unsafe_view|roll|flip|as_strided|repeat|index|index_select|index_put|gather|fill|zero|masked_fill"
    r"|\w+_pad(_nd|\dd)|(channel|pixel)_(un)?shuffle|new_\w+|\w+_like"
)
# Operators over every element that torch tags neither as pointwise nor as a reduction.
ELEMENTWISE = re.compile(
    r"\w*(max|avg)_pool\dd|(log_)?softmax|(layer|group|batch)_norm|upsample_\w+|grid_sampler_\dd|cumsum|glu|hardswish|prelu"
)


def fvcore() -> Any:
    """Import ``fvcore.nn`` without torch's warning that one of its losses uses ``torch.jit.script``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
        import fvcore.nn
    return fvcore.nn


class OperatorCounter(TorchDispatchMode):
    """While :meth:`counting`, counts the operators of one model by module.

    Attributes:
        costs: Module name to ``macs``, ``gate_macs``, ``activations`` and ``elementwise``, children included.
        operators: ``macs`` and ``elementwise`` to operator name to count.
        largest: The largest tensor that an operator wrote.
        unsupported: How often each operator ran that this class cannot count.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        gates = tuple(getattr(sys.modules[path], kind) for path in GATES.keys() & sys.modules for kind in GATES[path])
        self._names = {module: name for name, module in model.named_modules()}
        self._gates = {
            name for module, name in self._names.items() if isinstance(module, gates) or hasattr(module, "is_gate")
        }
        self._running = [""]  # names of the modules whose forward runs, the innermost last
        self._convolution_macs = fvcore().jit_handles.conv_flop_count
        self.costs = defaultdict[str, Counter[str]](lambda: Counter(macs=0, gate_macs=0, activations=0, elementwise=0))
        self.operators: dict[str, Counter[str]] = {"macs": Counter(), "elementwise": Counter()}
        self.largest = FeatureMap((0,), "")
        self.unsupported: Counter[str] = Counter()

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Enter the mode and follow which module runs. The model's own hooks are not touched."""

        def enter(module: nn.Module, _: Any) -> None:
            self._running.append(self._names.get(module, self._running[-1]))

        def leave(*_: Any) -> None:
            self._running.pop()

        with contextlib.ExitStack() as stack:
            stack.callback(hooks.register_module_forward_pre_hook(enter).remove)
            stack.callback(hooks.register_module_forward_hook(leave).remove)
            stack.enter_context(self)
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        written = next((leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)), None)
        reads = any(isinstance(leaf, Tensor) for leaf in _pytree.tree_leaves(args))
        # Integers are sizes and positions. An operator that reads no tensor creates one for another to fill.
        if reads and written is not None and written.is_floating_point() and not func.is_view:
            self._count(func, args, written)
        return output

    def _count(self, func: Any, args: Any, written: Tensor) -> None:
        name, elements = _plain_name(func), written.numel()
        if elements > self.largest.elements:
            self.largest = FeatureMap(tuple(written.shape), self._running[-1])
        if name == "convolution":
            self._add("macs", "conv", int(self._convolution_macs(args[0].shape, args[1].shape, written.shape, args[6])))
            self._add("activations", "conv", elements)
        elif name in PRODUCTS:
            label, left = PRODUCTS[name]
            self._add("macs", label, elements * args[left].shape[-1])
            self._add("activations", label, elements)
        elif MOVING.fullmatch(name) or (name.endswith("batch_norm") and not args[5]):
            pass  # a batch norm with running statistics folds into its convolution
        elif ELEMENTWISE.fullmatch(name) or _is_tagged(func):
            self._add("elementwise", name, max(elements, args[0].numel() if isinstance(args[0], Tensor) else 0))
        else:
            # Fused attention has a kernel for every device: report all under the name that users know.
            name = re.sub(r"^_scaled_dot_product_\w+", "scaled_dot_product_attention", func.overloadpacket.__name__)
            self.unsupported[f"{func.namespace}::{name}"] += 1

    def _add(self, kind: str, operator: str, count: int) -> None:
        if kind in self.operators:
            self.operators[kind][operator] += count
        parts = self._running[-1].split(".") if self._running[-1] else []
        modules = [".".join(parts[:length]) for length in range(len(parts) + 1)]
        in_gate = kind == "macs" and not self._gates.isdisjoint(modules)
        for module in modules:
            self.costs[module][kind] += count
            if in_gate:
                self.costs[module]["gate_macs"] += count


def _plain_name(func: Any) -> str:
    """Return the operator's name as in :mod:`torch.nn.functional`: ``softmax`` for ``aten::_softmax.default``."""
    found = re.fullmatch(r"_?(?:native_)?(\w+?)(?:_with_indices|_kernel)?_?", func.overloadpacket.__name__)
    return found[1] if found else func.overloadpacket.__name__


def _is_tagged(func: Any) -> bool:
    """Whether torch tags the operator as pointwise or as a reduction; in-place variants lack the tags of the others."""
    packet = getattr(getattr(torch.ops, func.namespace), func.overloadpacket.__name__.removesuffix("_"))
    tags = {tag for overload in packet.overloads() for tag in getattr(packet, overload).tags}
    return not tags.isdisjoint({torch.Tag.pointwise, torch.Tag.reduction})
