"""The selective kernel for inference, in operators that stay inside one delegate."""

from __future__ import annotations

import copy
import functools
import operator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edge_sk.errors import InputError
from edge_sk.tracing import is_activation

if TYPE_CHECKING:
    from edge_sk.selective_kernel import SelectiveKernel


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A new convolution that computes ``norm(conv(x))``; rounded once, from float64."""
    exact_conv, exact_norm = copy.deepcopy(conv), copy.deepcopy(norm)
    for module in (exact_conv, exact_norm):
        module.to("cpu", torch.float64)
    return fuse_conv_bn_eval(exact_conv, exact_norm).to(conv.weight.device, conv.weight.dtype)


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

    fx_leaf = True

    def __init__(self, unit: SelectiveKernel) -> None:
        super().__init__()
        self.in_channels = unit.in_channels
        self.out_channels = unit.out_channels
        self.convs, self.acts = nn.ModuleList(), nn.ModuleList()
        for branch in unit.branches:
            conv, norm, *rest = branch.children()
            if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
                raise InputError(
                    f"a branch begins with {type(conv).__name__} and {type(norm).__name__}: only Conv2d and "
                    "BatchNorm2d can be folded"
                )
            self.convs.append(folded(conv, norm))
            self.acts.append(nn.Sequential(*map(_out_of_place, rest)))
        gate = unit.gate
        self.select = gate is not None
        if gate is None:
            return
        branches, channels = gate.num_branches, gate.channels
        self.reduce = folded(gate.reduce, gate.bn)
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
    def permutable(self) -> bool:
        """Whether every branch treats every channel by itself, and alike but for the convolution's weights."""
        depthwise = all(conv.groups == self.in_channels == self.out_channels for conv in self.convs)
        acts = [act for branch in self.acts for act in branch.children()]
        alike = all(isinstance(act, nn.Identity) or is_activation(act) for act in acts)
        return depthwise and alike and all(parameter.numel() == 1 for parameter in self.acts.parameters())

    def permute_channels(self, order: list[int]) -> None:
        """Take and give the channels in another order, ``new[i] = old[order[i]]``; for permutable units only."""
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
