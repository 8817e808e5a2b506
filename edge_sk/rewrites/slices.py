"""Splitting a tensor becomes slices: delegates take slices, but neither split, chunk, unbind nor select."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx


def use_slices(graph: fx.GraphModule) -> int:
    """Rewrite ``chunk`` and ``split`` along any axis into one slice per piece that is read."""
    count = 0
    for node in list(graph.graph.nodes):
        name = node.target if node.op == "call_method" else _FUNCTIONS.get(node.target)
        if name not in ("chunk", "split") or not all(_is_piece(user) for user in node.users):
            continue
        tensor, argument = node.args[0], _argument(node, 1, "chunks" if name == "chunk" else "split_size_or_sections")
        if argument is None:
            argument = node.kwargs.get("split_size")
        dim = _argument(node, 2, "dim") or 0
        if argument is None:
            continue
        for user in list(node.users):
            with graph.graph.inserting_before(user):
                start, stop = _bounds(graph.graph, tensor, name, argument, user.args[1], dim)
                before = [slice(None)] * dim if dim >= 0 else [...]
                after = [slice(None)] * (-dim - 1)
                index: Any = (*before, slice(start, stop), *after)
                piece = graph.graph.call_function(operator.getitem, (tensor, index))
            user.replace_all_uses_with(piece)
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)
        count += 1
    return count


_FUNCTIONS: dict[Any, str] = {torch.chunk: "chunk", torch.split: "split", torch.functional.split: "split"}


def _is_piece(user: fx.Node) -> bool:
    return user.target is operator.getitem and isinstance(user.args[1], int) and user.args[1] >= 0


def _argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _bounds(graph: fx.Graph, tensor: Any, name: str, argument: Any, piece: int, dim: int) -> tuple[Any, Any]:
    if isinstance(argument, list | tuple):
        start = sum(argument[:piece])
        return start, start + argument[piece]
    if name == "split":
        return argument * piece, argument * (piece + 1)
    # chunk(n): pieces of ceil(size / n).
    size = graph.call_method("size", (tensor, dim))
    rounded = graph.call_function(operator.add, (size, argument - 1))
    length = graph.call_function(operator.floordiv, (rounded, argument))
    return tuple(graph.call_function(operator.mul, (length, at)) for at in (piece, piece + 1))  # type: ignore[return-value]
