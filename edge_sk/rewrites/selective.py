"""The selective kernel in the form that stays inside one delegate."""

from __future__ import annotations

import copy
import functools
import operator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

if TYPE_CHECKING:
    from edge_sk.selective_kernel import SelectiveKernel


class DeploySelectiveKernel(nn.Module):
    r"""What a trained :class:`~edge_sk.SelectiveKernel` computes, as few operators that every backend takes.

    - batch norm is folded into the branches and the gate
    - two branches: the softmax of two logits is a sigmoid of their difference, and the difference of two linear maps
      is one linear map: :math:`g = \sigma((A_1 - A_2) z)`, :math:`V = U_2 + g (U_1 - U_2)`
    - more branches: softmax over the last axis, the only one that XNNPACK has

    Args:
        unit: The trained unit; it is not changed.

    Shape:
        - As :class:`~edge_sk.SelectiveKernel`
    """

    def __init__(self, unit: SelectiveKernel) -> None:
        super().__init__()
        self.in_channels = unit.in_channels
        self.out_channels = unit.out_channels
        self.convs = nn.ModuleList(
            fuse_conv_bn_eval(branch.get_submodule("conv"), branch.get_submodule("bn"))  # type: ignore[type-var]
            for branch in unit.branches
        )
        self.acts = nn.ModuleList(_out_of_place(branch.get_submodule("act")) for branch in unit.branches)
        gate = unit.gate
        self.select = gate is not None
        if gate is None:
            return
        branches, channels = gate.num_branches, gate.channels
        self.reduce = fuse_conv_bn_eval(gate.reduce, gate.bn)
        self.act = _out_of_place(gate.act)
        weight = gate.expand.weight.detach().view(branches, channels, -1, 1, 1)
        # Two branches: the difference. More: rows in (channel, branch) order, so that the softmax's axis is the last.
        rows = weight[0] - weight[1] if branches == 2 else weight.transpose(0, 1).flatten(0, 1)
        self.expand = nn.Conv2d(rows.shape[1], rows.shape[0], 1, bias=False)
        self.expand.weight = nn.Parameter(rows.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the branches' outputs."""
        maps = [act(conv(x)) for conv, act in zip(self.convs, self.acts, strict=True)]
        if not self.select:
            return _sum(maps)
        logits = self.expand(self.act(self.reduce(_pool(maps))))
        if len(maps) == 2:
            first, second = maps
            return second + (first - second) * torch.sigmoid(logits)
        attention = torch.softmax(logits.view(-1, self.out_channels, len(maps)), dim=-1)
        weights = [attention[:, :, m : m + 1].reshape(-1, self.out_channels, 1, 1) for m in range(len(maps))]
        return _sum([a * u for a, u in zip(weights, maps, strict=True)])

    @property
    def depthwise(self) -> bool:
        """Whether every branch treats every channel by itself."""
        return all(conv.groups == self.in_channels == self.out_channels for conv in self.convs)

    def permute_channels(self, order: list[int]) -> None:
        """Take and give the channels in another order, ``new[i] = old[order[i]]``; for depthwise units only."""
        index = torch.tensor(order)
        for conv in self.convs:
            for parameter in conv.parameters():
                parameter.data = parameter.data[index]
        if not self.select:
            return
        self.reduce.weight.data = self.reduce.weight.data[:, index]
        rows = self.expand.weight.data.view(self.out_channels, -1, *self.expand.weight.shape[1:])
        self.expand.weight.data = rows[index].flatten(0, 1)


# Values of one branch's map, above which adding maps costs more than pooling each (ShuffleNetV2 1.0x below, 2 % faster
# so; MobileNetV2's first units above, 3 %).
LARGE_MAP = 2**17


def _pool(maps: list[Tensor]) -> Tensor:
    """Pooled sum of the branches: one operator less for small maps, less memory traffic for large ones."""
    if maps[0][0].numel() > LARGE_MAP:
        return _sum([u.mean((2, 3), keepdim=True) for u in maps])
    return _sum(maps).mean((2, 3), keepdim=True)


def _out_of_place(act: nn.Module) -> nn.Module:
    act = copy.deepcopy(act)
    if hasattr(act, "inplace"):
        act.inplace = False  # type: ignore[assignment]
    return act


def _sum(tensors: list[Tensor]) -> Tensor:
    return functools.reduce(operator.add, tensors)
