"""Selective-kernel networks for phones: build, graft, train, measure, export."""

from edge_sk.errors import InputError
from edge_sk.selective_kernel import Kernel, SelectiveKernel

__all__ = [
    "InputError",
    "Kernel",
    "SelectiveKernel",
]
