"""Start a selective kernel as the convolution that it replaces.

A branch *holds* the old filter if it can equal it: not dilated, at least as large, and its groups divide the old ones.
Holders start as the old filter, zero-padded, with the old batch normalisation (a bias of the convolution goes into its
mean). If every branch is a holder, all give the old output, and so does any attention, because it sums to one.

A dilated or a smaller branch does not hold it. Beside a holder it starts with its batch normalisation scaled by
:data:`WHISPER`: it adds nothing that float32 can see, but the gradient of that scale has full size from the first step
(at exactly zero, ReLU would pass none and the branch would stay dead). The attention must then be known: the gate's
last map starts at zero, so that every branch has weight ``1 / M``, and the holders' normalisation is scaled up to make
up for it. Scaling commutes with the activation only if that is positively homogeneous (ReLU, LeakyReLU, PReLU, none);
with any other, the activation stays behind the selection and the branches are linear.

Without any holder the function cannot be kept: every branch starts as near to the old filter as it can be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edge_sk.grafting.site import Site
from edge_sk.selective_kernel import Kernel, SelectiveKernel

# Scale of a branch that is to add nothing yet: below float32's resolution, far above its smallest number.
WHISPER = 1e-8
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
    scale = (len(held) if unit.gate is not None else 1) / sum(working)
    whisper = max(WHISPER, torch.finfo(site.conv.weight.dtype).tiny)
    for branch, kernel, works in zip(unit.branches, unit.kernels, working, strict=True):
        conv, norm = branch.get_submodule("conv"), branch.get_submodule("bn")
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        weight = _regroup(site.conv.weight, site.groups, conv.groups)
        conv.weight.copy_(_resample(weight, kernel))
        _copy_norm(norm, site, scale if works else whisper)
    if unit.gate is not None and not all(working):
        nn.init.zeros_(unit.gate.expand.weight)


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
