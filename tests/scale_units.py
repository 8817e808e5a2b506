"""Networks whose attention depends on the brightness of the image in a known way, and images for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import edge_sk


class Preferring(nn.Module):
    """A gate that likes the second branch the more, the brighter the image is."""

    def forward(self, s: Tensor) -> Tensor:
        likes = s.mean(1, keepdim=True).sigmoid()
        return torch.stack([(1 - likes).expand_as(s), likes.expand_as(s)], 1)


class OneUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unit = edge_sk.SelectiveKernel(4, 4, groups=4)
        for branch in self.unit.branches:
            branch.requires_grad_(False)
            nn.init.constant_(branch.get_submodule("conv").weight, 0.05)  # type: ignore[arg-type]
        self.unit.gate = Preferring()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x)


def brightness_batches(factors: dict[float, float], count: int = 6) -> dict[float, list[tuple[Tensor, Tensor]]]:
    images = torch.rand(count, 4, 12, 12)
    labels = torch.arange(count) % 2
    return {
        scale: [(images[:4] * factor, labels[:4]), (images[4:] * factor, labels[4:])]
        for scale, factor in factors.items()
    }


class Disliking(Preferring):
    def forward(self, s: Tensor) -> Tensor:
        return super().forward(s).flip(1)


class Units(nn.Module):
    """Units that like brightness, and one that dislikes it, on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = OneUnit(), OneUnit(), OneUnit()
        self.second.unit.gate = Disliking()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x), self.second(x)
        return self.third(nn.functional.avg_pool2d(first + second, 2))


class Pyramid(Units):
    """Back on the first size of map after a smaller one, with other kernels in between."""

    def __init__(self) -> None:
        super().__init__()
        self.second.unit = edge_sk.SelectiveKernel(4, 4, kernels="3+5", groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        return self.third(x)
