"""Start a selective kernel as the convolution that it replaces.

A branch *holds* the old filter if it can equal it: not dilated, at least as large, and its groups divide the old ones.
Holders start as the old filter, zero-padded, with the old batch normalisation (a bias of the convolution goes into its
mean). If every branch is a holder, all give the old output, and so does any attention, because it sums to one.

A dilated or a smaller branch does not hold it. Beside a holder it starts with its batch normalisation scaled by
:data:`WHISPER`: it adds nothing that float32 can see, but the gradient of that scale has full size from the first step
(at exactly zero, ReLU would pass none and the branch would stay dead). The attention must then be known: the gate's
last map starts at zero, so that every branch has weight ``1 / M``, and the holders' normalisation is scaled up to make
up for it. Scaling commutes with the activation only if that is positively homogeneous (ReLU, LeakyReLU, PReLU, none);
with any other, :func:`edge_sk.graft` leaves the activation behind the selection, and the branches are linear.

The zoo's ``sk_`` names have every activation inside the branches, where a hard-swish or a ReLU6 makes the function no
longer exact beside a whispering branch. There the gate starts with a constant attention that leaves whispering
branches :data:`FAINT`, so that holders are scaled by hardly more than one. Measured on MobileNets v1, v2 and v3 small
with the statistics of real activations: 0.4 to 1.3 % of the largest output, where uniform attention and holders of
twice the size give 30 to 50 %, and the same faint attention with unscaled holders beside the nearest filters 2 to 25 %.

Without any holder the function cannot be kept: every branch starts as near to the old filter as it can be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edge_sk.grafting.site import Site
from edge_sk.selective_kernel import Gate, Kernel, SelectiveKernel

# Scale of a branch that is to add nothing yet: below float32's resolution, far above its smallest number.
WHISPER = 1e-8
# Attention that whispering branches share where holders must keep their scale: the output differs in proportion to it,
# and so do the gradients that wake those branches.
FAINT = 0.01
_HOMOGENEOUS = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU)


def holds(kernel: Kernel, site: Site) -> bool:
    """Whether a branch can equal the site's convolution."""
    groups = kernel.groups or site.groups
    return kernel.dilation == 1 and kernel.size >= site.kernel_size and site.groups % groups == 0


def is_exact(kernels: Sequence[Kernel], site: Site) -> bool:
    """Whether a unit of these branches can start as the site's function."""
    return any(holds(kernel, site) for kernel in kernels)


def fits_branches(activation: nn.Module, kernels: Sequence[Kernel], site: Site, *, select: bool) -> bool:
    """Whether the unit can start as the site's function with the activation inside its branches."""
    every = all(holds(kernel, site) for kernel in kernels)
    return (every and select) or isinstance(activation, _HOMOGENEOUS)


@torch.no_grad()
def start(unit: SelectiveKernel, site: Site) -> None:
    """Give a unit the function of a site, or the nearest its branches allow, in place."""
    held = [holds(kernel, site) for kernel in unit.kernels]
    # Without a holder all branches share the work.
    working = held if any(held) else [True] * len(held)
    homogeneous = isinstance(unit.branches[0].get_submodule("act"), _HOMOGENEOUS)
    if unit.gate is None:
        if any(held) and not homogeneous:
            # Parts of the old filter would not add up behind the activation: the first holder is all of it.
            working = [index == held.index(True) for index in range(len(held))]
        attention = float(sum(working))
    elif all(working):
        attention = 1.0
    else:
        attention = sum(working) / len(working) if homogeneous else 1 - FAINT
        _attend(unit.gate, working, attention)
    whisper = max(WHISPER, torch.finfo(site.conv.weight.dtype).tiny)
    for branch, kernel, works in zip(unit.branches, unit.kernels, working, strict=True):
        conv, norm = branch.get_submodule("conv"), branch.get_submodule("bn")
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        weight = _regroup(site.conv.weight, site.groups, conv.groups)
        conv.weight.copy_(_resample(weight, kernel))
        _copy_norm(norm, site, 1 / attention if works else whisper)


def _attend(gate: Gate, working: Sequence[bool], attention: float) -> None:
    """Start the gate with ``attention`` for the working branches together, the rest for the others, for any input."""
    others = len(working) - sum(working)
    margin = math.log(attention * others / ((1 - attention) * sum(working)))
    nn.init.zeros_(gate.expand.weight)
    if abs(margin) < 1e-6:
        return
    # The gate has no bias; a hidden vector that starts constant stands for one. Its scale has a gradient at once.
    nn.init.zeros_(gate.bn.weight)
    nn.init.ones_(gate.bn.bias)
    level = gate.act(torch.ones_like(gate.bn.bias)).sum()
    by_branch = gate.expand.weight.view(len(working), gate.channels, -1)
    for index, works in enumerate(working):
        if not works:
            by_branch[index] = -margin / level


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
