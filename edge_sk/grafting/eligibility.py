"""Which convolutions a selective kernel can replace, why it cannot replace others, and which norms it takes over."""

from __future__ import annotations

from typing import TypeGuard

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from edge_sk import tracing
from edge_sk.selective_kernel import SelectiveKernel


def is_selective_kernel(module: nn.Module) -> bool:
    """Whether a module is a selective kernel, ours or timm's."""
    timm = tracing.timm_layers()
    return isinstance(module, SelectiveKernel) or (timm is not None and isinstance(module, timm.SelectiveKernel))


def grouped_convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Grouped and depthwise convolutions larger than 1x1, by path, without those inside selective kernels."""
    inside = {part for module in model.modules() if is_selective_kernel(module) for part in module.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.kernel_size) > 1 and module not in inside
    }


def why_not_conv(conv: nn.Conv2d, shared: set[nn.Parameter]) -> str | None:
    """The reason why a convolution cannot be replaced, whatever surrounds it."""
    if obstacle := _obstacle(conv, shared):
        return f"the convolution {obstacle}"
    height, width = conv.kernel_size
    stride, dilation, centred = conv.stride, conv.dilation[0], ((height - 1) // 2, (width - 1) // 2)
    reasons = {
        f"it is a {type(conv).__name__}, which computes more than nn.Conv2d": type(conv) is not nn.Conv2d,
        f"its kernel is even ({height}x{width}): branches of other sizes would not align": not height * width % 2,
        f"its stride is {stride[0]}x{stride[1]}": stride[0] != stride[1],
        f"it is dilated ({dilation})": conv.dilation != (1, 1),
        f"its padding {conv.padding} is not that of a centred kernel": conv.padding not in (centred, "same"),
        f"it pads with {conv.padding_mode!r}, branches pad with zeros": conv.padding_mode != "zeros",
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def becomes_the_branches(norm: nn.Module, shared: set[nn.Parameter]) -> TypeGuard[nn.BatchNorm2d]:
    """Whether the module behind a convolution can become the branches' batch normalisation."""
    norm_act = tracing.is_norm_act(norm)
    if not isinstance(norm, nn.BatchNorm2d) or not (type(norm) is nn.BatchNorm2d or norm_act):
        return False
    drops = norm_act and not isinstance(norm.get_submodule("drop"), nn.Identity)
    return norm.running_mean is not None and not drops and _obstacle(norm, shared) is None


def _obstacle(module: nn.Module, shared: set[nn.Parameter]) -> str | None:
    """What a module has that branches would not have."""
    if is_parametrized(module):
        names = ", ".join(module.parametrizations.keys())  # type: ignore[union-attr, operator]
        return f"has a parametrization of {names}, which branches would not have; remove it first"
    if hooks := tracing.hooks(module):
        name = getattr(hooks[0], "__qualname__", type(hooks[0]).__name__)
        return f"has a hook ({name}), which branches would not run; remove it first"
    return None if shared.isdisjoint(module.parameters()) else "shares its parameters with another module"
