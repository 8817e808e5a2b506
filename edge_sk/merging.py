r"""Merge units whose selection does not matter: attention fixed to its mean, branches added into one convolution.

A trained unit of linear branches computes :math:`V = \sum_m a_m \odot B_m(x)`, with :math:`B_m` a convolution and its
batch norm. With :math:`a_m` fixed to its mean over images, the sum is one convolution, exactly; its extent is that of
the largest branch. What becomes of a unit:

- ``select``: it stays as it is
- ``merge``: one convolution, exact for the fixed attention; of branches with an activation the gate alone goes
- ``cut``: that convolution, fitted with the taps of the host's own kernel: the cost of the plain network

Units are taken one after another, first the one whose merging changes least for the microseconds that it saves. That is
measured on the network's output, after each unit anew for those that could be next: the attention's spread does not
tell which unit matters.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_sk import running
from edge_sk.attention import gated_units
from edge_sk.errors import InputError, shown, whole_number
from edge_sk.grafting.preserve import regroup
from edge_sk.selective_kernel import SelectiveKernel, as_convolution

Outcome = Literal["select", "merge", "cut"]
OUTCOMES: tuple[Outcome, ...] = ("select", "merge", "cut")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What units cost, in microseconds of a forward; measured, not counted.

    Args:
        plain: The whole network with plain convolutions in the units' places.
        units: What each unit takes beyond its plain convolution, by path and outcome. An outcome that is not named is
            not considered.

    Raises:
        InputError: A value is no finite number, ``plain`` is not positive, or an outcome is unknown.
    """

    plain: float
    units: Mapping[str, Mapping[Outcome, float]]

    def __post_init__(self) -> None:
        _number("plain", self.plain, above=0)
        for name, costs in self.units.items():
            if not {"select", "merge"} <= {*costs} <= {*OUTCOMES}:
                raise InputError(f"costs of {name} are of {shown([*costs])}: give select and merge, and cut if it can")
            for outcome, cost in costs.items():
                _number(f"the cost of {name} {outcome}", cost, above=-math.inf)

    def check(self, units: Iterable[str]) -> None:
        """An ``InputError`` if a unit is missing."""
        if missing := [name for name in units if name not in self.units]:
            raise InputError(f"costs has no unit {missing[0]}: it was measured on another network; measure this one")

    def ratio(self, outcomes: Mapping[str, Outcome]) -> float:
        """Latency as a share of the plain network's."""
        return 1 + sum(self.units[name][outcome] for name, outcome in outcomes.items()) / self.plain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effect:
    """What merging did to a network's output on the images.

    Args:
        change: Root mean square of the output's change, as a share of the output's.
        top1: Accuracy in per cent; ``None`` without labels.
        gain: Change of the accuracy in points, and its 95 % interval (paired; Agresti and Min, 2005); ``None``
            without labels.
    """

    change: float
    top1: float | None = None
    gain: tuple[float, float, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit as it was trained.

    Args:
        name: Its path.
        kernels: Its branches, for instance ``3+3d2``.
        attention: Mean attention of each branch.
        spread: Standard deviation over images of a channel's attention, mean over channels.
        class_spread: The same over the means of the classes; ``None`` without labels.
        alone: What happens if this unit alone is merged, or cut.
        costs: As given.
    """

    name: str
    kernels: str
    attention: tuple[float, ...]
    spread: float
    class_spread: float | None
    alone: Mapping[Outcome, Effect]
    costs: Mapping[Outcome, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A network on the way: what has become of each unit, and its effect, both against the network as it was.

    ``moved`` is the unit that this step changed, ``None`` in the first; ``ratio`` is the latency as a share of the
    plain network's, by the costs given.
    """

    moved: str | None
    outcomes: Mapping[str, Outcome]
    effect: Effect
    ratio: float | None

    def count(self, outcome: Outcome) -> int:
        """How many units have an outcome."""
        return list(self.outcomes.values()).count(outcome)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The units as they were measured, and the steps taken; ``images`` is how many were measured on."""

    units: Sequence[Unit]
    steps: Sequence[Step]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        last = self.steps[-1]
        made = ", ".join(f"{last.count(outcome)} {name}" for outcome, name in zip(OUTCOMES, _DONE, strict=True))
        ratio = "" if last.ratio is None else f"; latency by the costs given {last.ratio:.3f} of the plain network's"
        lines = [f"{len(self.units)} units: {made}{ratio}", f"on {self.images} images: {_words(last.effect)}"]
        for unit in self.units:
            alone = "; ".join(f"{outcome} alone: {_words(effect)}" for outcome, effect in unit.alone.items())
            lines.append(
                f"  {last.outcomes[unit.name]:6} {unit.name} ({unit.kernels}), spread {unit.spread:.3f}; {alone}"
            )
        return "\n".join([*lines, "What is merged can be undone only from the checkpoint."])


_DONE = ("selecting", "merged", "cut to the host's kernel")


def _words(effect: Effect) -> str:
    text = f"output changed by {effect.change:.1%}"
    return text if effect.gain is None else text + ", top-1 {:+.2f} points ({:+.2f} to {:+.2f})".format(*effect.gain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """Where merging stops, one of three: see :func:`merge`.

    Raises:
        InputError: None of them is given, several, or a value that makes no sense.
    """

    keep: int | None = None
    budget: float | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if [self.keep, self.budget, self.tolerance].count(None) != 2:
            raise InputError("merge stops at one of keep=, budget= and tolerance=: give one of them")
        if self.keep is not None:
            whole_number("keep", self.keep, least=0)
        if self.budget is not None:
            _number("budget", self.budget, above=0)
        if self.tolerance is not None:
            _number("tolerance", self.tolerance, above=-1e-9)

    def check(self, units: Iterable[str], *, labels: Tensor | None, costs: Costs | None) -> None:
        """An ``InputError`` if it cannot be judged or reached with these units, labels and costs."""
        if self.tolerance is not None and labels is None:
            raise InputError("tolerance= is a loss of accuracy: give labels= of the images")
        if self.budget is not None:
            if costs is None:
                raise InputError("budget= is a share of the plain network's latency: give costs=, which are measured")
            costs.check(units)
            smallest = costs.ratio({name: min(costs.units[name], key=costs.units[name].__getitem__) for name in units})
            if self.budget < smallest:
                raise InputError(f"budget={self.budget} cannot be met: the smallest ratio that can is {smallest:.3f}")

    def allows(self, step: Step) -> bool:
        """Whether a step may be taken."""
        return self.tolerance is None or step.effect.gain is None or step.effect.gain[0] >= -self.tolerance - 1e-9

    def reached(self, step: Step) -> bool:
        """Whether no further step is needed."""
        few = self.keep is not None and step.count("select") <= self.keep
        return few or (self.budget is not None and step.ratio is not None and step.ratio <= self.budget)


def merge(
    model: nn.Module,
    images: Tensor,
    *,
    keep: int | None = None,
    budget: float | None = None,
    tolerance: float | None = None,
    labels: Tensor | None = None,
    costs: Costs | None = None,
) -> tuple[nn.Module, Report]:
    """Fix the attention of the units whose selection matters least, and make each of them one convolution.

    Statistics of the batch norms follow: each running mean and variance moves by what its input's moved on ``images``.
    What is merged can be undone only from the checkpoint.

    Args:
        model: Any network with :class:`~edge_sk.SelectiveKernel` inside; it is not changed.
        images: Real images as the network takes them, ``(N, C, H, W)``, a few hundred; never those of the test set.
        keep: Merge until so many units select.
        budget: Merge until the latency is at most this share of the plain network's; needs ``costs``.
        tolerance: Merge as long as the accuracy on ``images`` falls by no more points than this; needs ``labels``.
        labels: Classes of the images, ``(N,)``. They do not change the order: on a few hundred images, learned ones
            above all, one image that tips would decide it.
        costs: What each unit costs, by which units are taken. ``None``: all cost the same, and none is cut.

    Returns:
        A merged copy, in the mode, on the device and in the type of the model; and the report.

    Raises:
        InputError: No unit selects, not one of ``keep``, ``budget`` and ``tolerance`` is given, the budget is below the
            smallest latency that can be reached, or the images do not fit.

    Example:
        >>> import edge_sk
        >>> network = nn.Sequential(SelectiveKernel(8, 8, groups=8, act_layer=None), nn.Conv2d(8, 2, 1))
        >>> merged, report = edge_sk.merge(network, torch.randn(4, 8, 16, 16), keep=0)
        >>> merged[0]
        Conv2d(8, 8, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), groups=8)
    """
    running.check_network(model, "merge")
    goal = Goal(keep=keep, budget=budget, tolerance=tolerance)
    goal.check(gated_units(model), labels=labels, costs=costs)
    found = None
    for network, report in path(model, images, labels=labels, costs=costs):
        if not goal.allows(report.steps[-1]):
            break
        # The next step may be one too many.
        found = (running.copied(network) if tolerance is not None else network), report
        if goal.reached(report.steps[-1]):
            return found
    assert found is not None
    if tolerance is None:
        last = found[1].steps[-1]
        ratio = "" if last.ratio is None else f" and the smallest ratio is {last.ratio:.3f}"
        raise InputError(
            f"the goal cannot be met: by these costs nothing more can be saved when {last.count('select')} units "
            f"select{ratio}; give that, or costs of other outcomes"
        )
    return found


def path(
    model: nn.Module, images: Tensor, *, labels: Tensor | None = None, costs: Costs | None = None
) -> Iterator[tuple[nn.Module, Report]]:
    """Merge unit after unit, to the end; arguments and errors as of :func:`merge`.

    Yields:
        The network, at first as it was, and the report up to here. The network goes on to be changed: copy it to keep.
    """
    trial = _Trial(model, images, labels)
    if costs is not None:
        costs.check(trial.units)
    alike: dict[Outcome, float] = {"select": 1.0, "merge": 0.0}
    prices = {name: costs.units[name] if costs else alike for name in trial.units}
    outcomes: dict[str, Outcome] = dict.fromkeys(trial.units, "select")
    steps = [Step(moved=None, outcomes=outcomes, effect=trial.effect(), ratio=costs and costs.ratio(outcomes))]
    attention = trial.observe()
    possible: list[tuple[str, Outcome]] = [
        (name, outcome) for name in attention for outcome in OUTCOMES[1:] if prices[name].get(outcome) is not None
    ]
    alone = {choice: trial.effect(*choice) for choice in possible if trial.module(*choice) is not None}
    units = [
        Unit(
            name=name,
            kernels="+".join(map(str, trial.units[name].kernels)),
            attention=tuple(weights.mean((0, 2)).tolist()),
            spread=float(weights.std(0, correction=0).mean()),
            class_spread=_class_spread(weights, labels),
            alone={outcome: effect for (unit, outcome), effect in alone.items() if unit == name},
            costs=costs and prices[name],
        )
        for name, weights in attention.items()
    ]
    scores: dict[tuple[str, Outcome], float] = dict.fromkeys(alone, -math.inf)
    while True:
        trial.effect()  # the statistics of the network as it is, not of one that was tried
        yield trial.model, Report(units=units, steps=tuple(steps), images=len(images))
        if len(steps) > 1:
            trial.observe()
        before = steps[-1].effect
        best: tuple[str, Outcome] | None = None
        for name, outcome in sorted(scores, key=scores.__getitem__):
            # Measured anew as long as what was found is worse than what the next one had before.
            if best is not None and scores[best] <= scores[name, outcome]:
                break
            saved = prices[name][outcomes[name]] - prices[name][outcome]
            if saved <= 0 or OUTCOMES.index(outcome) <= OUTCOMES.index(outcomes[name]):
                del scores[name, outcome]
                continue
            effect = alone[name, outcome] if len(steps) == 1 else trial.effect(name, outcome)
            scores[name, outcome] = (effect.change - before.change) / saved
            if best is None or scores[name, outcome] < scores[best]:
                best = name, outcome
        if best is None:
            return
        name, outcome = best
        trial.put(name, trial.module(name, outcome))  # type: ignore[arg-type]
        outcomes = {**outcomes, name: outcome}
        # From here on it saves less.
        scores = {choice: -math.inf if choice[0] == name else score for choice, score in scores.items()}
        steps.append(Step(moved=name, outcomes=outcomes, effect=trial.effect(), ratio=costs and costs.ratio(outcomes)))


class _Statistics(NamedTuple):
    """A batch norm's running statistics, and those of its input on the images."""

    running_mean: Tensor
    running_var: Tensor
    mean: Tensor
    var: Tensor


class _Trial:
    """A copy of a network whose units can be replaced; it runs on the same images every time.

    With every run the batch norms' statistics follow the change of their inputs, so that they are never of a network
    that was only tried.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> None:
        if not isinstance(images, Tensor) or images.ndim != 4 or not len(images) or not images.is_floating_point():
            given = f"{tuple(images.shape)}, {images.dtype}" if isinstance(images, Tensor) else shown(images)
            raise InputError(f"images must be a batch of images as the network takes them, (N, C, H, W): got {given}")
        self.model = running.copied(model)
        self.units = gated_units(self.model)
        if "" in self.units:
            raise InputError("the network is one selective kernel: wrap it, for instance in nn.Sequential")
        self._places: dict[str, list[str]] = {}
        paths: dict[nn.Module, str] = {unit: name for name, unit in self.units.items()}
        for name, module in self.model.named_modules(remove_duplicate=False):
            if module in paths:
                self._places.setdefault(paths[module], []).append(name)
        self._images = images.to(running.reference(self.model))
        self._norms: dict[nn.Module, list[_Statistics]] = {}
        norms = [module for module in self.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        with ExitStack() as hooks:
            for norm in norms:
                if norm.running_mean is not None:
                    hooks.callback(norm.register_forward_pre_hook(self._remember).remove)
            self._expected = self._run()
        # One that is called several times keeps its statistics: it is not known which call they should follow.
        self._norms = {norm: found for norm, found in self._norms.items() if len(found) == 1}
        self._labels = labels
        self._right = None
        if labels is not None:
            scores = self._expected[0] if len(self._expected) == 1 else None
            if scores is None or scores.ndim != 2 or labels.shape != (len(images),) or labels.is_floating_point():
                raise InputError("labels= must be one class per image, (N,), for a network that returns (N, classes)")
            self._right = scores.argmax(1) == labels.to(scores.device)

    def _remember(self, norm: Any, inputs: tuple[Tensor]) -> None:
        statistics = norm.running_mean.clone(), norm.running_var.clone(), *_moments(inputs[0])
        self._norms.setdefault(norm, []).append(_Statistics(*statistics))

    def _follow(self, norm: Any, inputs: tuple[Tensor]) -> None:
        (start,) = self._norms[norm]
        mean, var = _moments(inputs[0])
        growth = (var + norm.eps) / (start.var + norm.eps) - 1
        norm.running_mean.copy_(start.running_mean + mean - start.mean)
        norm.running_var.copy_((start.running_var + (start.running_var + norm.eps) * growth).clamp(min=0))

    def _run(self) -> list[Tensor]:
        with running.evaluating(self.model), ExitStack() as hooks:
            for norm in self._norms:
                hooks.callback(norm.register_forward_pre_hook(self._follow).remove)
            return running.outputs(self.model, self._images)

    def put(self, name: str, module: nn.Module) -> None:
        """Put a module in a unit's place."""
        for place in self._places[name]:
            self.model.set_submodule(place, module)

    def effect(self, name: str | None = None, outcome: Outcome | None = None) -> Effect:
        """Run the network, with a unit's :meth:`module` of another outcome in its place for the time being."""
        module = None if name is None or outcome is None else self.module(name, outcome)
        if name is None or module is None:
            return self._effect(self._run())
        before = self.model.get_submodule(name)
        self.put(name, module)
        try:
            return self._effect(self._run())
        finally:
            self.put(name, before)

    def _effect(self, outputs: list[Tensor]) -> Effect:
        pairs = [(a.double(), b.double()) for a, b in zip(self._expected, outputs, strict=True)]
        power = sum(float(a.square().sum()) for a, _ in pairs)
        change = math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs) / power) if power else 0.0
        if self._right is None or self._labels is None:
            return Effect(change=change)
        right = outputs[0].argmax(1) == self._labels.to(outputs[0].device)
        gained, lost = int((right & ~self._right).sum()), int((self._right & ~right).sum())
        return Effect(change=change, top1=100 * float(right.double().mean()), gain=_gain(gained, lost, len(right)))

    def observe(self) -> dict[str, Tensor]:
        """Run the network for what :meth:`module` needs; returns the attention of the units that select, (N, M, C)."""
        self._made: dict[tuple[str, Outcome], nn.Module | None] = {}
        self._inputs: dict[str, list[Tensor]] = {name: [] for name in self._places}
        attention: dict[str, list[Tensor]] = {}
        with ExitStack() as hooks:
            for name, inputs in self._inputs.items():
                module = self.model.get_submodule(name)
                hooks.callback(module.register_forward_pre_hook(functools.partial(_keep_input, inputs)).remove)
                if isinstance(module, SelectiveKernel) and module.gate is not None:
                    keep = functools.partial(_keep_output, attention.setdefault(name, []))
                    hooks.callback(module.gate.register_forward_hook(keep).remove)
            self._run()
        self._attention = {name: torch.cat(parts) for name, parts in attention.items() if parts}
        return self._attention

    def module(self, name: str, outcome: Outcome) -> nn.Module | None:
        """A unit with another outcome, by what the network computed when observed; ``None`` if it has none such."""
        if (name, outcome) not in self._made:
            made = self.model.get_submodule(name)
            if name in self._attention:
                made = merged(self.units[name], self._attention[name].mean(0))
            if outcome == "cut":
                size = host_kernel(self.units[name])
                wide = isinstance(made, nn.Conv2d) and made.kernel_size != size
                made = cut(made, size, self._inputs[name]) if wide else None  # type: ignore[arg-type]
            self._made[name, outcome] = made
        return self._made[name, outcome]


def _keep_input(kept: list[Tensor], module: nn.Module, args: tuple[Tensor, ...]) -> None:
    kept.append(args[0])


def _keep_output(kept: list[Tensor], module: nn.Module, args: Any, output: Tensor) -> None:
    kept.append(output.double().cpu().flatten(2))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(
        x if x.dtype is torch.float64 else x.float(), [d for d in range(x.ndim) if d != 1], correction=0
    )
    return mean, var


def _class_spread(attention: Tensor, labels: Tensor | None) -> float | None:
    """Standard deviation of a channel's attention over the means of the classes, mean over channels."""
    if labels is None:
        return None
    means = torch.stack([attention[labels.cpu() == label].mean(0) for label in labels.cpu().unique()])
    return float(means.std(0, correction=0).mean())


def _gain(gained: int, lost: int, images: int) -> tuple[float, float, float]:
    """Change of accuracy in points, and its 95 % interval: Agresti and Min, 2005, half an image added to each cell."""
    more, less, count = gained + 0.5, lost + 0.5, images + 2
    half = 1.96 * math.sqrt(more + less - (more - less) ** 2 / count) / count
    middle = (more - less) / count
    return 100 * (gained - lost) / images, 100 * (middle - half), 100 * (middle + half)


def _number(name: str, value: Any, *, above: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not above < value < math.inf:
        raise InputError(f"{name}={shown(value)} is not a finite number{f' above {above:g}' if above > -1 else ''}")
    return value


def host_kernel(unit: SelectiveKernel) -> tuple[int, int]:
    """Taps of the convolution that a unit stands for: of its first branch without dilation, else of the smallest.

    :func:`edge_sk.graft` and the zoo put the host's own kernel first.
    """
    undilated = [kernel.taps for kernel in unit.kernels if kernel.dilation == 1]
    return undilated[0] if undilated else min(kernel.extents for kernel in unit.kernels)


# Branches that are one convolution each.
_CONVOLUTIONS = ([nn.Conv2d], [nn.Conv2d, nn.BatchNorm2d])


@torch.no_grad()
def merged(unit: SelectiveKernel, attention: Tensor) -> nn.Module:
    """What a unit computes with its attention fixed to ``(M, C)``, a new module.

    One convolution if the branches are a convolution each, with or without a batch norm; if they have more, such as an
    activation, the unit without its gate.
    """
    if any([*map(type, branch)] not in _CONVOLUTIONS for branch in unit.branches):  # type: ignore[call-overload]
        return _without_gate(unit, attention)
    exact = copy.deepcopy(unit.branches).to("cpu", torch.float64).eval()
    convs = [as_convolution(branch)[0] for branch in exact]
    groups = math.gcd(*(conv.groups for conv in convs))
    size = tuple(map(max, zip(*(kernel.extents for kernel in unit.kernels), strict=True)))
    weight, bias = torch.zeros(()), torch.zeros(())
    for conv, share in zip(convs, attention.to("cpu", torch.float64), strict=True):
        weight = weight + share[:, None, None, None] * regroup(_spread(conv, size), conv.groups, groups)
        if conv.bias is not None:
            bias = bias + share * conv.bias
    first = unit.branches[0].get_submodule("conv")
    assert isinstance(first, nn.Conv2d)
    return _convolution(first, weight, bias, groups)


class _Scale(nn.Module):
    """Multiply by a constant per channel."""

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _without_gate(unit: SelectiveKernel, attention: Tensor) -> SelectiveKernel:
    """A copy that sums its branches, the fixed attention within them."""
    twin = copy.deepcopy(unit)
    twin.gate = None
    for branch, share in zip(twin.branches, attention.to(running.reference(unit)), strict=True):
        conv, *rest = branch.children()
        last = rest.pop(0) if [type(conv), *map(type, rest[:1])] == _CONVOLUTIONS[1] else conv
        # These commute with positive factors, which attention is.
        commute = all(type(act) in (nn.ReLU, nn.LeakyReLU, nn.Identity) for act in rest)
        if commute and type(last) in (nn.Conv2d, nn.BatchNorm2d):
            for parameter in last.parameters():
                parameter.mul_(share.view(-1, *[1] * (parameter.ndim - 1)))
        else:
            branch.add_module("scale", _Scale(share))
    return twin


@torch.no_grad()
def cut(conv: nn.Conv2d, size: tuple[int, int], inputs: Iterable[Tensor]) -> nn.Conv2d:
    """The convolution of ``size`` taps and the same groups that comes nearest to ``conv`` on ``inputs``.

    Each output channel's taps and bias are a least-squares fit to the larger convolution's output.

    Args:
        conv: A convolution with a bias and an odd kernel larger than ``size``.
        size: Rows and columns.
        inputs: What the convolution gets, ``(N, C, H, W)`` each.
    """
    groups, width = conv.groups, conv.in_channels // conv.groups
    moments = _second_moments(conv, inputs)  # (G, D, D), D = width * taps + 1
    inner = _framed(torch.ones(width, 1, *size, dtype=torch.bool), conv.kernel_size).flatten()
    kept = torch.cat([inner, torch.tensor([True])])  # the last is the bias
    assert conv.bias is not None
    target = torch.cat([conv.weight.flatten(1), conv.bias[:, None]], 1).to("cpu", torch.float64)
    target = target.view(groups, -1, target.shape[1])  # (G, C/G, D)
    # The change of the taps that stay makes up for those that go. A little ridge: taps that see nothing stay.
    inside = moments[:, kept][:, :, kept]
    ridge = 1e-6 * inside.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(inside.shape[1])
    change = torch.linalg.solve(inside + ridge, moments[:, kept][:, :, ~kept] @ target[:, :, ~kept].mT).mT
    fitted = (target[:, :, kept] + change).reshape(conv.out_channels, -1)
    return _convolution(conv, fitted[:, :-1].reshape(-1, width, *size), fitted[:, -1], groups)


def _second_moments(conv: nn.Conv2d, inputs: Iterable[Tensor]) -> Tensor:
    """Mean of the outer product of what one output sees, its input window and 1, for each group: ``(G, D, D)``."""
    groups, (rows, columns) = conv.groups, conv.kernel_size
    total, count = torch.zeros(()), 0
    for x in (part for batch in inputs for part in batch.split(16)):  # windows take size^2 times the memory
        padding = rows // 2, columns // 2
        windows = F.unfold(x.float(), conv.kernel_size, padding=padding, stride=conv.stride)  # (N, C * taps, L)
        batch, _, places = windows.shape
        seen = windows.view(batch, groups, -1, places)
        seen = torch.cat([seen, torch.ones(batch, groups, 1, places).to(seen)], 2)
        seen = seen.transpose(0, 1).transpose(1, 2).flatten(2)  # (G, D, N * L)
        total = total + (seen @ seen.mT).to("cpu", torch.float64)
        count += batch * places
    if not count:
        raise InputError("there are no inputs to fit a convolution to")
    return total / count


def _spread(conv: nn.Conv2d, size: tuple[int, ...]) -> Tensor:
    """A filter with its dilation written out, in the middle of ``size`` taps."""
    dilation, (rows, columns) = conv.dilation[0], conv.kernel_size
    spread = conv.weight.new_zeros(*conv.weight.shape[:2], dilation * (rows - 1) + 1, dilation * (columns - 1) + 1)
    spread[:, :, ::dilation, ::dilation] = conv.weight
    return _framed(spread, size)


def _framed(filters: Tensor, size: tuple[int, ...]) -> Tensor:
    """Filters in the middle of ``size`` taps, the others zero."""
    rows, columns = ((new - old) // 2 for new, old in zip(size, filters.shape[-2:], strict=True))
    return F.pad(filters, (columns, columns, rows, rows))


def _convolution(like: nn.Conv2d, weight: Tensor, bias: Tensor, groups: int) -> nn.Conv2d:
    """A convolution of the same channels, stride, device, type and memory format; other taps, "same" padding."""
    size = weight.shape[2], weight.shape[3]
    padding = size[0] // 2, size[1] // 2
    make = functools.partial(nn.Conv2d, device=like.weight.device, dtype=like.weight.dtype)
    conv = make(like.in_channels, like.out_channels, size, like.stride[0], padding, groups=groups)
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)  # type: ignore[union-attr]
    return conv.train(like.training)
