"""``Site``: a convolution that a selective kernel can replace. ``Skipped``: one that was not replaced, and why."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import nn


@dataclasses.dataclass(frozen=True)
class Site:
    """A convolution that a selective kernel can replace, with the batch normalisation that it takes over.

    Args:
        name: Dotted path of the convolution in the model.
        conv: The convolution, with odd sides, grouped or depthwise.
        norm: Dotted path of the batch normalisation behind it; ``None``: something else is, and stays there.
        norm_module: The batch normalisation.
        found_by: ``"dataflow"`` (torch.fx) or ``"structure"`` (order of registration, confirmed by a run).
        resolution: ``(H, W)`` of the convolution's output at the model's input size; ``None`` before the model has run.
        stage: ``log2`` of the output's stride, minus 1: 1 to 4 are ResNet's ``layer1`` to ``layer4``. ``None`` before
            the model has run.
    """

    name: str
    conv: nn.Conv2d
    norm: str | None
    norm_module: nn.BatchNorm2d | None
    found_by: Literal["dataflow", "structure"]
    resolution: tuple[int, int] | None = None
    stage: int | None = None

    @property
    def kernel_size(self) -> int:
        """Taps along the longer side."""
        return max(self.conv.kernel_size)

    @property
    def stride(self) -> int:
        """Stride, the same in both directions."""
        return int(self.conv.stride[0])

    @property
    def groups(self) -> int:
        """Groups of channels that are convolved apart."""
        return self.conv.groups

    @property
    def channels(self) -> int:
        """Output channels; most convolutions have as many input channels."""
        return self.conv.out_channels

    @property
    def depthwise(self) -> bool:
        """Whether every output channel sees one input channel."""
        return self.groups == self.conv.in_channels


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A grouped or depthwise convolution that was not replaced: its path, its description in short, and the reason."""

    name: str
    conv: str
    reason: str


def describe(conv: nn.Conv2d) -> str:
    """A convolution in short, for instance ``5x5/2 depthwise 72`` or ``7x7/2 depthwise 48->96``."""
    height, width = conv.kernel_size
    stride = "" if conv.stride == (1, 1) else f"/{conv.stride[0]}"
    kind = "depthwise" if conv.groups == conv.in_channels else f"g{conv.groups}"
    channels = f"{conv.in_channels}->" if conv.in_channels != conv.out_channels else ""
    return f"{height}x{width}{stride} {kind} {channels}{conv.out_channels}"
