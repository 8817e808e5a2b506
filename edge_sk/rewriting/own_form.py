"""The deploy forms that modules bring themselves."""

from __future__ import annotations

import copy

import torch
from torch import nn

from edge_sk import tracing
from edge_sk.errors import InputError
from edge_sk.running import reference
from edge_sk.selective_kernel import DeploySelectiveKernel, SelectiveKernel

# The convention of ``timm.utils.reparameterize_model``: ``fuse`` returns a module, the others change their own.
METHODS = ("fuse", "reparameterize", "switch_to_deploy")


def unit_forms(model: nn.Module) -> dict[str, nn.Module]:
    """The deploy form of every :class:`~edge_sk.SelectiveKernel`, by path."""
    forms: dict[str, nn.Module] = {}
    for name, unit in model.named_modules():
        if type(unit) is SelectiveKernel and not any(tracing.hooks(part) for part in unit.modules()):
            try:
                forms[name] = unit.fuse().eval()
            except InputError:
                continue  # a branch that has been changed
    return forms


def module_forms(module: nn.Module, path: str = "") -> dict[str, nn.Module]:
    """The own deploy forms of modules, the outermost, by path.

    A module's own form is made for its original layers: modules with selective kernels in them are not asked. One
    whose method fails is left out: it may be another method of the same name.
    """
    form = _own_form(module)
    if form is not None:
        return {path: form}
    forms: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        forms |= module_forms(child, f"{path}.{name}" if path else name)
    return forms


def _own_form(module: nn.Module) -> nn.Module | None:
    # Asked of the class: a child module may have the same name.
    method = next((name for name in METHODS if callable(getattr(type(module), name, None))), None)
    if method is None:
        return None
    if any(
        isinstance(part, SelectiveKernel | DeploySelectiveKernel) or tracing.hooks(part) for part in module.modules()
    ):
        return None
    form = copy.deepcopy(module)
    default = torch.get_default_dtype()
    torch.set_default_dtype(reference(module).dtype)  # of the layers that the method makes
    try:
        returned = getattr(form, method)()
    except Exception:  # The module's own code: anything may be raised.
        return None
    finally:
        torch.set_default_dtype(default)
    if returned is None:
        return form.eval()
    return returned.eval() if isinstance(returned, nn.Module) else None
