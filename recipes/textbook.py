"""The unit as the paper's equations read, for measurements: what :class:`~edge_sk.SelectiveKernel` is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_sk.selective_kernel import SelectiveKernel


class TextbookSelectiveKernel(nn.Module):
    """Stack the branches, softmax over them, sum (Eq. 1 to 6); the same function as the unit.

    Args:
        unit: A unit with a gate, whose modules it shares.

    Shape:
        As the unit's.
    """

    def __init__(self, unit: SelectiveKernel) -> None:
        super().__init__()
        self.branches, self.gate = unit.branches, unit.gate

    def forward(self, x: Tensor) -> Tensor:
        """Split, fuse, select."""
        assert self.gate is not None
        maps = torch.stack([branch(x) for branch in self.branches], dim=1)
        attention = self.gate(maps.sum(1).mean((2, 3))[:, :, None, None])
        return (attention * maps).sum(1)


def textbook(model: nn.Module) -> nn.Module:
    """Put every unit that selects into the textbook form, in place."""
    for name, unit in list(model.named_modules()):
        if isinstance(unit, SelectiveKernel) and unit.gate is not None:
            model.set_submodule(name, TextbookSelectiveKernel(unit))
    return model
