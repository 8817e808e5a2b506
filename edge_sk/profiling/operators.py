"""What each operator of a trace counts for: fvcore's handles, which know MACs only, and ours around them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from edge_sk.profiling.cost import FeatureMap

# Operators outside convolutions and matrix products that go over every element; their in-place forms too.
ELEMENTWISE = (
    "abs",
    "add",
    "addcmul",
    "avg_pool1d",
    "avg_pool2d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "amax",
    "amin",
    "celu",
    "clamp",
    "clamp_max",
    "clamp_min",
    "cumsum",
    "div",
    "elu",
    "erf",
    "exp",
    "gelu",
    "glu",
    "grid_sampler",
    "group_norm",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "instance_norm",
    "layer_norm",
    "leaky_relu",
    "lerp",
    "linalg_vector_norm",
    "log",
    "log_softmax",
    "logsumexp",
    "max",
    "max_pool1d",
    "max_pool2d",
    "maximum",
    "mean",
    "min",
    "minimum",
    "mish",
    "mul",
    "neg",
    "norm",
    "pow",
    "prelu",
    "prod",
    "reciprocal",
    "relu",
    "relu6",
    "rsqrt",
    "rsub",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "sqrt",
    "square",
    "std",
    "sub",
    "sum",
    "tanh",
    "upsample_bicubic2d",
    "upsample_bilinear2d",
    "upsample_nearest2d",
    "var",
    "var_mean",
)
# Operators that only move data: free here, but a concatenation can be the largest feature map.
MOVING = ("cat", "constant_pad_nd", "stack")
MATRIX = ("_convolution", "addmm", "bmm", "einsum", "linear", "matmul", "mm")


def set_handles(analysis: Any, largest: list[FeatureMap]) -> None:
    """Replace fvcore's handles by ones that call them and sort what they give by kind.

    ``largest`` holds one feature map; a larger one that an operator writes takes its place.
    """
    flop_handles = dict(analysis._op_handles)
    analysis.clear_op_handles()

    def handle(name: str, kind: str) -> Callable[[Any, Any], Counter[str]]:
        flops = flop_handles.get(f"aten::{name.removesuffix('_') if name != '_convolution' else name}")

        def count(inputs: Any, outputs: Any) -> Counter[str]:
            shape = _shape(outputs[0])
            if shape is None:
                return Counter()
            if math.prod(shape) > largest[0].elements:
                largest[0] = FeatureMap(tuple(shape), outputs[0].node().scopeName().split("/")[-1])
            counted: Counter[str] = Counter()
            flop = flops(inputs, outputs) if flops else 0
            flop = sum(flop.values()) if isinstance(flop, Counter) else flop
            if kind == "macs":
                label = "conv" if name == "_convolution" else name
                counted[f"macs {label}"] = int(flop)
                counted[f"activations {label}"] = math.prod(shape)
            else:
                counted[f"fvcore {name}"] = int(flop)
            if kind == "elementwise":
                first = _shape(inputs[0])
                elements = max(math.prod(shape), math.prod(first) if first is not None else 0)
                counted[f"elementwise {name.removesuffix('_')}"] = elements
            return counted

        return count

    for name in MATRIX:
        analysis.set_op_handle(f"aten::{name}", handle(name, "macs"))
    for name in ELEMENTWISE:
        analysis.set_op_handle(f"aten::{name}", handle(name, "elementwise"))
        analysis.set_op_handle(f"aten::{name}_", handle(f"{name}_", "elementwise"))
    for name in (*MOVING, "batch_norm"):
        analysis.set_op_handle(f"aten::{name}", handle(name, "none"))


def _shape(value: Any) -> list[int] | None:
    """Shape of a floating-point tensor in the trace; ``None`` for anything else (sizes are integers)."""
    if not value.isCompleteTensor() or not value.type().dtype().is_floating_point:
        return None
    return value.type().sizes()
