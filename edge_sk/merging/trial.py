"""A copy of a network in which units are replaced, for good or to see what that does to its output."""

from __future__ import annotations

import functools
import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edge_sk import running
from edge_sk.attention import gated_units
from edge_sk.errors import InputError, shown
from edge_sk.merging.convolution import cut, host_kernel, merged
from edge_sk.merging.report import Effect
from edge_sk.selective_kernel import SelectiveKernel

if TYPE_CHECKING:
    from edge_sk.costs import Outcome


class Trial:
    """A copy of a network whose units can be replaced; it runs on the same images every time.

    With every run the batch norms' statistics follow the change of their inputs, so that they are never of a network
    that was only tried.

    Args:
        model: With units that select.
        images: ``(N, C, H, W)``, as the network takes them.
        labels: ``(N,)``, or ``None``.

    Raises:
        InputError: The images or the labels do not fit, or no unit selects.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> None:
        if not isinstance(images, Tensor) or images.ndim != 4 or not len(images) or not images.is_floating_point():
            given = f"{tuple(images.shape)}, {images.dtype}" if isinstance(images, Tensor) else shown(images)
            raise InputError(f"images must be a batch of images as the network takes them, (N, C, H, W): got {given}")
        self.model = running.copied(model)
        self.units = gated_units(self.model)
        if "" in self.units:
            raise InputError("the network is one selective kernel: wrap it, for instance in nn.Sequential")
        modules = list(self.model.named_modules(remove_duplicate=False))
        self._places = {name: [place for place, found in modules if found is unit] for name, unit in self.units.items()}
        self._images = images.to(running.reference(self.model))
        self._starts: dict[nn.Module, list[tuple[Tensor, ...]]] = {
            norm: []
            for norm in self.model.modules()
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None
        }
        self._expected = self._run(self._remember)
        # One that is called several times keeps its statistics: it is not known which call they should follow.
        self._starts = {norm: found for norm, found in self._starts.items() if len(found) == 1}
        self._labels = None
        if labels is not None:
            scores = self._expected[0] if len(self._expected) == 1 else None
            if scores is None or scores.ndim != 2 or labels.shape != (len(images),) or labels.is_floating_point():
                raise InputError("labels= must be one class per image, (N,), for a network that returns (N, classes)")
            self._labels = labels.to(scores.device)

    def _run(self, hook: Any) -> list[Tensor]:
        """Run with a hook before every batch norm."""
        with running.evaluating(self.model), ExitStack() as hooks:
            for norm in self._starts:
                hooks.callback(norm.register_forward_pre_hook(hook).remove)
            return running.outputs(self.model, self._images)

    def _remember(self, norm: Any, inputs: tuple[Tensor]) -> None:
        self._starts[norm].append((norm.running_mean.clone(), norm.running_var.clone(), *_moments(inputs[0])))

    def _follow(self, norm: Any, inputs: tuple[Tensor]) -> None:
        ((running_mean, running_var, mean, var),) = self._starts[norm]
        new_mean, new_var = _moments(inputs[0])
        growth = (new_var + norm.eps) / (var + norm.eps) - 1
        norm.running_mean.copy_(running_mean + (new_mean - mean))
        norm.running_var.copy_((running_var + (running_var + norm.eps) * growth).clamp(min=0))

    def put(self, name: str, module: nn.Module) -> None:
        """Put a module in a unit's place."""
        for place in self._places[name]:
            self.model.set_submodule(place, module)

    def effect(self, name: str = "", module: nn.Module | None = None) -> Effect:
        """Run the network, with a module in a unit's place for the time being, if given."""
        if module is None:
            return self._compared(self._run(self._follow))
        before = self.model.get_submodule(name)
        self.put(name, module)
        try:
            return self.effect()
        finally:
            self.put(name, before)

    def _compared(self, outputs: list[Tensor]) -> Effect:
        pairs = [(a.double(), b.double()) for a, b in zip(self._expected, outputs, strict=True)]
        power = sum(float(a.square().sum()) for a, _ in pairs)
        change = math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs) / power) if power else 0.0
        if self._labels is None:
            return Effect(change=change)
        was, right = (scores.argmax(1) == self._labels for scores in (self._expected[0], outputs[0]))
        gained, lost = int((right & ~was).sum()), int((was & ~right).sum())
        return Effect(change=change, top1=100 * float(right.double().mean()), gain=_gain(gained, lost, len(right)))

    def observe(self) -> dict[str, Tensor]:
        """Run the network for what :meth:`module` needs; returns the attention of the units that select, (N, M, C)."""
        self._inputs: dict[str, list[Tensor]] = {name: [] for name in self.units}
        attention: dict[str, list[Tensor]] = {name: [] for name in self.units}
        with ExitStack() as hooks:
            for name in self.units:
                module, inputs, weights = self.model.get_submodule(name), self._inputs[name], attention[name]
                hooks.callback(module.register_forward_pre_hook(functools.partial(_keep, inputs)).remove)
                if isinstance(module, SelectiveKernel) and module.gate is not None:
                    hooks.callback(module.gate.register_forward_hook(functools.partial(_keep, weights)).remove)
            self.effect()
        self._attention = {
            name: torch.cat(parts).double().cpu().flatten(2) for name, parts in attention.items() if parts
        }
        return self._attention

    def module(self, name: str, outcome: Outcome) -> nn.Module | None:
        """A unit with another outcome, by what the network computed when observed; ``None`` if it has none such."""
        made, size = self.model.get_submodule(name), host_kernel(self.units[name])
        if name in self._attention:
            made = merged(self.units[name], self._attention[name].mean(0))
        if outcome == "merge":
            return made
        wide = isinstance(made, nn.Conv2d) and made.kernel_size != size
        return cut(made, size, self._inputs[name]) if wide else None  # type: ignore[arg-type]


def _keep(kept: list[Tensor], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> None:
    """As a hook: before a module keeps its input, behind it its output."""
    kept.append(inputs[0] if output is None else output)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel; row by row, twice as fast as ``torch.var_mean`` over all axes."""
    rows = (x if x.dtype is torch.float64 else x.float()).reshape(len(x), x.shape[1], -1)
    mean = rows.mean(2).mean(0)
    return mean, (rows - mean[:, None]).square().mean(2).mean(0)


def _gain(gained: int, lost: int, images: int) -> tuple[float, float, float]:
    """Change of accuracy in points, and its 95 % interval: Agresti and Min, 2005, half an image added to each cell."""
    more, less, count = gained + 0.5, lost + 0.5, images + 2
    half = 1.96 * math.sqrt(more + less - (more - less) ** 2 / count) / count
    middle = (more - less) / count
    return 100 * (gained - lost) / images, 100 * (middle - half), 100 * (middle + half)
