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
        kind = sizes.meta.get("type", object) if isinstance(sizes, fx.Node) else type(sizes)
        pieces = [user.args[1] for user in node.users if user.target is operator.getitem]
        unpacked = len(pieces) == len(node.users) and all(isinstance(index, int) and index >= 0 for index in pieces)
        if known(tensor) is None or not issubclass(kind, int | list | tuple) or not unpacked:
            continue
        for user in list(node.users):
            with graph.graph.inserting_before(user):
                part = graph.graph.call_function(chunk if chunks else piece, (tensor, sizes, user.args[1], dim))
            replace_node(user, part)
        graph.graph.erase_node(node)
        count += 1
    return count


def piece(x: Tensor, sizes: int | Sequence[int], index: int, dim: int) -> Tensor:
    """``x.split(sizes, dim)[index]`` as a slice."""
    if isinstance(sizes, Sequence):
        start, size = sum(sizes[:index]), sizes[index]
    else:
        start, size = sizes * index, sizes
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, start + size),)]


def chunk(x: Tensor, chunks: int, index: int, dim: int) -> Tensor:
    """``x.chunk(chunks, dim)[index]`` as a slice."""
    return piece(x, -(-x.shape[dim] // chunks), index, dim)
