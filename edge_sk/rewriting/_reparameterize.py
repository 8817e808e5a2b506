"""A trained model as the same function in the form that phones run fast."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from edge_sk import running
from edge_sk.errors import InputError
from edge_sk.rewriting import batchnorm, normalize, pooling, scalars, shuffle, slices
from edge_sk.rewriting.graph import Tracer, annotate, carry_attributes, finish, trace
from edge_sk.rewriting.own_form import fuse_modules, fuse_units
from edge_sk.rewriting.verification import Behaviour, Rewrites
from edge_sk.running import Changed, first_line

STEPS: tuple[Callable[[fx.GraphModule], int], ...] = (
    batchnorm.remove_identities,
    batchnorm.split_norm_act,
    batchnorm.fold_batch_norm,
    normalize.fold_input_scale,
    shuffle.absorb_shuffles,
    slices.use_slices,
    pooling.keep_pooled_dims,
    pooling.pad_before_average,
    pooling.pool_instead_of_reducing,
    scalars.expand_hard_sigmoid,
    scalars.use_float_constants,
)
"""In the order they are applied: the shuffles are found by the splits that later become slices."""

# Calls of a module that is called again and again, that its form is held against.
MOST_CALLS = 4


def reparameterize(model: nn.Module, example: Tensor | Sequence[Any] | None = None) -> nn.Module:
    """Rewrite a trained model for deployment: the same function, in fewer operators that delegates take.

    Modules that bring a deploy form (``fuse``, ``reparameterize``, ``switch_to_deploy``: the convention of
    ``timm.utils.reparameterize_model``) are asked for it first, then the steps of
    :data:`edge_sk.rewriting.STEPS` go over the traced graph. Children of a module that cannot be traced are rewritten
    one by one. After every step the result is compared with the model on the example: outputs by value, shape, type
    and structure. A step that changes them beyond rounding is undone.

    Args:
        model: In any mode; it is not changed.
        example: A batch that the model takes, or a tuple of its arguments; the deploy form takes the same arguments.
            ``None``: two images of noise, of the size that the model's ``default_cfg`` says or 3x224x224.

    Returns:
        A copy in eval mode, without gradients, with the model's ``default_cfg``, ``num_classes`` and other plain
        attributes. Its ``reparameterized`` (:class:`~edge_sk.rewriting.Rewrites`) tells how often each step applied,
        what was undone, and what was left because it could not be traced or verified.

    Raises:
        InputError: The model lies on the meta device (there are no weights to rewrite), cannot be copied, or does not
            run on the example given.
    """
    if any(tensor.is_meta for tensor in model.parameters()):
        raise InputError("the model has no weights (meta device); build or load it on a real device first")
    form = running.copied(model).eval().requires_grad_(False)
    rewrites = Rewrites()
    arguments = _arguments(form, example)
    try:
        whole = Behaviour(form, [arguments])
    except Exception as error:  # The model's own code: anything may be raised.
        shapes = [tuple(argument.shape) for argument in arguments if isinstance(argument, Tensor)]
        if example is not None:
            raise InputError(
                f"{type(model).__name__} does not run on the example {shapes}: {first_line(error)}"
            ) from error
        rewrites.left[""] = f"it does not run on noise of shape {shapes[0]} ({first_line(error)}): give an example"
    else:
        form, rewrites = _rewrite_whole(form, whole, rewrites)
    carry_attributes(model, form)
    form.reparameterized = rewrites  # type: ignore[assignment]
    return form.eval().requires_grad_(False)


def _arguments(model: nn.Module, example: Tensor | Sequence[Any] | None) -> Sequence[Any]:
    if example is None:
        return (running.random_images(model, (2, *running.input_shape(model)[1:])),)
    if isinstance(example, Tensor):
        return (example,)
    if isinstance(example, list | tuple) and example:
        return tuple(example)
    raise InputError(f"example is {type(example).__name__}; give a tensor, or a tuple of the model's arguments")


def _rewrite_whole(form: nn.Module, whole: Behaviour, rewrites: Rewrites) -> tuple[nn.Module, Rewrites]:
    try:
        whole.check(form)
    except Changed as error:
        rewrites.left[""] = f"two runs on the same example differ, so nothing can be verified: {error}"
        return form, rewrites
    # A root that is itself a unit, or brings a form, is replaced as a child is.
    (form,) = _apply((fuse_units, fuse_modules), nn.Sequential(form), whole, rewrites, "")
    form = _rewrite(form, whole, "", rewrites)
    try:
        rewrites.difference = whole.check(form)
    except Exception as error:  # Modules that were right by themselves can be used in a way that none of them shows.
        left = Rewrites()
        left.left[""] = f"its parts were rewritten, but not the whole kept: {first_line(error)}"
        return whole.module, left
    return form, rewrites


def _apply(
    steps: Sequence[Callable[[Any], int]], module: Any, behaviour: Behaviour, rewrites: Rewrites, path: str
) -> Any:
    """Apply steps to a module one after another, each only if the module then behaves as before."""
    before = None
    for step in steps:
        before = copy.deepcopy(module) if before is None else before
        try:
            count = step(module)
            if not count:
                continue
            if isinstance(module, fx.GraphModule):
                finish(module)
                behaviour.check(functools.partial(annotate, module))
            else:
                behaviour.check(module)
        except Exception as error:  # Steps meet graphs of every kind: whatever they raise, the module stays.
            rewrites.undone[f"{step.__name__} in {path}" if path else step.__name__] = first_line(error)
            module = before
        else:
            rewrites.add(step.__name__, count)
        before = None
    return module


def _rewrite(module: nn.Module, behaviour: Behaviour, path: str, rewrites: Rewrites) -> nn.Module:
    """Apply the steps to a module, or to its children if it cannot be traced."""
    if Tracer().is_leaf_module(module, path):
        return module
    try:
        graph = trace(module, behaviour.calls[0])
        behaviour.check(graph)
    except Exception as error:  # The model's own code runs under the tracer: anything may be raised.
        rewrites.left[path] = f"cannot be traced as a whole: {first_line(error)}"
        return _rewrite_children(module, behaviour, path, rewrites)
    return _apply(STEPS, graph, behaviour, rewrites, path)


def _rewrite_children(module: nn.Module, behaviour: Behaviour, path: str, rewrites: Rewrites) -> nn.Module:
    forms: dict[str, nn.Module] = {}
    names = {id(child): name for name, child in module.named_modules()}
    for child, calls in _outermost_calls(module, behaviour).values():
        name = names[id(child)]
        where = f"{path}.{name}" if path else name
        try:
            forms[name] = _rewrite(child, Behaviour(child, calls), where, rewrites)
        except Exception as error:
            rewrites.left[where] = f"cannot be verified by itself: {first_line(error)}"
    together = _with(module, forms)
    try:
        behaviour.check(together)
        return together
    except Exception:  # The parent may read an attribute that the form lacks: find out whose.
        for name, form in forms.items():
            alone = _with(module, {name: form})
            try:
                behaviour.check(alone)
                module = alone
            except Exception as error:
                rewrites.undone[f"{path}.{name}" if path else name] = first_line(error)
        return module


def _with(module: nn.Module, forms: dict[str, nn.Module]) -> nn.Module:
    """A copy of a module with other children, under every name that it has for them."""
    twin = copy.deepcopy(module)
    replaced = {id(twin.get_submodule(name)): form for name, form in forms.items()}
    for name, child in list(twin.named_modules(remove_duplicate=False)):
        if id(child) in replaced:
            twin.set_submodule(name, replaced[id(child)])
    return twin


def _outermost_calls(module: nn.Module, behaviour: Behaviour) -> dict[int, tuple[nn.Module, list[tuple[Any, ...]]]]:
    """The modules below a module that its forward calls itself, by ``id``, each with the arguments of its calls."""
    found: dict[int, tuple[nn.Module, list[tuple[Any, ...]]]] = {}
    running_modules: list[nn.Module] = []

    def enter(child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not running_modules:
            bound = inspect.signature(child.forward).bind(*args, **kwargs)
            calls = found.setdefault(id(child), (child, []))[1]
            if len(calls) < MOST_CALLS and not bound.kwargs:
                calls.append(tuple(_pytree.tree_map_only(Tensor, torch.clone, bound.args)))
        running_modules.append(child)

    def leave(child: nn.Module, args: Any, returned: Any) -> None:
        running_modules.pop()

    below = [child for child in module.modules() if child is not module]
    hooks = [child.register_forward_pre_hook(enter, with_kwargs=True) for child in below]
    hooks += [child.register_forward_hook(leave) for child in below]
    try:
        behaviour.check(module)
    finally:
        for hook in hooks:
            hook.remove()
    return {key: (child, calls) for key, (child, calls) in found.items() if calls}
