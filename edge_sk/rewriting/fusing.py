"""What modules make of themselves for deployment: ``fuse()`` and its like."""

from __future__ import annotations

import copy

import torch
from torch import nn

from edge_sk import tracing
from edge_sk.running import reference
from edge_sk.selective_kernel import DeploySelectiveKernel, SelectiveKernel

# The convention of ``timm.utils.reparameterize_model``: ``fuse`` returns a module, the others change their own.
METHODS = ("fuse", "reparameterize", "switch_to_deploy")


def fused(module: nn.Module, path: str = "") -> dict[str, nn.Module]:
    """The outermost modules that can fuse themselves, each fused, by path.

    A module's own method assumes its original layers: one that holds selective kernels is skipped, and they are fused.
    A module whose method fails is skipped: it may be another method of the same name.
    """
    own = _fused(module)
    if own is not None:
        return {path: own}
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        found |= fused(child, f"{path}.{name}" if path else name)
    return found


def _fused(module: nn.Module) -> nn.Module | None:
    # Asked of the class: a child module may have the same name.
    method = next((name for name in METHODS if callable(getattr(type(module), name, None))), None)
    if method is None or any(tracing.hooks(part) for part in module.modules()):
        return None
    grafted = any(isinstance(part, SelectiveKernel | DeploySelectiveKernel) for part in module.modules())
    if grafted and type(module) is not SelectiveKernel:
        return None
    twin = copy.deepcopy(module)
    default = torch.get_default_dtype()
    torch.set_default_dtype(reference(module).dtype)  # of the layers that the method makes
    try:
        returned = getattr(twin, method)()
    except Exception:  # The module's own code: anything may be raised.
        return None
    finally:
        torch.set_default_dtype(default)
    result = twin if returned is None else returned
    return result.eval() if isinstance(result, nn.Module) else None
