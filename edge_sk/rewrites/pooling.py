"""Pooling in the forms that delegates take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edge_sk.rewrites.trace import called_module, replace_module


def keep_pooled_dims(graph: fx.GraphModule) -> int:
    """Rewrite ``x.mean((2, 3))`` into a mean that keeps its axes, then a flatten."""
    count = 0
    for node in list(graph.graph.nodes):
        if node.target not in ("mean", torch.mean) or not node.args:
            continue
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        if not _spatial(dims) or (keep and tuple(dims) == (2, 3)):
            continue
        with graph.graph.inserting_before(node):
            pooled = graph.graph.call_method("mean", (node.args[0], (2, 3)), {"keepdim": True})
            result = pooled if keep else graph.graph.call_method("flatten", (pooled, 1))
        node.replace_all_uses_with(result)
        graph.graph.erase_node(node)
        count += 1
    return count


def _spatial(dims: Any) -> bool:
    # Feature maps have four axes; -1 and -2 are the spatial ones.
    return isinstance(dims, list | tuple) and sorted(d % 4 for d in dims if isinstance(d, int)) == [2, 3]


def pad_before_average(graph: fx.GraphModule) -> int:
    """Take counted zero padding out of average pooling: only pooling without it is delegated."""
    count = 0
    for node in list(graph.graph.nodes):
        pool = called_module(graph, node)
        if type(pool) is not nn.AvgPool2d or not pool.count_include_pad or pool.ceil_mode:
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
        maximum = node.target in ("amax", torch.amax)
        if not (maximum or node.target in ("mean", torch.mean)) or not node.args:
            continue
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        if maximum and keep and _spatial(dims):
            module = MaxOverSpace()
        elif keep and dims in (1, (1,), [1]):
            module = PoolOverChannels(maximum=maximum)
        else:
            continue
        name = f"{node.name}_as_pooling"
        graph.add_submodule(name, module)
        with graph.graph.inserting_before(node):
            pooled = graph.graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(pooled)
        graph.graph.erase_node(node)
        count += 1
    return count
