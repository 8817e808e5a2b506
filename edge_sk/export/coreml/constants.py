"""How a Core ML program stores its weights in fewer bits: scales, blocks and palettes.

One function per ``constexpr_`` operator; the arguments have the names of the operator's definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def _affine_dequantize(quantized_data, zero_point, scale, axis) -> np.ndarray:
    """``scale * (quantized_data - zero_point)``, one scale for all or one per channel (iOS 16)."""

    def along_axis(parameter: Any) -> np.ndarray:
        shape = [-1 if i == axis % quantized_data.ndim else 1 for i in range(quantized_data.ndim)]
        return np.asarray(parameter, np.float32).reshape(shape)

    return along_axis(scale) * (quantized_data.astype(np.float32) - along_axis(zero_point))


def _blockwise_shift_scale(data, scale, offset=None) -> np.ndarray:
    """``scale * (data - offset)``, one scale per block (iOS 18)."""
    values = data.astype(np.float32)
    if offset is not None:
        values -= _spread(offset.astype(np.float32), data.shape)
    return _spread(scale.astype(np.float32), data.shape) * values


def _lut_to_dense(indices, lut, shape=None, vector_axis=None) -> np.ndarray:
    """Look every index up in a palette: packed bits and one palette (iOS 16), or a palette per block (iOS 18)."""
    lut = np.asarray(lut, np.float32)
    if shape is not None:
        bits, count = int(math.log2(lut.size)), int(np.prod(shape))
        stream = np.unpackbits(indices.view(np.uint8), bitorder="little")[: bits * count]
        unpacked = stream.reshape(count, bits) @ (1 << np.arange(bits))
        return lut[unpacked].reshape([int(size) for size in shape])
    if lut.shape[-1] != 1:
        raise ValueError(f"palettes of vectors of {lut.shape[-1]}")
    palettes = _spread(lut[..., 0], indices.shape)
    return np.take_along_axis(palettes, indices.astype(np.int64)[..., None], -1)[..., 0]


def _spread(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat the values of blocks over the elements of an array of this shape; further axes stay."""
    for axis, size in enumerate(shape):
        blocks = np.repeat(blocks, size // blocks.shape[axis], axis)
    return blocks


CONSTANTS: dict[str, Callable[..., np.ndarray]] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_lut_to_dense": _lut_to_dense,
}
"""Operators that decompress stored weights, by name."""
