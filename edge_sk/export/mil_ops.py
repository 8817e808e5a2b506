"""What the operators of a Core ML program compute, written with torch.

One function per MIL operator, its arguments named as in the operator's definition
(https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html). An operator is here when a
test compares it with the torch module that it was converted from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATORS: dict[str, Callable[..., Any]] = {}
"""MIL name to function."""

Operator = Callable[..., Any]


def _operator(function: Operator) -> Operator:
    OPERATORS[function.__name__.strip("_")] = function
    return function


def _ints(values: Any) -> list[int]:
    return [int(value) for value in values]


# Convolution and linear maps


def _same_padding(size: int, window: int, stride: int, *, lower: bool) -> tuple[int, int]:
    total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
    return (total - total // 2, total // 2) if lower else (total // 2, total - total // 2)


def _padding(
    x: Tensor, windows: Sequence[int], strides: Sequence[int], pad_type: str, pad: Sequence[int] | None
) -> list[tuple[int, int]]:
    """(before, after) of each spatial axis."""
    if pad_type == "valid":
        return [(0, 0)] * len(windows)
    if pad_type == "custom":
        values = _ints(pad) if pad is not None else []
        return list(zip(values[::2], values[1::2], strict=True))
    if pad_type in ("same", "same_lower"):
        sizes = x.shape[-len(windows) :]
        lower = pad_type == "same_lower"
        return [_same_padding(*each, lower=lower) for each in zip(sizes, windows, strides, strict=True)]
    raise ValueError(f"pad_type {pad_type!r}")


def _pad_with(x: Tensor, padding: list[tuple[int, int]], value: float) -> Tensor:
    if not any(map(any, padding)):
        return x
    return F.pad(x, [each for pair in reversed(padding) for each in pair], value=value)


@_operator
def _conv(x, weight, bias=None, strides=None, pad_type="valid", pad=None, dilations=None, groups=1):
    axes = weight.ndim - 2
    strides = _ints(strides) if strides is not None else [1] * axes
    dilations = _ints(dilations) if dilations is not None else [1] * axes
    windows = [d * (k - 1) + 1 for d, k in zip(dilations, weight.shape[2:], strict=True)]
    x = _pad_with(x, _padding(x, windows, strides, pad_type, pad), 0.0)
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[axes]
    return function(x, weight, bias, strides, 0, dilations, int(groups))


@_operator
def _conv_transpose(
    x, weight, bias=None, pad=None, output_shape=None, pad_type="valid", strides=None, dilations=None, groups=1
):
    if pad_type not in ("valid", "custom"):
        raise ValueError(f"pad_type {pad_type!r}")
    strides = _ints(strides) if strides is not None else [1, 1]
    dilations = _ints(dilations) if dilations is not None else [1, 1]
    y = F.conv_transpose2d(x, weight, bias, strides, 0, 0, int(groups), dilations)
    if pad_type == "custom":
        top, bottom, left, right = _ints(pad)
        y = y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]
    if output_shape is not None and tuple(y.shape) != tuple(_ints(output_shape)):
        raise ValueError(f"output_shape {_ints(output_shape)} needs padding of its own")
    return y


@_operator
def _linear(x, weight, bias=None):
    return F.linear(x, weight, bias)


@_operator
def _matmul(x, y, transpose_x=False, transpose_y=False):
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


@_operator
def _scaled_dot_product_attention(query, key, value, attn_mask=None):
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


# Pooling and resizing


def _pool_padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode):
    """Padding, with what ``ceil_mode`` adds behind (a window must start inside the image or its front padding)."""
    kernel_sizes = _ints(kernel_sizes)
    strides = _ints(strides) if strides is not None else [1] * len(kernel_sizes)
    padding = _padding(x, kernel_sizes, strides, pad_type, pad)
    extra = [0] * len(padding)
    if ceil_mode:
        for axis, (before, after) in enumerate(padding):
            size = x.shape[axis - len(padding)] + before + after
            steps = math.ceil((size - kernel_sizes[axis]) / strides[axis])
            if steps * strides[axis] >= size - after:
                steps -= 1
            extra[axis] = max(steps * strides[axis] + kernel_sizes[axis] - size, 0)
    return kernel_sizes, strides, padding, extra


@_operator
def _max_pool(x, kernel_sizes, strides=None, pad_type="valid", pad=None, ceil_mode=False):
    kernel_sizes, strides, padding, extra = _pool_padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    padding = [(before, after + more) for (before, after), more in zip(padding, extra, strict=True)]
    return F.max_pool2d(_pad_with(x, padding, -math.inf), kernel_sizes, strides)


@_operator
def _avg_pool(
    x,
    kernel_sizes,
    strides=None,
    pad_type="valid",
    pad=None,
    exclude_padding_from_average=False,
    ceil_mode=False,
):
    kernel_sizes, strides, padding, extra = _pool_padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    beyond = [(0, more) for more in extra]
    # What counts: the image, and its padding unless excluded; what ceil_mode adds never does.
    counted = torch.ones_like(x[:1, :1])
    inside = 0.0 if exclude_padding_from_average else 1.0
    counted = _pad_with(_pad_with(counted, padding, inside), beyond, 0.0)
    x = _pad_with(_pad_with(x, padding, 0.0), beyond, 0.0)
    return F.avg_pool2d(x, kernel_sizes, strides) / F.avg_pool2d(counted, kernel_sizes, strides)


@_operator
def _upsample_nearest_neighbor(x, scale_factor_height=1, scale_factor_width=1):
    return F.interpolate(x, scale_factor=(float(scale_factor_height), float(scale_factor_width)))


@_operator
def _upsample_bilinear(x, scale_factor_height=1, scale_factor_width=1, align_corners=True, half_pixel_centers=None):
    if half_pixel_centers is not None and bool(half_pixel_centers) == bool(align_corners):
        raise ValueError(f"align_corners={align_corners} with half_pixel_centers={half_pixel_centers}")
    # The factors are stored as floats: 20 / 16 times 16 pixels must not become 19.
    scales = float(scale_factor_height), float(scale_factor_width)
    size = [math.floor(n * scale + 1e-3) for n, scale in zip(x.shape[-2:], scales, strict=True)]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=bool(align_corners))


# Element by element

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "erf": torch.erf,
    "exp": torch.exp,
    "relu": torch.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tanh": torch.tanh,
}
OPERATORS.update({name: lambda x, function=function: function(x) for name, function in _UNARY.items()})

_BINARY: dict[str, Callable[[Any, Any], Tensor]] = {
    "add": torch.add,
    "greater": torch.gt,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mul": torch.mul,
    "pow": torch.pow,
    "real_div": torch.div,
    "sub": torch.sub,
}


def _binary(function: Callable[[Any, Any], Tensor]) -> Operator:
    return lambda x, y: function(torch.as_tensor(x), torch.as_tensor(y))


OPERATORS.update({name: _binary(function) for name, function in _BINARY.items()})


@_operator
def _clip(x, alpha, beta):
    return x.clamp(float(alpha), float(beta))


@_operator
def _sigmoid_hard(x, alpha=0.2, beta=0.5):
    return (float(alpha) * x + float(beta)).clamp(0.0, 1.0)


@_operator
def _thresholded_relu(x, alpha=1.0):
    return torch.where(x >= float(alpha), x, 0.0)


@_operator
def _leaky_relu(x, alpha=0.01):
    return F.leaky_relu(x, float(alpha))


@_operator
def _prelu(x, alpha):
    return F.prelu(x, alpha)


@_operator
def _elu(x, alpha=1.0):
    return F.elu(x, float(alpha))


@_operator
def _gelu(x, mode="EXACT"):
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[mode])


@_operator
def _log(x, epsilon=1e-45):
    return torch.log(x + float(epsilon))


@_operator
def _rsqrt(x, epsilon=1e-12):
    return torch.rsqrt(x + float(epsilon))


@_operator
def _select(cond, a, b):
    return torch.where(torch.as_tensor(cond), torch.as_tensor(a), torch.as_tensor(b))


@_operator
def _softmax(x, axis=-1):
    return torch.softmax(x, int(axis))


# Normalisation


@_operator
def _layer_norm(x, axes=None, gamma=None, beta=None, epsilon=1e-5):
    dims = _ints(axes) if axes is not None else list(range(x.ndim))
    shape = [x.shape[dim] for dim in dims]
    if [dim % x.ndim for dim in dims] != list(range(x.ndim - len(dims), x.ndim)):
        raise ValueError(f"axes {dims} are not the last of {x.ndim}")
    return F.layer_norm(x, shape, gamma, beta, float(epsilon))


@_operator
def _instance_norm(x, gamma=None, beta=None, epsilon=1e-5):
    return F.instance_norm(x, None, None, gamma, beta, True, 0.0, float(epsilon))


@_operator
def _batch_norm(x, mean, variance, gamma=None, beta=None, epsilon=1e-5):
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, float(epsilon))


# Reductions


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def reduce(x, axes=None, keep_dims=False):
        return function(x, _ints(axes) if axes is not None else list(range(x.ndim)), bool(keep_dims))

    return reduce


OPERATORS["reduce_mean"] = _reduction(lambda x, axes, keep: x.mean(axes, keep))
OPERATORS["reduce_sum"] = _reduction(lambda x, axes, keep: x.sum(axes, keep))
OPERATORS["reduce_max"] = _reduction(lambda x, axes, keep: x.amax(axes, keep))
OPERATORS["reduce_l2_norm"] = _reduction(lambda x, axes, keep: x.square().sum(axes, keep).sqrt())


# Shapes


@_operator
def _concat(values, axis, interleave=False):
    if interleave:
        # Channel 0 of every input, then channel 1 of every input, ...
        first = int(axis) % values[0].ndim
        return torch.stack(list(values), first + 1).flatten(first, first + 1)
    return torch.cat(list(values), int(axis))


@_operator
def _stack(values, axis):
    return torch.stack(list(values), int(axis))


@_operator
def _split(x, axis, num_splits=1, split_sizes=None):
    if split_sizes is not None:
        return x.split(_ints(split_sizes), int(axis))
    return x.chunk(int(num_splits), int(axis))


@_operator
def _slice_by_index(x, begin, end, stride=None, begin_mask=None, end_mask=None, squeeze_mask=None):
    nothing = [False] * x.ndim
    begin_mask, end_mask, squeeze_mask = (
        nothing if mask is None else mask for mask in (begin_mask, end_mask, squeeze_mask)
    )
    strides = _ints(stride) if stride is not None else [1] * x.ndim
    if min(strides) < 1:
        raise ValueError(f"stride {strides}")
    index: list[int | slice] = []
    for axis, step in enumerate(strides):
        if squeeze_mask[axis]:
            index.append(int(begin[axis]))
        else:
            first = None if begin_mask[axis] else int(begin[axis])
            index.append(slice(first, None if end_mask[axis] else int(end[axis]), step))
    return x[tuple(index)]


@_operator
def _reshape(x, shape):
    # 0 keeps the size that the input has on this axis.
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(_ints(shape))])


@_operator
def _transpose(x, perm):
    return x.permute(_ints(perm))


@_operator
def _expand_dims(x, axes):
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in _ints(axes)):
        x = x.unsqueeze(axis)
    return x


@_operator
def _squeeze(x, axes=None):
    return x.squeeze() if axes is None else x.squeeze(_ints(axes))


@_operator
def _tile(x, reps):
    return x.repeat(_ints(reps))


@_operator
def _pad(x, pad, mode="constant", constant_val=0.0):
    pairs = list(zip(_ints(pad)[::2], _ints(pad)[1::2], strict=True))
    if mode == "constant":
        return _pad_with(x, pairs, float(constant_val))
    # torch reflects and replicates the spatial axes of an (N, C, ...) tensor only.
    if any(map(any, pairs[:-2])):
        raise ValueError(f"mode {mode!r} with pad {pad}")
    flat = [each for pair in reversed(pairs[-2:]) for each in pair]
    return F.pad(x, flat, mode={"reflect": "reflect", "replicate": "replicate"}[mode])


@_operator
def _crop(x, crop_height, crop_width):
    (top, bottom), (left, right) = _ints(crop_height), _ints(crop_width)
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


@_operator
def _pixel_shuffle(x, upscale_factor):
    return F.pixel_shuffle(x, int(upscale_factor))


@_operator
def _pixel_unshuffle(x, downscale_factor):
    return F.pixel_unshuffle(x, int(downscale_factor))


@_operator
def _cast(x, dtype):
    """Convert between kinds of numbers; a change of float precision is not rounded (see :mod:`edge_sk.export.mil`)."""
    x = torch.as_tensor(x)
    if dtype in ("fp16", "fp32"):
        return x.to(torch.float32)
    return x.to({"int32": torch.int32, "bool": torch.bool}[dtype])
