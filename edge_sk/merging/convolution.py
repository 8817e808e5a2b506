"""One convolution for a unit of fixed attention: exact, or fitted with the taps of the host's own kernel."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_sk import running
from edge_sk.grafting.preserve import regroup
from edge_sk.selective_kernel import SelectiveKernel, as_convolution

# Branches that are one convolution each.
_CONVOLUTIONS = ([nn.Conv2d], [nn.Conv2d, nn.BatchNorm2d])


def host_kernel(unit: SelectiveKernel) -> tuple[int, int]:
    """Taps of the convolution that a unit stands for: of its first branch without dilation, else of the smallest.

    :func:`edge_sk.graft` and the zoo put the host's own kernel first.
    """
    undilated = [kernel.taps for kernel in unit.kernels if kernel.dilation == 1]
    return undilated[0] if undilated else min(kernel.extents for kernel in unit.kernels)


@torch.no_grad()
def merged(unit: SelectiveKernel, attention: Tensor) -> nn.Module:
    """What a unit computes with its attention fixed to ``(M, C)``, a new module.

    One convolution if the branches are a convolution each, with or without a batch norm; if they have more, such as an
    activation, the unit without its gate.
    """
    if any([*map(type, branch)] not in _CONVOLUTIONS for branch in unit.branches):  # type: ignore[call-overload]
        return _without_gate(unit, attention)
    exact = copy.deepcopy(unit.branches).to("cpu", torch.float64).eval()
    convs = [as_convolution(branch)[0] for branch in exact]
    groups = math.gcd(*(conv.groups for conv in convs))
    size = tuple(map(max, zip(*(kernel.extents for kernel in unit.kernels), strict=True)))
    weight = torch.zeros(unit.out_channels, unit.in_channels // groups, *size, dtype=torch.float64)
    bias = torch.zeros(unit.out_channels, dtype=torch.float64)
    for kernel, conv, share in zip(unit.kernels, convs, attention.to(bias), strict=True):
        borders = [(most - extent) // 2 for most, extent in zip(size, kernel.extents, strict=True)]
        rows, columns = (slice(b, most - b, kernel.dilation) for b, most in zip(borders, size, strict=True))
        weight[:, :, rows, columns] += share[:, None, None, None] * regroup(conv.weight, conv.groups, groups)
        bias += share * (0.0 if conv.bias is None else conv.bias)
    first = unit.branches[0].get_submodule("conv")
    assert isinstance(first, nn.Conv2d)
    return _convolution(first, weight, bias, groups)


def _without_gate(unit: SelectiveKernel, attention: Tensor) -> SelectiveKernel:
    """A copy that sums its branches, the fixed attention within them."""
    twin = copy.deepcopy(unit)
    twin.gate = None
    for branch, share in zip(twin.branches, attention.to(running.reference(unit)), strict=True):
        conv, *rest = branch.children()
        last = rest.pop(0) if [type(conv), *map(type, rest[:1])] == _CONVOLUTIONS[1] else conv
        # These commute with positive factors, which attention is.
        commute = all(type(act) in (nn.ReLU, nn.LeakyReLU, nn.Identity) for act in rest)
        if commute and type(last) in (nn.Conv2d, nn.BatchNorm2d):
            for parameter in last.parameters():
                parameter.mul_(share.view(-1, *[1] * (parameter.ndim - 1)))
        else:
            scale = nn.Conv2d(len(share), len(share), 1, groups=len(share), bias=False).to(share)
            scale.weight.copy_(share[:, None, None, None])
            branch.add_module("scale", scale)
    return twin


@torch.no_grad()
def cut(conv: nn.Conv2d, size: tuple[int, int], inputs: Iterable[Tensor]) -> nn.Conv2d:
    """The convolution of ``size`` taps and the same groups that comes nearest to ``conv`` on ``inputs``.

    Each output channel's taps and bias are a least-squares fit to the larger convolution's output.

    Args:
        conv: A convolution with a bias and an odd kernel larger than ``size``.
        size: Rows and columns.
        inputs: What the convolution gets, ``(N, C, H, W)`` each.
    """
    groups, (rows, columns) = (
        conv.groups,
        ((large - small) // 2 for large, small in zip(conv.kernel_size, size, strict=True)),
    )
    assert conv.bias is not None
    start = _convolution(conv, F.pad(conv.weight, (-columns, -columns, -rows, -rows)), conv.bias, groups)
    moments, wanted = torch.zeros(()), torch.zeros(())
    for x in (part for batch in inputs for part in batch.split(16)):  # windows take size^2 times the memory
        seen = F.unfold(x, size, padding=(size[0] // 2, size[1] // 2), stride=conv.stride).unflatten(
            1, (groups, -1)
        )  # (N, G, D, L)
        seen = torch.cat([seen, torch.ones_like(seen[:, :, :1])], 2).float()  # the last is the bias
        lost = (conv(x) - start(x)).flatten(2).unflatten(1, (groups, -1)).float()  # (N, G, C/G, L)
        moments = moments + torch.einsum("ngdl,ngel->gde", seen, seen).to("cpu", torch.float64)
        wanted = wanted + torch.einsum("ngdl,ngcl->gdc", seen, lost).to("cpu", torch.float64)
    # A little ridge: taps that see nothing stay.
    ridge = 1e-6 * moments.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(moments.shape[1])
    change = torch.linalg.solve(moments + ridge, wanted).mT.flatten(0, 1)  # (C, D)
    start.weight += change[:, :-1].reshape(start.weight.shape).to(start.weight)
    start.bias += change[:, -1].to(start.weight)  # type: ignore[operator]
    return start


def _convolution(like: nn.Conv2d, weight: Tensor, bias: Tensor, groups: int) -> nn.Conv2d:
    """A convolution of the same channels, stride, device, type and mode; other taps, "same" padding."""
    rows, columns = weight.shape[2:]
    kind = {"device": like.weight.device, "dtype": like.weight.dtype, "groups": groups}
    padding = rows // 2, columns // 2
    conv = nn.Conv2d(like.in_channels, like.out_channels, (rows, columns), like.stride[0], padding, **kind)
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)  # type: ignore[union-attr]
    return conv.train(like.training)
