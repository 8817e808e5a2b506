"""Start a selective kernel as the convolution that it replaces.

A branch *holds* the old filter if it can equal it: not dilated, at least as large, and its groups divide the old ones.
Holders start as the old filter, zero-padded, with the old batch normalisation (a bias of the convolution goes into its
mean). If every branch is a holder, all give the old output, and so does any attention, because it sums to one.

A dilated or a smaller branch does not hold it. Beside a holder it starts with a batch normalisation of zero weight and
bias: it adds nothing, and these two have gradients of full size from the first step, in float16 too. The attention must
then be known: the gate's last map starts at zero, so that every branch has the weight ``1 / M``, and the holders'
normalisation is scaled up to make up for it. Scaling commutes with linear branches, so the function is kept exactly,
whatever follows.

An activation in the branches does not commute with scaling, unless it is ReLU or a leaky one; then a grafted network
starts near the old one, and the report says how near. A ReLU passes no gradient at zero, so branches that do not hold
the filter start with their batch normalisation scaled by :data:`FADED` instead.

Without any holder the function cannot be kept: every branch starts as near to the old filter as it can be.
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
    return is_linear(unit) and any(holds(kernel, site) for kernel in unit.kernels)


def is_linear(unit: SelectiveKernel) -> bool:
    """Whether the branches have no activation."""
    return not any(hasattr(branch, "act") for branch in unit.branches)


@torch.no_grad()
def start(unit: SelectiveKernel, site: Site) -> None:
    """Give a unit the function of a site, or the nearest that its branches allow, in place."""
    held = [holds(kernel, site) for kernel in unit.kernels]
    # Without a holder all branches share the work.
    working = held if any(held) else [True] * len(held)
    # What the working branches add up to, if each of them gives the old output.
    total = float(sum(working))
    if unit.gate is not None and all(working):
        total = 1.0
    elif unit.gate is not None:
        nn.init.zeros_(unit.gate.expand.weight)
        total /= len(working)
    silent = 0.0 if is_linear(unit) else FADED
    for branch, kernel, works in zip(unit.branches, unit.kernels, working, strict=True):
        conv, norm = branch.get_submodule("conv"), branch.get_submodule("bn")
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        weight = _regroup(site.conv.weight, site.groups, conv.groups)
        conv.weight.copy_(_resample(weight, kernel))
        _copy_norm(norm, site, 1 / total if works else silent)


def _copy_norm(norm: nn.BatchNorm2d, site: Site, scale: float) -> None:
    old = site.norm_module
    assert old.running_mean is not None
    assert old.running_var is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    bias = 0 if site.conv.bias is None else site.conv.bias
    norm.running_mean.copy_(old.running_mean - bias)
    norm.running_var.copy_(old.running_var)
    if norm.num_batches_tracked is not None and old.num_batches_tracked is not None:
        norm.num_batches_tracked.copy_(old.num_batches_tracked)
    if old.affine:
        norm.weight.copy_(old.weight)
        norm.bias.copy_(old.bias)
    norm.weight.mul_(scale)
    norm.bias.mul_(scale)


def _resample(weight: Tensor, kernel: Kernel) -> Tensor:
    """Give each tap to the nearest taps of a kernel, linearly; what lies outside it goes to its border.

    Zero-padding where the kernel covers the filter's taps; elsewhere a filter of the same sum over its taps.
    """
    old = torch.arange(weight.shape[-1], dtype=torch.float64) - weight.shape[-1] // 2
    new = (torch.arange(kernel.size, dtype=torch.float64) - kernel.size // 2) * kernel.dilation
    old = old.clamp(new[0], new[-1])
    share = (1 - (new[:, None] - old).abs() / kernel.dilation).clamp(min=0).to(weight)  # (new taps, old taps)
    return share @ weight @ share.T


def _regroup(weight: Tensor, old: int, new: int) -> Tensor:
    """Write a filter of ``old`` groups as one of ``new``: connections of zero are added, others drop out."""
    if old == new:
        return weight
    channels, fan_in = weight.shape[0], weight.shape[1]
    regrouped = weight.new_zeros(channels, channels // new, *weight.shape[2:])
    for out in range(channels):
        first = out // fan_in * fan_in
        new_first = out // (channels // new) * (channels // new)
        begin, end = max(first, new_first), min(first + fan_in, new_first + channels // new)
        regrouped[out, begin - new_first : end - new_first] = weight[out, begin - first : end - first]
    return regrouped
