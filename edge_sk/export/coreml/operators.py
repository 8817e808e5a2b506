"""What the operators of a Core ML program compute, in torch.

The arguments have the names of the operator's definition
(https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html). Here are the operators that
the networks of the zoo with all their options, the grafts of ``deploy/sweeping.py``, and torchvision's segmentation
networks become.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _ints(values: Any) -> list[int]:
    return [int(value) for value in values]


def _padded(x: Tensor, pad_type: str, pad: Any, value: float = 0.0) -> Tensor:
    """Pad height and width by ``(top, bottom, left, right)``."""
    if pad_type == "valid":
        return x
    if pad_type != "custom":
        raise ValueError(f"pad_type {pad_type!r}")
    top, bottom, left, right = _ints(pad)
    return F.pad(x, [left, right, top, bottom], value=value)


def _conv(x, weight, bias=None, strides=(1, 1), pad_type="valid", pad=None, dilations=(1, 1), groups=1):
    return F.conv2d(_padded(x, pad_type, pad), weight, bias, _ints(strides), 0, _ints(dilations), int(groups))


def _max_pool(x, kernel_sizes, strides=(1, 1), pad_type="valid", pad=None, ceil_mode=False):
    if ceil_mode:
        raise ValueError("ceil_mode")
    return F.max_pool2d(_padded(x, pad_type, pad, -torch.inf), _ints(kernel_sizes), _ints(strides))


def _avg_pool(
    x, kernel_sizes, strides=(1, 1), pad_type="valid", pad=None, exclude_padding_from_average=False, ceil_mode=False
):
    if ceil_mode:
        raise ValueError("ceil_mode")
    sizes = _ints(kernel_sizes), _ints(strides)
    counted = _padded(torch.ones_like(x), pad_type, pad, 0.0 if exclude_padding_from_average else 1.0)
    return F.avg_pool2d(_padded(x, pad_type, pad), *sizes) / F.avg_pool2d(counted, *sizes)


def _batch_norm(x, mean, variance, gamma=None, beta=None, epsilon=1e-5):
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, float(epsilon))


def _concat(values, axis, interleave=False):
    if not interleave:
        return torch.cat(values, int(axis))
    # Channel 0 of every input, then channel 1 of every input, ...
    first = int(axis) % values[0].ndim
    return torch.stack(values, first + 1).flatten(first, first + 1)


def _slice_by_index(x, begin, end, stride=None, begin_mask=None, end_mask=None, squeeze_mask=None):
    """``x[begin:end:stride]`` on every axis; a mask is true where its value does not count."""

    def at(values: Any, axis: int, otherwise: Any) -> Any:
        return otherwise if values is None else values[axis]

    index: list[int | slice] = []
    for axis in range(x.ndim):
        first = None if at(begin_mask, axis, False) else int(begin[axis])
        last = None if at(end_mask, axis, False) else int(end[axis])
        takes_one = at(squeeze_mask, axis, False)
        index.append(int(begin[axis]) if takes_one else slice(first, last, int(at(stride, axis, 1))))
    return x[tuple(index)]


def _reshape(x, shape):
    # 0 keeps the size that the input has on this axis.
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(_ints(shape))])


def _upsample(x, scale_factor_height=1, scale_factor_width=1, align_corners=None, mode="bilinear"):
    # Factors are rounded: 7 rows times 2.4285715 are 17, whatever the product's last digits say.
    size = [int(x.shape[axis] * float(by) + 1e-3) for axis, by in ((-2, scale_factor_height), (-1, scale_factor_width))]
    return F.interpolate(x, size, mode=mode, align_corners=align_corners)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    # What has weights or a window.
    "conv": _conv,
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "upsample_bilinear": lambda x, align_corners=True, **factors: _upsample(x, **factors, align_corners=align_corners),
    "upsample_nearest_neighbor": lambda x, **factors: _upsample(x, **factors, mode="nearest"),
    # Element by element.
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "relu": lambda x: torch.relu(x),
    "sigmoid": lambda x: torch.sigmoid(x),
    "silu": lambda x: F.silu(x),
    "tanh": lambda x: torch.tanh(x),
    "softplus": lambda x: F.softplus(x),
    "elu": lambda x, alpha=1.0: F.elu(x, float(alpha)),
    "leaky_relu": lambda x, alpha=0.01: F.leaky_relu(x, float(alpha)),
    "thresholded_relu": lambda x, alpha=1.0: torch.where(x >= float(alpha), x, 0.0),
    "clip": lambda x, alpha, beta: x.clamp(float(alpha), float(beta)),
    "sigmoid_hard": lambda x, alpha=0.2, beta=0.5: (float(alpha) * x + float(beta)).clamp(0.0, 1.0),
    "gelu": lambda x, mode="EXACT": F.gelu(x, approximate={"EXACT": "none"}[mode]),
    # Over axes.
    "softmax": lambda x, axis=-1: torch.softmax(x, int(axis)),
    "reduce_mean": lambda x, axes, keep_dims=False: x.mean(_ints(axes), bool(keep_dims)),
    "reduce_max": lambda x, axes, keep_dims=False: x.amax(_ints(axes), bool(keep_dims)),
    # Shapes and types.
    "concat": _concat,
    "slice_by_index": _slice_by_index,
    "reshape": _reshape,
    "transpose": lambda x, perm: x.permute(_ints(perm)),
    # Values are float32 throughout: see edge_sk.export.coreml.mil.
    "cast": lambda x, dtype: {"fp16": x, "fp32": x}[dtype],
}
"""MIL name to function."""
