"""Pooling in the forms that delegates take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edge_sk.rewriting.graph import Layers, add_module, argument, calls, is_map, replace_module, replace_node
from edge_sk.tracing import writes


def keep_pooled_dims(graph: fx.GraphModule) -> int:
    """Rewrite ``x.mean((2, 3))`` of feature maps into a mean that keeps its axes, then a flatten."""
    count = 0
    for node in list(graph.graph.nodes):
        reduced = _reduction(node, _MEAN)
        if reduced is None:
            continue
        x, dims, keep = reduced
        if not _spatial(dims) or (keep and dims == (2, 3)):
            continue
        with graph.graph.inserting_before(node):
            result = graph.graph.call_method("mean", (x, (2, 3)), {"keepdim": True})
            if not keep:
                result = graph.graph.call_method("flatten", (result, 1))
        replace_node(node, result)
        count += 1
    return count


_MEAN = ((torch.mean,), ("mean",))
_MAX = ((torch.amax,), ("amax",))


def _reduction(node: fx.Node, kind: tuple[Any, Any]) -> tuple[fx.Node, tuple[int, ...], bool] | None:
    """The input, axes and ``keepdim`` of a reduction of feature maps; ``None`` for other nodes."""
    if not calls(node, *kind):
        return None
    x, dims = argument(node, 0, "input"), argument(node, 1, "dim")
    keep = argument(node, 2, "keepdim", default=False)
    dims = (dims,) if isinstance(dims, int) else dims
    if not is_map(x) or not isinstance(dims, list | tuple) or not isinstance(keep, bool):
        return None
    if len(node.args) > 3 or {"dtype", "out"} & set(node.kwargs) or not all(isinstance(dim, int) for dim in dims):
        return None
    return x, tuple(dims), keep


def _spatial(dims: tuple[int, ...]) -> bool:
    return sorted(dim % 4 for dim in dims) == [2, 3]


def pad_before_average(graph: fx.GraphModule) -> int:
    """Take counted zero padding out of average pooling: only pooling without it is delegated."""
    layers = Layers(graph)
    count = 0
    for node in graph.graph.find_nodes(op="call_module"):
        pool = layers.own(node, nn.AvgPool2d)
        if pool is None or not pool.count_include_pad or pool.ceil_mode:
            continue
        pad_h, pad_w = (pool.padding,) * 2 if isinstance(pool.padding, int) else pool.padding
        if not (pad_h or pad_w):
            continue
        bare = nn.AvgPool2d(pool.kernel_size, pool.stride, divisor_override=pool.divisor_override)
        replace_module(graph, node, nn.Sequential(nn.ZeroPad2d((pad_w, pad_w, pad_h, pad_h)), bare))
        count += 1
    return count


class MaxOverSpace(nn.Module):
    """``x.amax((2, 3), keepdim=True)`` as a pooling over the whole map.

    Shape:
        - Input: ``(N, C, H, W)``
        - Output: ``(N, C, 1, 1)``
    """

    fx_leaf = True

    def forward(self, x: Tensor) -> Tensor:
        """Pool."""
        size = (x.shape[2], x.shape[3])
        # The stride is spelled out: coremltools does not know its default.
        return x if size == (1, 1) else functional.max_pool2d(x, size, size)


class PoolOverChannels(nn.Module):
    """``x.amax(1, keepdim=True)`` or ``x.mean(1, keepdim=True)``, with the channels where pooling has its columns.

    Args:
        maximum: Rather than the mean.

    Shape:
        - Input: ``(N, C, H, W)``
        - Output: ``(N, 1, H, W)``
    """

    fx_leaf = True

    def __init__(self, *, maximum: bool) -> None:
        super().__init__()
        self.pool = functional.max_pool2d if maximum else functional.avg_pool2d

    def forward(self, x: Tensor) -> Tensor:
        """Pool."""
        if x.shape[1] == 1:
            return x
        size = (1, x.shape[1])
        return self.pool(x.permute(0, 2, 3, 1), size, size).permute(0, 3, 1, 2)


def pool_instead_of_reducing(graph: fx.GraphModule) -> int:
    """Turn maxima over space, and maxima and means over channels, into pooling: delegates have no others."""
    count = 0
    for node in list(graph.graph.nodes):
        maximum = _reduction(node, _MAX)
        reduced = maximum or _reduction(node, _MEAN)
        if reduced is None:
            continue
        x, dims, keep = reduced
        if maximum and keep and _spatial(dims):
            module = MaxOverSpace()
        elif keep and dims in ((1,), (-3,)):
            module = PoolOverChannels(maximum=maximum is not None)
        else:
            continue
        if any(writes(user) for user in node.users):
            continue  # of a map of one pixel, or one channel, pooling gives the map itself
        name = add_module(graph, f"{node.name}_as_pooling", module)
        with graph.graph.inserting_before(node):
            pooled = graph.graph.call_module(name, (x,))
        replace_node(node, pooled)
        count += 1
    return count
