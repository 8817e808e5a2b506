"""BAM, an attention module that SK is compared with and timm lacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_sk.errors import InputError


class BAM(nn.Module):
    r"""Bottleneck attention module: :math:`F (1 + \sigma(M_c(F) + M_s(F)))`.

    Park et al., *BAM: Bottleneck Attention Module*, BMVC 2018, https://arxiv.org/abs/1807.06514, Sec. 3.

    Input and output are ``(N, C, H, W)``. Both branches narrow to ``C / reduction`` channels; ``dilation`` is that of
    the spatial branch's two 3x3 convolutions.
    """

    is_gate = True  # counted apart by edge_sk.profiling

    def __init__(self, channels: int, *, reduction: int = 16, dilation: int = 4) -> None:
        super().__init__()
        width = max(channels // reduction, 1)
        self.channel = nn.Sequential(*_narrow(channels, width, 1), nn.Conv2d(width, channels, 1))
        spatial = _narrow(channels, width, 1) + _narrow(width, width, 3, dilation) + _narrow(width, width, 3, dilation)
        self.spatial = nn.Sequential(*spatial, nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Weigh every position of every channel."""
        weight = torch.sigmoid(self.channel(x.mean((2, 3), keepdim=True)) + self.spatial(x))
        return x + x * weight


def _narrow(channels: int, width: int, size: int, dilation: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, width, size, padding=size // 2 * dilation, dilation=dilation)
    return [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def add_bam(model: nn.Module) -> None:
    """Append a BAM to each of the first three stages of a timm ResNet, where the map is about to shrink (BAM, Fig. 1).

    Raises:
        InputError: The model has no stages ``layer1`` to ``layer3``.
    """
    for name in ("layer1", "layer2", "layer3"):
        stage = getattr(model, name, None)
        if not isinstance(stage, nn.Sequential):
            raise InputError(f"BAM goes behind the stages of a ResNet, and {type(model).__name__} has no {name}")
        last = [module for module in stage.modules() if isinstance(module, nn.Conv2d)][-1]
        # The last convolution of a bottleneck stage is conv3 (or the gate's, with as many channels out).
        stage.append(BAM(last.out_channels))
