"""A trained model as the same function in the form that phones run fast."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from edge_sk import running
from edge_sk.errors import InputError
from edge_sk.rewriting import batchnorm, normalize, pooling, scalars, shuffle, slices
from edge_sk.rewriting.graph import Tracer, annotate, carry_attributes, finish, trace
from edge_sk.rewriting.own_form import module_forms, unit_forms
from edge_sk.rewriting.verification import Behaviour, Rewrites, in_double, run, variations
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


def reparameterize(model: nn.Module, example: Any = None) -> nn.Module:
    """Rewrite a trained model for deployment: the same function, in fewer operators that delegates take.

    Selective kernels, and modules that bring a deploy form (``fuse``, ``reparameterize``, ``switch_to_deploy``: the
    convention of ``timm.utils.reparameterize_model``), are asked for it first. Then the steps of
    :data:`edge_sk.rewriting.STEPS` go over the traced graph. Children of a module that cannot be traced are rewritten
    one by one. After every step the result is compared with the model on the example, in float64 where the model runs
    in it: outputs by value, shape, type and structure. A step that changes them beyond rounding is undone. In the
    result's own type, of whole numbers that rounding can tip (an ``argmax`` over a map) one in a thousand may differ.

    Args:
        model: In any mode; it is not changed.
        example: A batch that the model takes, or a tuple of its arguments; the deploy form takes the same arguments.
            ``None``: an image of noise, of the size that the model's ``default_cfg`` says or 3x224x224. Variations of
            it are compared too: other values, another batch and size where the model takes them.

    Returns:
        A copy in eval mode, without gradients, with the model's ``default_cfg``, ``num_classes`` and other plain
        attributes. Its ``reparameterized`` (:class:`~edge_sk.rewriting.Rewrites`) tells how often each step applied,
        what was undone, and what was left because it could not be traced or verified.

    Raises:
        InputError: The model is no Python module, lies on the meta device (there are no weights to rewrite), cannot be
            copied, or does not run on the example given.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise InputError(f"reparameterize takes a Python module (nn.Module), got {type(model).__name__}")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise InputError("the model has no weights (meta device); build or load it on a real device first")
    form = _frozen(running.copied(model)).eval()
    rewrites = Rewrites()
    if example is None:
        arguments: tuple[Any, ...] = (running.random_images(model, running.input_shape(model)),)
    else:
        arguments = example if isinstance(example, tuple) else (example,)
    try:
        run(copy.deepcopy(form), arguments)
    except Exception as error:  # The model's own code: anything may be raised.
        if example is not None:
            raise InputError(f"{type(model).__name__} does not run on the example: {first_line(error)}") from error
        size = "x".join(map(str, arguments[0].shape))
        rewrites.left[""] = f"it does not run on noise of {size} ({first_line(error)}): give an example"
    else:
        with torch.random.fork_rng(devices=[]):  # tracing runs code that may draw numbers
            form, rewrites = _rewrite_whole(form, arguments)
    carry_attributes(model, form)
    form.reparameterized = rewrites  # type: ignore[assignment]
    return _frozen(form)


def _frozen(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.is_leaf:  # those of a scripted child are not
            parameter.requires_grad_(False)
    return model


def _rewrite_whole(untouched: nn.Module, arguments: Sequence[Any]) -> tuple[nn.Module, Rewrites]:
    left = Rewrites()
    calls = variations(untouched, arguments)
    try:
        Behaviour(untouched, calls).check(copy.deepcopy(untouched))
    except Exception as error:
        left.left[""] = f"two runs on the same example differ, so nothing can be verified: {first_line(error)}"
        return untouched, left
    for way in (_rewritten_in_double, _rewritten):
        try:
            return way(untouched, calls)
        except Exception as error:  # Code that names a type does not run in float64; parts can be used in odd ways.
            left.left[""] = f"nothing that was rewritten could be verified as a whole: {first_line(error)}"
    return untouched, left


def _rewritten_in_double(module: nn.Module, calls: Sequence[Sequence[Any]]) -> tuple[nn.Module, Rewrites]:
    """Rewrite in float64, where nothing hides behind rounding, and round the result once.

    Raises:
        Exception: The module has several types, does not run in float64, or the rounded result differs.
    """
    rewrites = Rewrites()
    (dtype,) = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()}
    behaviour = Behaviour(copy.deepcopy(module).double(), [in_double(call) for call in calls])
    form = _steps(behaviour, rewrites).to(dtype)
    # On the example alone: the variations are further from what the network is for, and can amplify rounding.
    rewrites.difference = Behaviour(module, calls[:1]).check(form)
    return form, rewrites


def _rewritten(module: nn.Module, calls: Sequence[Sequence[Any]]) -> tuple[nn.Module, Rewrites]:
    """Rewrite in the module's own type.

    Raises:
        Exception: The result differs.
    """
    rewrites = Rewrites()
    behaviour = Behaviour(module, calls)
    form = _steps(behaviour, rewrites)
    rewrites.difference = behaviour.check(form)
    return form, rewrites


def _steps(behaviour: Behaviour, rewrites: Rewrites) -> nn.Module:
    form = copy.deepcopy(behaviour.module)
    form = _with_forms(form, unit_forms(form), behaviour, rewrites, "fuse_units")
    form = _with_forms(form, module_forms(form), behaviour, rewrites, "fuse_modules")
    return _rewrite(form, behaviour, "", rewrites)


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
        opaque = getattr(module, "fx_leaf", False) or not any(True for _ in module.children())
        return module if opaque else _rewrite_children(module, behaviour, path, rewrites)
    try:
        if behaviour.writes_buffers:
            raise Changed("it writes into its buffers")
        if any(part.training for part in module.modules()):
            raise Changed("parts of it stay in training mode")
        graph = trace(module, behaviour.calls[0])
        behaviour.check(graph)
    except Exception as error:  # The model's own code runs under the tracer: anything may be raised.
        rewrites.untraced[path] = first_line(error)
        return _rewrite_children(module, behaviour, path, rewrites)
    return _apply(STEPS, graph, behaviour, rewrites, path)


def _rewrite_children(module: nn.Module, behaviour: Behaviour, path: str, rewrites: Rewrites) -> nn.Module:
    forms: dict[str, nn.Module] = {}
    names = {id(child): name for name, child in module.named_modules()}
    for child, calls in _outermost_calls(module, behaviour).values():
        name = names[id(child)]
        where = f"{path}.{name}" if path else name
        if not _only_called(module, name):
            rewrites.left[where] = "its parent uses more of it than its call"
            continue
        try:
            form = _rewrite(child, Behaviour(child, calls), where, rewrites)
        except Exception as error:
            rewrites.left[where] = f"cannot be verified by itself: {first_line(error)}"
            continue
        if form is not child:
            forms[name] = form
    return _with_forms(module, forms, behaviour, rewrites, f"children of {path}" if path else "children")


def _only_called(parent: nn.Module, path: str) -> bool:
    """Whether the source of a module only calls a child, or iterates over the list that holds it."""
    name = path.partition(".")[0]
    if isinstance(getattr(parent, name, None), nn.ModuleList | nn.ModuleDict):
        return True
    for kind in type(parent).__mro__:
        if kind.__module__.startswith(("torch.", "builtins")):
            continue
        try:
            source = inspect.getsource(kind)
        except (OSError, TypeError):  # written at a prompt, or in C
            continue
        if re.search(rf"self\.{re.escape(name)}\b(?!\s*[(=:])", source):
            return False
    return True


def _with_forms(
    module: nn.Module, forms: dict[str, nn.Module], behaviour: Behaviour, rewrites: Rewrites, step: str
) -> nn.Module:
    """Replace submodules by their forms, by path: together, or those that keep the behaviour if not all do."""
    if not forms:
        return module
    fusing = step.startswith("fuse")
    try:
        together = _with(module, forms)
        behaviour.check(together)
    except Exception as error:  # The parent may read an attribute that a form lacks, or a form may be wrong.
        if len(forms) == 1:
            (name,) = forms
            rewrites.undone[f"{step}: {name}" if name else step] = first_line(error)
            return module
        items = list(forms.items())
        for part in (items[: len(items) // 2], items[len(items) // 2 :]):
            module = _with_forms(module, dict(part), behaviour, rewrites, step)
        return module
    rewrites.add(step, len(forms) if fusing else 0)
    return together


def _with(module: nn.Module, forms: dict[str, nn.Module]) -> nn.Module:
    """A copy of a module with other submodules, under every name that it has for them."""
    if "" in forms:
        return forms[""]
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
