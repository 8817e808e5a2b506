"""Reductions and pooling as the pooling that delegates take."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from edge_sk.rewriting.graph import Layers, argument, calls, is_map, replace_node
from edge_sk.tracing import writes


def keep_pooled_dims(graph: fx.GraphModule) -> int:
    """Rewrite ``x.mean((2, 3))`` of feature maps into a mean that keeps its axes, then a flatten."""
    count = 0
    for node in list(graph.graph.nodes):
        x, dims, keep = _reduction(node, "mean")
        if x is None or not _spatial(dims) or (keep and dims == (2, 3)):
            continue
        with graph.graph.inserting_before(node):
            result = graph.graph.call_method("mean", (x, (2, 3)), {"keepdim": True})
            if not keep:
                result = graph.graph.call_method("flatten", (result, 1))
        replace_node(node, result)
        count += 1
    return count


def _reduction(node: fx.Node, name: str) -> tuple[fx.Node | None, tuple[int, ...], bool]:
    """The input, axes and ``keepdim`` of a reduction of feature maps; the input of other nodes is ``None``."""
    x, dims = argument(node, 0, "input"), argument(node, 1, "dim")
    keep = argument(node, 2, "keepdim", default=False)
    dims = (dims,) if isinstance(dims, int) else dims
    readable = isinstance(dims, list | tuple) and all(isinstance(dim, int) for dim in dims) and isinstance(keep, bool)
    others = len(node.args) > 3 or {"dtype", "out"} & set(node.kwargs)
    if not calls(node, (getattr(torch, name),), (name,)) or not is_map(x) or not readable or others:
        return None, (), False
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
        graph.set_submodule(str(node.target), nn.Sequential(nn.ZeroPad2d((pad_w, pad_w, pad_h, pad_h)), bare))
        count += 1
    return count


def max_over_space(x: Tensor) -> Tensor:
    """``x.amax((2, 3), keepdim=True)`` of feature maps as a pooling over the whole map."""
    size = (x.shape[2], x.shape[3])
    # The stride is spelled out: coremltools does not know its default.
    return x if size == (1, 1) else F.max_pool2d(x, size, size)


def pool_over_channels(x: Tensor, name: str) -> Tensor:
    """``x.amax(1, keepdim=True)`` or ``x.mean(1, keepdim=True)``, with the channels where pooling has its columns."""
    if x.shape[1] == 1:
        return x
    size, pool = (1, x.shape[1]), F.max_pool2d if name == "amax" else F.avg_pool2d
    return pool(x.permute(0, 2, 3, 1), size, size).permute(0, 3, 1, 2)


def pool_instead_of_reducing(graph: fx.GraphModule) -> int:
    """Turn maxima over space, and maxima and means over channels, into pooling: delegates have no others."""
    count = 0
    for name in ("amax", "mean"):
        for node in list(graph.graph.nodes):
            x, dims, keep = _reduction(node, name)
            # Of a map of one pixel, or one channel, pooling gives the map itself, into which nothing may write.
            if x is None or not keep or any(writes(user) for user in node.users):
                continue
            with graph.graph.inserting_before(node):
                if name == "amax" and _spatial(dims):
                    pooled = graph.graph.call_function(max_over_space, (x,))
                elif dims in ((1,), (-3,)):
                    pooled = graph.graph.call_function(pool_over_channels, (x, name))
                else:
                    continue
            replace_node(node, pooled)
            count += 1
    return count
