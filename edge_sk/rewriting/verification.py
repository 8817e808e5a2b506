"""Hold a rewritten module against the original on example inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from edge_sk import running, tracing
from edge_sk.running import Changed

# Relative difference that a rewrite may make at any rate, and at most where the original's own rounding is large.
# Float32 networks usually lie near 1e-6; a wrong rewrite of any size shows in float64 (`Behaviour.check`).
ALLOWED = {
    torch.float64: (1e-10, 1e-8),
    torch.float32: (1e-5, 1e-3),
    torch.float16: (4e-3, 1e-1),
    torch.bfloat16: (3e-2, 1e-1),
}
# Times the original's own rounding that a rewrite, which rounds elsewhere, may differ.
ROUNDING = 4


class Rewrites(dict[str, int]):
    """What :func:`edge_sk.reparameterize` did: how often each step applied, by its name.

    Attributes:
        undone: Steps that were undone because the output changed or they failed; from step and module to the reason.
        left: Modules that were left as they are, and why; the network itself is ``""``.
        difference: Largest relative difference of the output on the example; ``None`` if nothing was compared.
    """

    def __init__(self) -> None:
        super().__init__()
        self.undone: dict[str, str] = {}
        self.left: dict[str, str] = {}
        self.difference: float | None = None

    def add(self, step: str, count: int) -> None:
        """Count places that a step changed."""
        if count:
            self[step] = self.get(step, 0) + count

    def notes(self) -> list[str]:
        """What did not apply, one line each."""
        return [f"rewrite undone: {step}: {why}" for step, why in self.undone.items()] + [
            f"left as it is: {name or 'the network'}: {why}" for name, why in self.left.items()
        ]


class Behaviour:
    """What a module does on example inputs.

    Args:
        module: In eval mode; a copy is kept.
        calls: Arguments of each call.

    Raises:
        Exception: Whatever the module raises.
    """

    def __init__(self, module: nn.Module, calls: Sequence[Sequence[Any]]) -> None:
        self.module = copy.deepcopy(module)
        self.calls = calls
        self.expected = [run(self.module, arguments) for arguments in calls]
        self.allowed, self._most = ALLOWED[_type(self.module, calls, self.expected)]
        self._rounding_known = False

    def check(self, form: Callable[..., Any]) -> float:
        """Hold a rewritten form against the module.

        Returns:
            The largest relative difference of an output; of inputs, too, where the module writes into them.

        Raises:
            Changed: The difference is beyond rounding, or something else than a value differs.
        """
        difference = max(
            running.compare(expected, run(form, arguments))
            for expected, arguments in zip(self.expected, self.calls, strict=True)
        )
        if difference > self.allowed and not self._rounding_known:
            self.allowed = max(self.allowed, min(self._most, ROUNDING * self._rounding()))
            self._rounding_known = True
        if not difference <= self.allowed:
            raise Changed(f"the output changes by {difference:.1e} of its largest value")
        return difference

    def _rounding(self) -> float:
        """How far the module's output lies from its own in float64; 0 if it does not run in float64."""
        try:
            exact = copy.deepcopy(self.module).double()
            wide = [[_convert(a, torch.float64) for a in arguments] for arguments in self.calls]
            return max(
                running.compare(_convert(expected, torch.float64), _convert(run(exact, arguments), torch.float64))
                for expected, arguments in zip(self.expected, wide, strict=True)
            )
        except Exception:  # Code that names a type does not run in another: anything may be raised.
            return 0.0


def run(form: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Call a module on copies of arguments, with the same random numbers each time.

    Returns:
        What it returns, and the arguments as it leaves them.
    """
    arguments = [_pytree.tree_map_only(Tensor, torch.clone, argument) for argument in arguments]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return form(*arguments), arguments


def _type(module: nn.Module, calls: Sequence[Any], expected: Sequence[Any]) -> torch.dtype:
    """The coarsest type that a module computes in."""
    tensors = [*module.parameters(), *tracing.tensors(calls), *tracing.tensors(expected)]
    types = {tensor.dtype for tensor in tensors} & set(ALLOWED)
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def _convert(value: Any, dtype: torch.dtype) -> Any:
    return _pytree.tree_map_only(
        Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, value
    )
