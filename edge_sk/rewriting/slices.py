"""Splitting a tensor becomes slices: delegates take slices, but neither split, chunk, unbind nor select."""

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
        piece = chunk_piece if chunks else split_piece
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


def split_piece(x: Tensor, sizes: int | Sequence[int], piece: int, dim: int) -> Tensor:
    """``x.split(sizes, dim)[piece]`` as a slice."""
    whole = isinstance(sizes, Sequence)
    start = sum(sizes[:piece]) if whole else sizes * piece
    stop = start + (sizes[piece] if whole else sizes)
    before = dim if dim >= 0 else x.ndim + dim
    return x[(slice(None),) * before + (slice(start, stop),)]
