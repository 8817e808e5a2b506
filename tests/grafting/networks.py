"""Small networks to graft onto, and what to look at in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_sk import SelectiveKernel

LivedIn = Callable[[nn.Module], nn.Module]


class Handmade(nn.Module):
    """Everything that names and registration order would get wrong."""

    def __init__(self, act: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.act = act
        self.late = nn.BatchNorm2d(8)  # normalises `first`, registered before it
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.second = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.first = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=True)
        self.other = nn.BatchNorm2d(8)
        self.swish = nn.Hardswish()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.act(self.late(self.first(x)))
        x = x + self.swish(self.other(self.second(x)))
        return self.head(x.mean((2, 3)))


class Reads(nn.Module):
    """Uses a convolution in ways that replacing it would break."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.bn = nn.BatchNorm2d(8)
        self.stem = nn.Conv2d(3, 8, 1)
        self.site = block(channels=8)[1:]

    def forward(self, x: Tensor) -> Tensor:
        x = self.site(self.stem(x))
        y = self.conv(x)
        if self.how == "second user":
            return self.bn(y) + y
        if self.how == "twice":
            return self.bn(self.conv(self.bn(y)))
        if self.how == "weight":
            return self.bn(y) + self.conv.weight.sum()
        return F.relu(y)


def block(*middle: nn.Module, channels: int = 8, **conv: Any) -> nn.Sequential:
    options = {"kernel_size": 3, "padding": 1, "groups": channels} | conv
    parts = middle or (nn.BatchNorm2d(channels), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, channels, 1), nn.Conv2d(channels, channels, **options), *parts)


def units(model: nn.Module) -> list[SelectiveKernel]:
    return [module for module in model.modules() if isinstance(module, SelectiveKernel)]


@torch.no_grad()
def answering(model: nn.Module, images: Tensor) -> nn.Module:
    """Give batch norms the statistics of real activations: with others, deep networks are nearly constant."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
