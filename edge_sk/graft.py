"""Put selective kernels where a network has grouped or depthwise convolutions."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from edge_sk.errors import InputError
from edge_sk.selective_kernel import Kernel, SelectiveKernel, parse_kernels


@dataclasses.dataclass(frozen=True)
class Site:
    """A convolution that a selective kernel can stand for, with what follows it.

    Args:
        name: Dotted path of the convolution in the model.
        conv: The convolution, ``k x k`` with ``k >= 3``, grouped or depthwise.
        norm: Dotted path of its batch normalisation.
        act: Dotted path of its activation; ``None`` if there is none, or if it is part of the normalisation.
        act_module: The activation, wherever it is; ``None`` without one.
    """

    name: str
    conv: nn.Conv2d
    norm: str
    act: str | None
    act_module: nn.Module | None

    @property
    def kernel_size(self) -> int:
        """Taps per side."""
        return int(self.conv.kernel_size[0])

    @property
    def stride(self) -> int:
        """Stride."""
        return int(self.conv.stride[0])

    @property
    def groups(self) -> int:
        """Groups."""
        return self.conv.groups

    @property
    def channels(self) -> int:
        """Input and output channels."""
        return self.conv.out_channels

    @property
    def depthwise(self) -> bool:
        """Whether every channel has its own filter."""
        return self.groups == self.channels


def default_kernels(site: Site) -> tuple[Kernel, Kernel]:
    """The site's own kernel, and a dilated 3x3 that sees two pixels more: for a 3x3 the paper's pair."""
    return Kernel(site.kernel_size), Kernel(3, dilation=(site.kernel_size + 1) // 2)


def find_sites(model: nn.Module) -> list[Site]:
    """Find the sites of a model by its module structure.

    A site is a square grouped convolution of at least 3x3, of equal input and output channels and "same" padding, whose
    next sibling that does anything is a batch normalisation.
    """
    return [site for prefix, parent in model.named_modules() for site in _sites_of(prefix, parent)]


def _sites_of(prefix: str, parent: nn.Module) -> Iterator[Site]:
    children = [(n, child) for n, child in parent.named_children() if not _is_identity(child)]
    for index, (name, conv) in enumerate(children):
        if not _replaceable(conv) or index + 1 == len(children):
            continue
        assert isinstance(conv, nn.Conv2d)
        norm_name, norm = children[index + 1]
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        inside = getattr(norm, "act", None)  # timm's BatchNormAct2d
        act_name, act = None, None
        if isinstance(inside, nn.Module) and not _is_identity(inside):
            act = inside
        elif index + 2 < len(children) and _is_activation(children[index + 2][1]):
            act_name, act = children[index + 2]
        dot = f"{prefix}." if prefix else ""
        yield Site(
            name=dot + name,
            conv=conv,
            norm=dot + norm_name,
            act=None if act_name is None else dot + act_name,
            act_module=act,
        )


def _replaceable(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d or module.groups == 1:
        return False
    size = module.kernel_size[0]
    same = ((size - 1) // 2,) * 2
    return (
        module.kernel_size == (size, size)
        and size >= 3
        and size % 2 == 1
        and module.in_channels == module.out_channels
        and module.stride[0] == module.stride[1]
        and module.dilation == (1, 1)
        and module.padding in (same, "same")
        and module.padding_mode == "zeros"
    )


def _is_identity(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity)


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations"))


def make_unit(
    site: Site,
    *,
    kernels: str | Sequence[Kernel] | None = None,
    reduction: int = 16,
    min_width: int = 32,
    select: bool = True,
    act_layer: Callable[..., nn.Module] | None = None,
) -> SelectiveKernel:
    """Build the selective kernel for a site, with the paper's initialisation.

    Args:
        site: Where it will stand.
        kernels: Branches; ``None`` takes :func:`default_kernels`.
        reduction: ``r``.
        min_width: ``L``.
        select: Whether the branches are selected or summed.
        act_layer: Activation of the branches; ``None`` takes the site's own, none if it has none.
    """
    if act_layer is None:
        act = site.act_module

        def act_layer() -> nn.Module:
            return nn.Identity() if act is None else copy.deepcopy(act)

    unit = SelectiveKernel(
        site.channels,
        site.channels,
        kernels=default_kernels(site) if kernels is None else parse_kernels(kernels),
        stride=site.stride,
        groups=site.groups,
        reduction=reduction,
        min_width=min_width,
        select=select,
        act_layer=act_layer,
    )
    if unit.gate is not None and isinstance(unit.gate.act, nn.Identity):
        unit.gate.act = nn.ReLU(inplace=True)  # the gate is nonlinear even where the site is linear
    return unit


def replace(model: nn.Module, site: Site, unit: SelectiveKernel) -> None:
    """Put ``unit`` in the place of the site's convolution, normalisation and activation, in the model itself."""
    norm = model.get_submodule(site.norm)
    assert isinstance(norm, nn.BatchNorm2d)
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = norm.eps, norm.momentum
    unit.to(site.conv.weight.device, site.conv.weight.dtype).train(site.conv.training)
    model.set_submodule(site.name, unit)
    model.set_submodule(site.norm, nn.Identity())
    if site.act is not None:
        model.set_submodule(site.act, nn.Identity())


def insert(model: nn.Module, *, where: Callable[[Site], bool] | None = None, **unit_options: Any) -> list[Site]:
    """Replace every site that ``where`` accepts, in the model itself, with freshly initialised units.

    Args:
        model: Changed in place.
        where: Predicate over sites; ``None`` accepts all.
        unit_options: See :func:`make_unit`.

    Returns:
        The sites replaced.

    Raises:
        InputError: No site was found or accepted.
    """
    found = find_sites(model)
    chosen = [site for site in found if where is None or where(site)]
    if not chosen:
        raise InputError(
            f"{type(model).__name__} has {len(found)} convolutions that a selective kernel could replace and none was "
            "chosen; a site is a grouped or depthwise k x k (k >= 3) convolution followed by batch normalisation"
        )
    for site in chosen:
        replace(model, site, make_unit(site, **unit_options))
    return chosen


@torch.no_grad()
def copy_site(site: Site, norm: nn.BatchNorm2d, unit: SelectiveKernel) -> None:
    """Start every branch that can hold the site's filter as that filter, zero-padded, with its normalisation."""
    for branch, kernel in zip(unit.branches, unit.kernels, strict=True):
        conv, bn = branch.get_submodule("conv"), branch.get_submodule("bn")
        assert isinstance(conv, nn.Conv2d)
        same_groups = conv.groups == site.groups
        if kernel.dilation == 1 and kernel.size >= site.kernel_size and same_groups:
            margin = (kernel.size - site.kernel_size) // 2
            conv.weight.copy_(nn.functional.pad(site.conv.weight, [margin] * 4))
            bn.load_state_dict({k: v for k, v in norm.state_dict().items() if k in bn.state_dict()})
