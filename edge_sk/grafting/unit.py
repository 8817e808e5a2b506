"""Build the selective kernel of a site, and put it into the network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import nn

from edge_sk.errors import InputError
from edge_sk.grafting import eligibility, preserve, structure
from edge_sk.grafting.site import Site
from edge_sk.selective_kernel import Kernel, SelectiveKernel, parse_kernels

Init = Literal["preserve", "random"]
Kernels = Kernel | int | str | Sequence[Kernel | int | str]


def default_kernels(site: Site, init: Init = "random") -> tuple[Kernel, Kernel]:
    """The site's own kernel, and one that sees two pixels more.

    The second is a dilated 3x3 (for a 3x3 site the paper's pair); to preserve a function, a dense one that can hold it.
    """
    size = site.kernel_size
    wider = Kernel(size + 2) if init == "preserve" else Kernel(3, dilation=(size + 1) // 2)
    return Kernel(size), wider


def make_unit(
    site: Site,
    *,
    kernels: Kernels | Callable[[Site], Kernels | None] | None = None,
    reduction: int = 16,
    min_width: int = 32,
    select: bool = True,
    act_layer: str | Callable[..., nn.Module] | None = None,
    init: Init = "random",
) -> SelectiveKernel:
    """Build the selective kernel for a site.

    Args:
        site: Where it will stand.
        kernels: Branches, or a function from the site to them; ``None`` takes :func:`default_kernels`.
        reduction: ``r``.
        min_width: ``L``.
        select: Whether the branches are selected or summed.
        act_layer: Activation of the branches; ``None`` takes the site's own, none if it has none.
        init: ``"random"``: the paper's; ``"preserve"``: the site's function, see :mod:`edge_sk.grafting.preserve`.
    """
    if callable(kernels):
        kernels = kernels(site)
    chosen = default_kernels(site, init) if kernels is None else parse_kernels(kernels)
    own = _branch_activation(site, chosen, select=select, init=init)
    unit = SelectiveKernel(
        site.channels,
        site.channels,
        kernels=chosen,
        stride=site.stride,
        groups=site.groups,
        reduction=reduction,
        min_width=min_width,
        select=select,
        act_layer=act_layer or (lambda: copy.deepcopy(own)),
    )
    if unit.gate is not None and (isinstance(unit.gate.act, nn.Identity) or any(unit.gate.act.parameters())):
        # Nonlinear even where the site is linear; and a PReLU per channel does not fit the gate's width.
        unit.gate.act = nn.ReLU(inplace=True)
    norm = site.norm_module
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = norm.eps, norm.momentum
    unit.to(site.conv.weight.device, site.conv.weight.dtype).train(site.conv.training)
    for branch in unit.branches:
        branch.get_submodule("bn").train(norm.training)
    if init == "preserve":
        preserve.start(unit, site)
    return unit


def _branch_activation(site: Site, kernels: Sequence[Kernel], *, select: bool, init: Init) -> nn.Module:
    activation = site.activation
    if activation is None or activation.module is None:
        return nn.Identity()
    if activation.place == "outside" and not eligibility.is_idempotent(activation.module):
        return nn.Identity()
    if init == "preserve" and not preserve.fits_branches(activation.module, kernels, site, select=select):
        return nn.Identity()
    return activation.module


def activation_moves(site: Site, unit: SelectiveKernel) -> bool:
    """Whether the site's activation leaves its place for the unit's branches."""
    if site.activation is None or site.activation.place == "outside":
        return False
    return not isinstance(unit.branches[0].get_submodule("act"), nn.Identity)


def replace(model: nn.Module, site: Site, unit: SelectiveKernel) -> None:
    """Put ``unit`` in the place of the site's convolution, normalisation and, if branches have it, activation.

    In the model itself, under every name it has for them.
    """
    activation = site.activation
    moves = activation_moves(site, unit)
    behind: nn.Module = nn.Identity()
    if activation is not None and activation.module is not None:
        if activation.place == "norm" and not moves:
            behind = activation.module
        if activation.place == "module" and moves:
            _set(model, activation.module, nn.Identity())
    _set(model, site.conv, unit)
    _set(model, site.norm_module, behind)


def _set(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for path in list(eligibility.paths(model, old)):
        model.set_submodule(path, new)


def insert(
    model: nn.Module, *, where: Callable[[Site], bool] | None = None, **unit_options: Any
) -> list[tuple[Site, SelectiveKernel]]:
    """Replace the sites of a network of known structure, in the model itself; the core of the zoo's ``sk_`` names.

    Args:
        model: Changed in place.
        where: Predicate over sites; ``None`` accepts all.
        unit_options: See :func:`make_unit`.

    Returns:
        The sites replaced, each with its unit.

    Raises:
        InputError: No site was found or accepted.
    """
    found, _ = structure.find(model)
    chosen = [site for site in found if where is None or where(site)]
    if not chosen:
        raise InputError(
            f"{type(model).__name__} has {len(found)} convolutions that a selective kernel could replace and none was "
            "chosen; a site is a grouped or depthwise k x k (k >= 3) convolution followed by batch normalisation"
        )
    units = [(site, make_unit(site, **unit_options)) for site in chosen]
    for site, unit in units:
        replace(model, site, unit)
    return units
