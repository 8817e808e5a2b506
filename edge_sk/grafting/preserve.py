"""Start a selective kernel as the convolution that it replaces.

A branch can *hold* the old filter if it is not dilated, at least as large, and its groups divide the old ones. Such a
branch starts as the old filter, zero-padded, with the old batch normalisation (a bias of the convolution goes into its
mean). If every branch holds the filter, all give the old output, and so does any attention, because it sums to one.

A dilated or a smaller branch cannot hold it. Beside a branch that does, it starts with a batch normalisation of zero
weight and bias: it adds nothing, and these two have gradients of full size from the first step, in float16 too. The
attention must then be known: the gate's last map starts at zero, so that every branch has the weight ``1 / M``, and the
other branches' normalisation is scaled up to make up for it. Scaling commutes with linear branches, so the function is
kept exactly, whatever follows.

An activation in the branches does not commute with scaling, unless it is ReLU or a leaky one; then a grafted network
starts near the old one, and the report says how near. A ReLU passes no gradient at zero, so branches that cannot hold
the filter start with their batch normalisation scaled by :data:`FADED` instead.

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
    return kernel.dilation == 1 and kernel.size >= site.kernel_size and site.groups % groups == 0


def is_exact(unit: SelectiveKernel, site: Site) -> bool:
    """Whether a unit can start as the site's function: linear branches, one of which holds the filter."""
    return _is_linear(unit) and any(holds(kernel, site) for kernel in unit.kernels)


def _is_linear(unit: SelectiveKernel) -> bool:
    return not any(hasattr(branch, "act") for branch in unit.branches)


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
    silent = 0.0 if _is_linear(unit) else FADED
    for branch, kernel, works in zip(unit.branches, unit.kernels, working, strict=True):
        conv, norm = branch.get_submodule("conv"), branch.get_submodule("bn")
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        scale = 1 / total if works else silent
        conv.weight.copy_(_resample(regroup(site.conv.weight, site.groups, conv.groups), kernel))
        norm.load_state_dict(site.norm_module.state_dict(), strict=False)  # without the activation of timm's norms
        if site.conv.bias is not None:
            norm.running_mean -= site.conv.bias
        norm.weight.mul_(scale)
        norm.bias.mul_(scale)


def _resample(weight: Tensor, kernel: Kernel) -> Tensor:
    """Give each tap to the nearest taps of a kernel, linearly; what lies outside it goes to its border.

    This is zero-padding where the kernel covers the filter's taps; elsewhere it keeps the sum over the taps.
    """
    old = torch.arange(weight.shape[-1], dtype=torch.float64) - weight.shape[-1] // 2
    new = (torch.arange(kernel.size, dtype=torch.float64) - kernel.size // 2) * kernel.dilation
    old = old.clamp(new[0], new[-1])
    share = (1 - (new[:, None] - old).abs() / kernel.dilation).clamp(min=0).to(weight)  # (new taps, old taps)
    return share @ weight @ share.T


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
