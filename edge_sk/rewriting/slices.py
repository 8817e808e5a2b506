"""Write ``chunk`` and ``split`` as slices: delegates take slices, and neither of these."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from edge_sk.rewriting.graph import argument, calls, known, replace_node


def use_slices(graph: fx.GraphModule) -> int:
    """Rewrite ``chunk`` and ``split`` along any axis into one slice per piece that is read."""
    count = 0
    for node in list(graph.graph.nodes):
        chunks = calls(node, (torch.chunk,), ("chunk",))
        if not chunks and not calls(node, (torch.split, torch.functional.split), ("split",)):
            continue
        tensor, dim = argument(node, 0, "input", "tensor"), argument(node, 2, "dim", default=0)
        sizes = argument(node, 1, "chunks", "split_size_or_sections", "split_size")
        if known(tensor) is None or not all(_is_piece(user) for user in node.users):
            continue
        if isinstance(sizes, list | tuple):
            piece = section_piece
        elif isinstance(sizes, int) or (isinstance(sizes, fx.Node) and sizes.meta.get("is_number")):
            piece = chunk_piece if chunks else split_piece
        else:
            continue
        for user in list(node.users):
            with graph.graph.inserting_before(user):
                part = graph.graph.call_function(piece, (tensor, sizes, user.args[1], dim))
            replace_node(user, part)
        graph.graph.erase_node(node)
        count += 1
    return count


def _is_piece(user: fx.Node) -> bool:
    return user.target is operator.getitem and isinstance(user.args[1], int) and user.args[1] >= 0


def chunk_piece(x: Tensor, chunks: int, piece: int, dim: int) -> Tensor:
    """``x.chunk(chunks, dim)[piece]`` as a slice."""
    return split_piece(x, -(-x.shape[dim] // chunks), piece, dim)


def split_piece(x: Tensor, size: int, piece: int, dim: int) -> Tensor:
    """``x.split(size, dim)[piece]`` as a slice."""
    return _slice(x, size * piece, size * (piece + 1), dim)


def section_piece(x: Tensor, sizes: Sequence[int], piece: int, dim: int) -> Tensor:
    """``x.split(sizes, dim)[piece]`` as a slice."""
    start = sum(sizes[:piece])
    return _slice(x, start, start + sizes[piece], dim)


def _slice(x: Tensor, start: int, stop: int, dim: int) -> Tensor:
    before = dim if dim >= 0 else x.ndim + dim
    return x[(slice(None),) * before + (slice(start, stop),)]
