"""How a Core ML program stores its weights in less than they are: scales, blocks and palettes.

One function per ``constexpr_`` operator, its arguments named as in the operator's definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def _along(parameter: Any, data: np.ndarray, axis: int) -> np.ndarray:
    """Shape a per-channel vector so that it broadcasts over ``data``."""
    parameter = np.asarray(parameter, np.float32)
    if parameter.ndim == 0:
        return parameter
    return parameter.reshape([-1 if i == axis % data.ndim else 1 for i in range(data.ndim)])


def constexpr_affine_dequantize(quantized_data, zero_point, scale, axis) -> np.ndarray:
    """``scale * (quantized_data - zero_point)`` (iOS 16)."""
    shifted = quantized_data.astype(np.float32) - _along(zero_point, quantized_data, int(axis))
    return _along(scale, quantized_data, int(axis)) * shifted


def constexpr_blockwise_shift_scale(data, scale, offset=None) -> np.ndarray:
    """``scale * (data - offset)``, one scale per block (iOS 18)."""

    def spread(parameter: np.ndarray) -> np.ndarray:
        parameter = parameter.astype(np.float32)
        for axis, (size, blocks) in enumerate(zip(data.shape, parameter.shape, strict=True)):
            parameter = np.repeat(parameter, size // blocks, axis)
        return parameter

    values = data.astype(np.float32)
    return spread(scale) * (values if offset is None else values - spread(offset))


def constexpr_lut_to_dense(indices, lut, shape=None, vector_axis=None) -> np.ndarray:
    """Look every index up in a palette: packed bits and one palette (iOS 16), or a palette per block (iOS 18)."""
    lut = np.asarray(lut, np.float32)
    if shape is not None:
        bits, count = int(math.log2(lut.size)), int(np.prod(shape))
        stream = np.unpackbits(indices.view(np.uint8), bitorder="little")[: bits * count]
        unpacked = stream.reshape(count, bits) @ (1 << np.arange(bits))
        return lut[unpacked].reshape([int(size) for size in shape])
    if lut.shape[-1] != 1:
        raise ValueError(f"palettes of vectors of {lut.shape[-1]}")
    palettes = lut[..., 0]
    for axis, (size, blocks) in enumerate(zip(indices.shape, palettes.shape[:-1], strict=True)):
        palettes = np.repeat(palettes, size // blocks, axis)
    return np.take_along_axis(palettes, indices.astype(np.int64)[..., None], -1)[..., 0]


def constexpr_cast(source_val, output_dtype) -> np.ndarray:
    """Half stored, single computed."""
    return source_val.astype({"fp32": np.float32}[output_dtype])


CONSTANTS: dict[str, Callable[..., np.ndarray]] = {
    function.__name__: function
    for function in (
        constexpr_affine_dequantize,
        constexpr_blockwise_shift_scale,
        constexpr_cast,
        constexpr_lut_to_dense,
    )
}
"""Operators that say how stored weights are decompressed."""
