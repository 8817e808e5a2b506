"""Input normalisation as a module, and its scale inside the first convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from edge_sk.rewrites.trace import call_counts, called_module


class Normalize(nn.Module):
    """``(x - mean) / std`` per channel.

    Args:
        mean: One value per channel.
        std: One value per channel.

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
        """Normalise. The shift is an addition, which int8 has, and not a subtraction, which it has not."""
        x = x + self.shift
        return x if self.scale is None else x * self.scale


def fold_input_scale(graph: fx.GraphModule) -> int:
    """Multiply the first convolution's weights by ``1 / std``; the mean stays, because padding is zero behind it."""
    counts = call_counts(graph)
    count = 0
    for node in graph.graph.nodes:
        normalize = called_module(graph, node)
        if not isinstance(normalize, Normalize) or normalize.scale is None or len(node.users) != 1:
            continue
        conv = called_module(graph, next(iter(node.users)))
        if type(conv) is not nn.Conv2d or conv.groups != 1 or counts[id(conv)] > 1 or counts[id(normalize)] > 1:
            continue
        conv.weight.data = conv.weight.data * normalize.scale
        normalize.scale = None
        count += 1
    return count
