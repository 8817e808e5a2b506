"""Ask modules for the deploy form that they bring."""

from __future__ import annotations

import copy

from torch import nn

from edge_sk.errors import InputError
from edge_sk.rewriting.selective import DeploySelectiveKernel
from edge_sk.selective_kernel import SelectiveKernel

# The convention of ``timm.utils.reparameterize_model``: ``fuse`` returns a module, the others change their own.
METHODS = ("fuse", "reparameterize", "switch_to_deploy")


def fuse_units(model: nn.Module) -> int:
    """Put the deploy form of every :class:`~edge_sk.SelectiveKernel` in its place, in the model itself."""
    forms = {id(unit): form for unit in model.modules() if (form := _fused(unit)) is not None}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in forms:
                setattr(parent, name, forms[id(child)])
    return len(forms)


def _fused(unit: nn.Module) -> nn.Module | None:
    try:
        return unit.fuse() if isinstance(unit, SelectiveKernel) else None
    except InputError:  # a branch that has been changed
        return None


def fuse_modules(model: nn.Module) -> int:
    """Put the own deploy forms of modules in their places, the outermost first, in the model itself.

    A module's own form is made for its original layers: modules with selective kernels in them are not asked, and one
    whose method fails (it may be another of the same name) stays as it is.
    """
    count = 0
    for name, child in list(model.named_children()):
        form = _own_form(child)
        if form is None:
            count += fuse_modules(child)
        else:
            setattr(model, name, form)
            count += 1
    return count


def _own_form(module: nn.Module) -> nn.Module | None:
    # Asked of the class: a child module may have the same name.
    method = next((name for name in METHODS if callable(getattr(type(module), name, None))), None)
    if method is None or any(isinstance(part, DeploySelectiveKernel) for part in module.modules()):
        return None
    form = copy.deepcopy(module)
    try:
        returned = getattr(form, method)()
    except Exception:  # The module's own code, or a method that is no such form: anything may be raised.
        return None
    if returned is None:
        return form.eval()
    return returned.eval() if isinstance(returned, nn.Module) else None
