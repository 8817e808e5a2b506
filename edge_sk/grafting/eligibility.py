"""Which convolutions, normalisations and activations a selective kernel can stand for, and why others cannot."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from edge_sk import tracing
from edge_sk.selective_kernel import SelectiveKernel
from edge_sk.tracing import Sharing, is_norm_act


def is_selective_kernel(module: nn.Module) -> bool:
    """Whether a module is a selective kernel, ours or timm's."""
    timm = tracing.timm_layers()
    return isinstance(module, SelectiveKernel) or (timm is not None and isinstance(module, timm.SelectiveKernel))


def grouped_convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Grouped and depthwise convolutions larger than 1x1, by path, without those inside selective kernels."""
    units = [name for name, module in model.named_modules() if is_selective_kernel(module)]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.groups > 1
        and max(module.kernel_size) > 1
        and not any(name.startswith(f"{unit}." if unit else "") for unit in units)
    }


def why_not_conv(conv: nn.Conv2d, sharing: Sharing) -> str | None:
    """The reason why a convolution cannot be replaced, whatever surrounds it."""
    height, width = conv.kernel_size
    if trouble := _trouble(conv, sharing):
        return f"the convolution {trouble}"
    if type(conv) is not nn.Conv2d:
        return f"it is a {type(conv).__name__}, which computes more than nn.Conv2d"
    if height != width:
        return f"its kernel is {height}x{width}, not square"
    if height % 2 == 0:
        return f"its kernel is even ({height}x{width}): branches of other sizes would not align"
    if conv.in_channels != conv.out_channels:
        return f"it maps {conv.in_channels} channels to {conv.out_channels}"
    if conv.stride[0] != conv.stride[1]:
        return f"its stride is {conv.stride[0]}x{conv.stride[1]}"
    if conv.dilation != (1, 1):
        return f"it is dilated ({conv.dilation[0]})"
    if conv.padding not in (((height - 1) // 2,) * 2, "same"):
        return f"its padding {conv.padding} is not that of a centred kernel"
    if conv.padding_mode != "zeros":
        return f"it pads with {conv.padding_mode!r}, branches pad with zeros"
    return None


def why_not_norm(norm: nn.Module, sharing: Sharing) -> str | None:
    """The reason why what follows a convolution cannot become the branches' batch normalisation."""
    if trouble := _trouble(norm, sharing):
        return f"its {type(norm).__name__} {trouble}"
    if type(norm) is not nn.BatchNorm2d and not is_norm_act(norm):
        hints = {
            "SyncBatchNorm": ": graft first, then convert",
            "SyncBatchNormAct": ": graft first, then convert",
            "FrozenBatchNorm2d": ": branches would train it; thaw it first",
            "FrozenBatchNormAct2d": ": branches would train it; thaw it first",
        }
        name = type(norm).__name__
        return f"it is followed by {name}, not by batch normalisation" + hints.get(name, "")
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.running_mean is None:
        return "its batch normalisation keeps no running statistics"
    if is_norm_act(norm) and not isinstance(norm.drop, nn.Identity):
        return f"its {type(norm).__name__} drops activations"
    return None


def _trouble(module: nn.Module, sharing: Sharing) -> str | None:
    if is_parametrized(module):
        names = ", ".join(module.parametrizations.keys())  # type: ignore[union-attr, operator]
        return f"has a parametrization of {names}, which branches would not have; remove it first"
    hooks = tracing.hooks(module)
    if hooks:
        name = getattr(hooks[0], "__qualname__", type(hooks[0]).__name__)
        return f"has a hook ({name}), which branches would not run; remove it first"
    if sharing.ties(module):
        return "shares its parameters with another module"
    return None


def paths(model: nn.Module, module: nn.Module) -> Iterator[str]:
    """Every name under which a model holds a module."""
    for name, other in model.named_modules(remove_duplicate=False):
        if other is module:
            yield name
