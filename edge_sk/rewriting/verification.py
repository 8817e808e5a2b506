"""Compare a rewritten module with the original on example inputs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from edge_sk import running
from edge_sk.running import Changed

# Relative difference that always counts as rounding, and the largest that counts as rounding where the original's own
# rounding is large: variations of an example can drive a network to where it amplifies even float64's a billion times.
# Steps are checked in float64 where a module runs in it; there the wider limits only judge the rounding of the result.
ALLOWED = {
    torch.float64: (1e-8, 1e-4),
    torch.float32: (1e-5, 1e-3),
    torch.float16: (4e-3, 1e-1),
    torch.bfloat16: (3e-2, 1e-1),
}
# Times the original's own rounding that a rewritten module, which rounds elsewhere, may differ.
ROUNDING = 8


class Rewrites(dict[str, int]):
    """What :func:`edge_sk.reparameterize` did: how often each step applied, by its name.

    Attributes:
        undone: Steps that were undone because the output changed or they failed; from step or module to the reason.
        left: Modules that were skipped, by path, and why; the network itself is ``""``.
        untraced: Modules whose children were rewritten one by one, and why the whole could not be traced.
        difference: Largest relative difference of the output on the example; ``None`` if nothing was compared.
        exact: The same in float64, before the result was rounded; ``None`` if the model does not run in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.undone: dict[str, str] = {}
        self.left: dict[str, str] = {}
        self.untraced: dict[str, str] = {}
        self.difference: float | None = None
        self.exact: float | None = None

    def add(self, step: str, count: int) -> None:
        """Count places that a step changed."""
        self[step] = self.get(step, 0) + count

    def notes(self) -> list[str]:
        """What did not apply, one line each."""
        kinds = {"undone": self.undone, "skipped": self.left, "rewritten child by child": self.untraced}
        return [f"{kind}: {name or 'the network'}: {why}" for kind, part in kinds.items() for name, why in part.items()]


class Behaviour:
    """What a module in eval mode does in calls with example inputs; its copy ``module`` never runs.

    Raises:
        Exception: Whatever the module raises.
    """

    def __init__(self, module: nn.Module, calls: Sequence[Sequence[Any]]) -> None:
        self.module, runner = copy.deepcopy(module), copy.deepcopy(module)
        self.calls = calls
        self.expected = [run(runner, arguments) for arguments in calls]
        buffers = zip(self.module.buffers(), runner.buffers(), strict=True)
        self.writes_buffers = any(not torch.equal(old, new) for old, new in buffers)
        values = running.leaves([list(module.parameters()), calls, self.expected])
        types = {value.dtype for value in values if isinstance(value, Tensor)} & set(ALLOWED)
        self.dtype = max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)

    def check(self, rewritten: Callable[..., Any], *, exact: bool = False) -> float:
        """Compare a rewritten module with the original.

        Args:
            rewritten: Takes the same calls.
            exact: It is the same function in float64, so that any difference in proportion to the original's own
                rounding is rounding.

        Returns:
            The largest relative difference of an output; of inputs, too, where the module writes into them.

        Raises:
            Changed: The difference is beyond rounding, or something else than a value differs.
        """
        tipped = 0.0 if self.dtype is torch.float64 else running.TIPPED
        difference = max(
            running.compare(expected, run(rewritten, arguments), tipped=tipped)
            for expected, arguments in zip(self.expected, self.calls, strict=True)
        )
        allowed, most = ALLOWED[self.dtype]
        if difference > allowed:
            rounding = ROUNDING * self._rounding
            allowed = max(allowed, rounding if exact else min(most, rounding))
        if not difference <= allowed:
            raise Changed(f"the output changes by {difference:.1e} of its largest value")
        return difference

    @functools.cached_property
    def _rounding(self) -> float:
        """How far rounding moves the module's output: from its own in float64, and of that, by one of the inputs.

        0 if it does not run in float64.
        """
        step = 1 + torch.finfo(torch.float64).eps if self.dtype is torch.float64 else 1
        try:
            exact = copy.deepcopy(self.module).double()
            return max(
                running.compare(in_double(expected), in_double(run(exact, in_double(arguments, step))))
                for expected, arguments in zip(self.expected, self.calls, strict=True)
            )
        except Exception:  # Code that names a type does not run in another: anything may be raised.
            return 0.0


def variations(module: nn.Module, arguments: Sequence[Any]) -> list[Sequence[Any]]:
    """Calls that show what one example does not: the example, other values, other sizes, and the example again.

    Code that looks at a value, a size or the last call's features can be right on one example and wrong on the next.
    Variations that the module refuses are left out.
    """
    calls = [arguments]
    for vary in (_other_values, _other_sizes):
        for batch in (True, False):
            varied = [_pytree.tree_map_only(Tensor, functools.partial(vary, batch=batch), a) for a in arguments]
            try:
                run(copy.deepcopy(module), varied)
            except Exception:  # the module's own code
                continue
            calls.append(varied)
            break
    return [*calls, arguments]


def _other_values(x: Tensor, *, batch: bool) -> Tensor:
    if batch and x.ndim > 2:
        x = x[:1] if len(x) > 1 else torch.cat((x, x))
    # Halves end at 65504, which larger values would pass.
    scale = -1 if x.dtype is torch.float16 else -8
    return x.flip(-1) * scale if x.is_floating_point() else x


def _other_sizes(x: Tensor, *, batch: bool) -> Tensor:
    if x.ndim < 3 or not x.is_floating_point():
        return x
    if batch:
        x = x[:1]
    for dim in (-1, -2)[: x.ndim - 2]:
        size = x.shape[dim]
        x = x.narrow(dim, 0, size // 2) if size >= 64 else torch.cat((x, x.narrow(dim, 0, min(size, 2 - dim))), dim)
    return x


def run(module: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Call a module on copies of arguments, with the same random numbers each time.

    Returns:
        What it returns, and the arguments, into which it may have written.
    """
    arguments = [_pytree.tree_map_only(Tensor, torch.clone, argument) for argument in arguments]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return module(*arguments), arguments


def in_double(value: Any, factor: float = 1) -> Any:
    """A structure with its floating-point tensors in float64, times a factor."""
    return _pytree.tree_map_only(Tensor, lambda x: x.double() * factor if x.is_floating_point() else x, value)
