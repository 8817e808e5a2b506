"""Start a selective kernel as the convolution that it replaces.

A branch can *hold* the old filter if it is not dilated, at least as large, and its groups divide the old ones. Such a
branch starts as the old filter, zero-padded, with the old batch normalisation (a bias of the convolution goes into its
mean) or, where the site has none, the old bias. If every branch holds the filter, all give the old output, and so does
any attention, because it sums to one.

A dilated or a smaller branch cannot hold it. Beside a branch that does, it starts with a batch normalisation of zero
weight and bias, or without one with a filter and a bias of zero: it adds nothing, and these have gradients of full size
from the first step, in float16 too. The attention must then be known: the gate's last map starts at zero, so that every
branch has the weight ``1 / M``, and the other branches are scaled up to make up for it. Scaling commutes with linear
branches, so the function is kept exactly, whatever follows.

An activation in the branches does not commute with scaling, unless it is ReLU or a leaky one; then a grafted network
starts near the old one, and the report says how near. A ReLU passes no gradient at zero, so branches that cannot hold
the filter start scaled by :data:`FADED` instead.

If no branch can hold the filter, the function cannot be kept: every branch starts as near to the old filter as it can.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_sk.grafting.site import Site
from edge_sk.selective_kernel import Kernel, SelectiveKernel

# Far below what changes an output, far above the smallest number of float16.
FADED = 2.0**-16


def holds(kernel: Kernel, site: Site) -> bool:
    """Whether a branch can equal the site's convolution."""
    groups = kernel.groups or site.groups
    larger = all(new >= old for new, old in zip(kernel.taps, site.conv.kernel_size, strict=True))
    return kernel.dilation == 1 and larger and site.groups % groups == 0


def is_exact(unit: SelectiveKernel, site: Site) -> bool:
    """Whether a unit can start as the site's function: linear branches, one of which holds the filter."""
    return unit.linear and any(holds(kernel, site) for kernel in unit.kernels)


@torch.no_grad()
def start(unit: SelectiveKernel, site: Site) -> None:
    """Give a unit the function of a site, or the nearest that its branches allow, in place."""
    held = [holds(kernel, site) for kernel in unit.kernels]
    # If no branch holds the filter, all share the work.
    working = held if any(held) else [True] * len(held)
    # What the working branches add up to, if each of them gives the old output.
    total = float(sum(working))
    if unit.gate is not None:
        total /= len(working)
        if not all(working):
            nn.init.zeros_(unit.gate.expand.weight)
    silent = 0.0 if unit.linear else FADED
    for branch, kernel, works in zip(unit.branches, unit.kernels, working, strict=True):
        conv = last = branch.get_submodule("conv")
        assert isinstance(conv, nn.Conv2d)
        conv.weight.copy_(_resample(regroup(site.conv.weight, site.groups, conv.groups), kernel))
        if site.norm_module is not None:
            last = branch.get_submodule("bn")
            last.load_state_dict(site.norm_module.state_dict(), strict=False)  # without the activation of timm's norms
            if site.conv.bias is not None:
                last.running_mean -= site.conv.bias  # type: ignore[operator]
        elif site.conv.bias is not None:
            assert conv.bias is not None
            conv.bias.copy_(site.conv.bias)
        for parameter in last.parameters():
            parameter.mul_(1 / total if works else silent)


def _resample(weight: Tensor, kernel: Kernel) -> Tensor:
    """Give each tap to the nearest taps of a kernel, linearly; what lies outside it goes to its border.

    This is zero-padding where the kernel covers the filter's taps; elsewhere it keeps the sum over the taps.
    """
    shares = []
    for was, size in zip(weight.shape[2:], kernel.taps, strict=True):
        old = torch.arange(was, dtype=torch.float64) - was // 2
        new = (torch.arange(size, dtype=torch.float64) - size // 2) * kernel.dilation
        old = old.clamp(new[0], new[-1])
        share = (1 - (new[:, None] - old).abs() / kernel.dilation).clamp(min=0)  # (new taps, old taps)
        shares.append(share.to(weight))
    rows, columns = shares
    return rows @ weight @ columns.T


def regroup(weight: Tensor, old: int, new: int) -> Tensor:
    """Write a filter of ``old`` groups as one of ``new``: connections of zero are added, others drop out."""
    if old == new:
        return weight
    outputs, inputs = weight.shape[0], weight.shape[1] * old
    regrouped = weight.new_zeros(outputs, inputs // new, *weight.shape[2:])
    for out in range(outputs):
        old_first, new_first = (out * groups // outputs * (inputs // groups) for groups in (old, new))
        begin, end = max(old_first, new_first), min(old_first + inputs // old, new_first + inputs // new)
        regrouped[out, begin - new_first : end - new_first] = weight[out, begin - old_first : end - old_first]
    return regrouped
