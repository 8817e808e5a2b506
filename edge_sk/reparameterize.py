"""A trained model as the same function in the form that phones run fast."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import cast

from torch import fx, nn

from edge_sk.errors import InputError
from edge_sk.rewrites import batchnorm, normalize, pooling, scalars, shuffle, slices
from edge_sk.rewrites.trace import finish, trace
from edge_sk.selective_kernel import SelectiveKernel


@dataclasses.dataclass(frozen=True)
class Step:
    """One exact rewrite.

    Args:
        name: What the reports call it.
        apply: Changes the graph in place and returns how many places it changed.
    """

    name: str
    apply: Callable[[fx.GraphModule], int]


STEPS = (
    Step("remove_identities", batchnorm.remove_identities),
    Step("fold_batch_norm", batchnorm.fold_batch_norm),
    Step("fold_input_scale", normalize.fold_input_scale),
    Step("absorb_shuffles", shuffle.absorb_shuffles),
    Step("use_slices", slices.use_slices),
    Step("keep_pooled_dims", pooling.keep_pooled_dims),
    Step("pad_before_average", pooling.pad_before_average),
    Step("pool_instead_of_reducing", pooling.pool_instead_of_reducing),
    Step("expand_hard_sigmoid", scalars.expand_hard_sigmoid),
    Step("use_float_constants", scalars.use_float_constants),
)
"""In the order they are applied: the shuffles are found by the splits that later become slices."""


def reparameterize(model: nn.Module) -> nn.Module:
    """Rewrite a trained model for deployment: the same function, in fewer operators that delegates take.

    Works on networks of the zoo, grafted ones, timm's and torchvision's. Modules that bring their own deploy form
    (``fuse``, ``reparameterize``, ``switch_to_deploy``: the convention of ``timm.utils.reparameterize_model``) are
    asked for it first, then the steps of :data:`STEPS` go over the traced graph. Where a module's Python code branches
    on its data, its children are rewritten one by one.

    Args:
        model: In any mode; it is not changed.

    Returns:
        A copy in eval mode, without gradients. Its ``reparameterized`` tells how often each step applied: a dict from
        the step's name to a count.

    Raises:
        InputError: The model lies on the meta device: there are no weights to rewrite.
    """
    if any(tensor.is_meta for tensor in model.parameters()):
        raise InputError("the model has no weights (meta device); build or load it on a real device first")
    applied: dict[str, int] = {}

    def note(name: str, count: int) -> None:
        if count:
            applied[name] = applied.get(name, 0) + count

    model = copy.deepcopy(model).eval().requires_grad_(False)
    model, count = _fuse_modules(model)
    note("fuse_modules", count)
    note("split_norm_act", batchnorm.split_norm_act(model))
    model = _rewrite(model, note)
    model.reparameterized = applied  # type: ignore[assignment]
    return model.eval().requires_grad_(False)


def _fuse_modules(module: nn.Module) -> tuple[nn.Module, int]:
    """Ask every module for its own deploy form."""
    fuse = getattr(module, "fuse", None)
    if callable(fuse):
        return cast(nn.Module, fuse()), 1
    count = 0
    # Grafted into, a module is no longer what its own deploy form is for.
    grafted = any(isinstance(child, SelectiveKernel) for child in module.modules())
    for name in ("reparameterize", "switch_to_deploy"):
        if hasattr(module, name) and not grafted:
            getattr(module, name)()
            count += 1
            break
    for name, child in list(module.named_children()):
        fused, below = _fuse_modules(child)
        if fused is not child:
            setattr(module, name, fused)
        count += below
    return module, count


def _rewrite(module: nn.Module, note: Callable[[str, int], None]) -> nn.Module:
    """Apply the steps to a module, or to its children if it cannot be traced."""
    if not any(True for _ in module.children()):
        return module
    try:
        graph = trace(module)
    except Exception:  # The model's own code runs under the tracer: anything may be raised.
        note("untraceable_modules", 1)
        for name, child in list(module.named_children()):
            setattr(module, name, _rewrite(child, note))
        return module
    for step in STEPS:
        note(step.name, step.apply(graph))
        finish(graph)
    return graph
