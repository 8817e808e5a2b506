"""A trained model as the same function in operators that phones run fast."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from edge_sk import running
from edge_sk.errors import InputError
from edge_sk.rewriting import batchnorm, normalize, pooling, scalars, shuffle, slices
from edge_sk.rewriting.fusing import fused
from edge_sk.rewriting.graph import Tracer, annotate, carry_attributes, finish, trace
from edge_sk.rewriting.verification import Behaviour, Rewrites, in_double, run, variations
from edge_sk.running import Changed, first_line
from edge_sk.selective_kernel import DeploySelectiveKernel

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

# Calls of a module that is called again and again, on which its rewrite is compared.
MOST_CALLS = 4


def reparameterize(model: nn.Module, example: Any = None) -> nn.Module:
    """Rewrite a trained model for deployment: the same function, in fewer operators that delegates take.

    Selective kernels, and modules that can fuse themselves (``fuse``, ``reparameterize``, ``switch_to_deploy``: the
    convention of ``timm.utils.reparameterize_model``), are fused first. Then the steps of
    :data:`edge_sk.rewriting.STEPS` go over the traced graph. Children of a module that cannot be traced are rewritten
    one by one. After every step the result is compared with the model on the example, in float64 where the model runs
    in it: outputs by value, shape, type and structure. A step that changes them beyond rounding is undone. Rounding can
    tip whole numbers (an ``argmax`` over a map): below float64, one in a thousand of them may differ.

    Args:
        model: In any mode; it is not changed.
        example: A batch that the model takes, or a tuple of its arguments; the result takes the same arguments.
            ``None``: an image of noise, of the size that the model's ``default_cfg`` says or 3x224x224. Variations of
            it are compared too: other values, another batch and size where the model takes them.

    Returns:
        A copy in eval mode, without gradients, with the model's ``default_cfg``, ``num_classes`` and other plain
        attributes. Its ``reparameterized`` (:class:`~edge_sk.rewriting.Rewrites`) tells how often each step applied,
        what was undone, and what was skipped because it could not be traced or verified.

    Raises:
        InputError: The model is no Python module, lies on the meta device (there are no weights to rewrite), cannot be
            copied, or does not run on the example given.
    """
    running.check_network(model, "reparameterize")
    unchanged = _frozen(running.copied(model)).eval()
    arguments: tuple[Any, ...] = example if isinstance(example, tuple) else (example,)
    if example is None:
        arguments = (running.random_images(model, running.input_shape(model)),)
    try:
        run(copy.deepcopy(unchanged), arguments)
    except Exception as error:  # The model's own code: anything may be raised.
        if example is not None:
            raise InputError(f"{type(model).__name__} does not run on the example: {first_line(error)}") from error
        size = "x".join(map(str, arguments[0].shape))
        result, rewrites = unchanged, Rewrites()
        rewrites.left[""] = f"it does not run on noise of {size} ({first_line(error)}): give an example"
    else:
        with torch.random.fork_rng(devices=[]):  # tracing runs code that may draw numbers
            result, rewrites = _rewrite_whole(unchanged, arguments)
    carry_attributes(model, result)
    result.reparameterized = rewrites  # type: ignore[assignment]
    return _frozen(result)


def _frozen(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.is_leaf:  # those of a scripted child are not
            parameter.requires_grad_(False)
    return model


def _rewrite_whole(module: nn.Module, arguments: Sequence[Any]) -> tuple[nn.Module, Rewrites]:
    """Rewrite a module and compare the result with it; the module itself where nothing can be verified."""
    failed = Rewrites()
    calls = variations(module, arguments)
    try:
        behaviour = Behaviour(module, calls)
        behaviour.check(copy.deepcopy(module))
    except Exception as error:
        failed.left[""] = f"two runs on the same example differ, so nothing can be verified: {first_line(error)}"
        return module, failed
    for double in (True, False):
        rewrites = Rewrites()
        try:
            if double:
                # Nothing hides behind rounding in float64; the result is rounded once. That is judged on the example
                # alone: the variations are further from what the network is for, and can amplify rounding.
                (dtype,) = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()}
                exact = Behaviour(copy.deepcopy(module).double(), [in_double(call) for call in calls])
                result = _rewrite_parts(exact, rewrites)
                rewrites.exact = exact.check(result)
                result = result.to(dtype)
                rewrites.difference = Behaviour(module, calls[:1]).check(result, exact=True)
            else:
                result = _rewrite_parts(behaviour, rewrites)
                rewrites.difference = behaviour.check(result)
            return result, rewrites
        except Exception as error:  # Several types, code that names a type, parts that are used in odd ways.
            failed.left[""] = f"nothing that was rewritten could be verified as a whole: {first_line(error)}"
    return module, failed


def _rewrite_parts(behaviour: Behaviour, rewrites: Rewrites) -> nn.Module:
    """Replace the parts that can fuse themselves, then apply the steps."""
    module = copy.deepcopy(behaviour.module)
    parts = fused(module)
    units = {path: part for path, part in parts.items() if isinstance(part, DeploySelectiveKernel)}
    others = {path: part for path, part in parts.items() if path not in units}
    module = _replace(module, units, behaviour, rewrites, "fuse_units")
    module = _replace(module, others, behaviour, rewrites, "fuse_modules")
    return _rewrite(module, behaviour, "", rewrites)


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
    return _apply_steps(graph, behaviour, path, rewrites)


def _apply_steps(graph: fx.GraphModule, behaviour: Behaviour, path: str, rewrites: Rewrites) -> fx.GraphModule:
    """Apply the steps one after another, each only if the module then behaves as before."""
    before = copy.deepcopy(graph)
    for step in STEPS:
        try:
            count = step(graph)
            if not count:
                continue
            finish(graph)
            behaviour.check(graph)
            annotate(graph, behaviour.calls[0])
            rewrites.add(step.__name__, count)
        except Exception as error:  # Steps meet graphs of every kind: whatever they raise, the module stays.
            rewrites.undone[f"{step.__name__} in {path}" if path else step.__name__] = first_line(error)
            graph = before
        before = copy.deepcopy(graph)
    return graph


def _rewrite_children(module: nn.Module, behaviour: Behaviour, path: str, rewrites: Rewrites) -> nn.Module:
    """Rewrite the modules that a module calls itself, each compared on the arguments of these calls."""
    rewritten: dict[str, nn.Module] = {}
    names = {child: name for name, child in module.named_modules()}
    for child, calls in _outermost_calls(module, behaviour).items():
        name = names[child]
        full = f"{path}.{name}" if path else name
        if not _only_called(module, name):
            rewrites.left[full] = "its parent uses more of it than its call"
            continue
        try:
            result = _rewrite(child, Behaviour(child, calls), full, rewrites)
            if result is not child:
                rewritten[name] = result
        except Exception as error:
            rewrites.left[full] = f"cannot be verified by itself: {first_line(error)}"
    return _replace(module, rewritten, behaviour, rewrites, f"children of {path}" if path else "children")


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


def _replace(
    module: nn.Module, parts: Mapping[str, nn.Module], behaviour: Behaviour, rewrites: Rewrites, step: str
) -> nn.Module:
    """Replace submodules, by path: together, or those that keep the behaviour if not all do."""
    if not parts:
        return module
    try:
        together = _with(module, parts)
        behaviour.check(together)
    except Exception as error:  # The parent may read an attribute that a part lacks, or a part may be wrong.
        if len(parts) == 1:
            (name,) = parts
            rewrites.undone[f"{step}: {name}" if name else step] = first_line(error)
            return module
        items = list(parts.items())
        for half in (items[: len(items) // 2], items[len(items) // 2 :]):
            module = _replace(module, dict(half), behaviour, rewrites, step)
        return module
    if step.startswith("fuse"):
        rewrites.add(step, len(parts))
    return together


def _with(module: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a module with other submodules, under every name that it has for them."""
    if "" in parts:
        return parts[""]
    twin = copy.deepcopy(module)
    replaced = {twin.get_submodule(name): part for name, part in parts.items()}
    for name, child in list(twin.named_modules(remove_duplicate=False)):
        if child in replaced:
            twin.set_submodule(name, replaced[child])
    return twin


def _outermost_calls(module: nn.Module, behaviour: Behaviour) -> dict[nn.Module, list[tuple[Any, ...]]]:
    """The modules below a module that its forward calls itself, each with the arguments of its calls."""
    found: dict[nn.Module, list[tuple[Any, ...]]] = {}
    entered: list[nn.Module] = []

    def enter(child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not entered:
            bound = inspect.signature(child.forward).bind(*args, **kwargs)
            calls = found.setdefault(child, [])
            if len(calls) < MOST_CALLS and not bound.kwargs:
                calls.append(tuple(_pytree.tree_map_only(Tensor, torch.clone, bound.args)))
        entered.append(child)

    def leave(child: nn.Module, args: Any, returned: Any) -> None:
        entered.pop()

    with contextlib.ExitStack() as hooks:
        for child in module.modules():
            if child is not module:
                hooks.enter_context(child.register_forward_pre_hook(enter, with_kwargs=True))
                hooks.enter_context(child.register_forward_hook(leave))
        behaviour.check(module)
    return {child: calls for child, calls in found.items() if calls}
