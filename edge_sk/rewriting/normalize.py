"""Normalise images inside the network, and fold the scale into the first convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from edge_sk.rewriting.graph import Layers


class Normalize(nn.Module):
    """``(x - mean) / std``, with one mean and one standard deviation per channel.

    Shape:
        - Input and output: ``(N, C, H, W)``
    """

    fx_leaf = True

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.shift: Tensor
        self.scale: Tensor | None
        self.register_buffer("shift", -torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("scale", 1 / torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, with an addition: int8 has no subtraction."""
        x = x + self.shift
        return x if self.scale is None else x * self.scale


def fold_input_scale(graph: fx.GraphModule) -> int:
    """Multiply the first convolution's weights by ``1 / std``; the mean stays, because padding is zero behind it."""
    layers = Layers(graph)
    count = 0
    for node in graph.graph.find_nodes(op="call_module"):
        normalize = layers.own(node, Normalize)
        if normalize is None or normalize.scale is None or len(node.users) != 1:
            continue
        (user,) = node.users
        conv = layers.own(user, nn.Conv2d)
        if conv is not None and conv.groups == 1:
            conv.weight.data = (conv.weight.data * normalize.scale).to(conv.weight.dtype)
            normalize.scale = None
            count += 1
    return count
