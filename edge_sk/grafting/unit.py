"""Build the selective kernel for a site, and put it into the network."""

from __future__ import annotations

from typing import Literal

from torch import nn

from edge_sk.errors import InputError
from edge_sk.grafting import preserve
from edge_sk.grafting.site import Site, describe
from edge_sk.selective_kernel import Kernel, SelectiveKernel, UnitSpec

Init = Literal["preserve", "random"]


def default_kernels(site: Site) -> tuple[Kernel, Kernel]:
    """The site's own kernel, and a dilated 3x3 that sees two pixels more: for a 3x3 site the paper's pair.

    One row or column of taps stays one.
    """
    rows, columns = site.conv.kernel_size
    dilation = (site.kernel_size + 1) // 2
    return Kernel(rows, columns=columns), Kernel(min(rows, 3), dilation, columns=min(columns, 3))


def make_unit(site: Site, spec: UnitSpec, init: Init) -> SelectiveKernel:
    """Build the selective kernel for a site, in the site's mode, on its device and in its type.

    It starts as the site's function (``init="preserve"``, :mod:`edge_sk.grafting.preserve`) or as the paper's units.

    Raises:
        InputError: The specification cannot be built here; the message names the site.
    """
    kernels = spec.kernels(site) if callable(spec.kernels) else spec.kernels
    try:
        unit = SelectiveKernel(
            site.conv.in_channels,
            site.channels,
            kernels=default_kernels(site) if kernels is None else kernels,
            stride=site.stride,
            groups=site.groups,
            reduction=spec.reduction,
            min_width=spec.min_width,
            select=spec.select,
            act_layer=spec.act,
            norm=site.norm_module is not None,
        )
    except InputError as error:
        raise InputError(f"at {site.name} ({describe(site.conv)}): {error}") from error
    unit.to(site.conv.weight.device, site.conv.weight.dtype).train(site.conv.training)
    if (norm := site.norm_module) is not None:
        for module in unit.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = norm.eps, norm.momentum
        for branch in unit.branches:
            branch.get_submodule("bn").train(norm.training)
    if init == "preserve":
        preserve.start(unit, site)
    return unit


def replace(model: nn.Module, site: Site, unit: SelectiveKernel) -> None:
    """Put a unit in the place of the site's convolution and normalisation, under every name the model has for them.

    The activation inside timm's ``BatchNormAct2d`` stays in the normalisation's place.
    """
    new: dict[nn.Module, nn.Module] = {site.conv: unit}
    if site.norm_module is not None:
        new[site.norm_module] = getattr(site.norm_module, "act", None) or nn.Identity()
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module in new:
            model.set_submodule(path, new[module])
