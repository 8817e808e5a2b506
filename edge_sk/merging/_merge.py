"""The order in which units are merged, and where it stops."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edge_sk import running
from edge_sk.attention import gated_units
from edge_sk.errors import InputError
from edge_sk.merging.report import Effect, Report, Step, Unit
from edge_sk.merging.trial import Trial

if TYPE_CHECKING:
    import os

    from edge_sk.costs import Costs, Outcome

    Choice = tuple[str, Outcome]


def merge(
    model: nn.Module,
    images: Tensor,
    *,
    keep: int | None = None,
    budget: float | None = None,
    tolerance: float | None = None,
    labels: Tensor | None = None,
    costs: Costs | Mapping[str, Any] | str | os.PathLike[str] | None = None,
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
        costs: What each unit costs on the device, by which units are taken: the file that ``deploy/unit_costs.py`` or
            ``edge-sk export --merge`` wrote, or its values. ``None``: all cost the same, and none is cut.

    Returns:
        A merged copy, in the mode, on the device and in the type of the model; and the report.

    Raises:
        InputError: No unit selects, not one of ``keep``, ``budget`` and ``tolerance`` is given, the budget is below the
            smallest latency that can be reached, or the images, labels or costs do not fit.

    Example:
        >>> import edge_sk
        >>> from torch import nn
        >>> network = nn.Sequential(edge_sk.SelectiveKernel(8, 8, groups=8, act_layer=None), nn.Conv2d(8, 2, 1))
        >>> merged, report = edge_sk.merge(network, torch.randn(4, 8, 16, 16), keep=0)
        >>> merged[0]
        Conv2d(8, 8, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), groups=8)
    """
    from edge_sk.merging.goal import Goal  # loads pydantic
    from edge_sk.reading import validated

    running.check_network(model, "merge")
    goal = validated(Goal, {"keep": keep, "budget": budget, "tolerance": tolerance}, "merge")
    if tolerance is not None and labels is None:
        raise InputError("tolerance= is a loss of accuracy: give labels= of the images")
    table = _read(costs, model)
    goal.check(gated_units(model), table)
    found = None
    for network, report in path(model, images, labels=labels, costs=table):
        index = goal.chosen(report.steps)
        if index in (None, len(report.steps) - 1):
            # With a tolerance, the next step may be one too many.
            found = (running.copied(network) if tolerance is not None else network), report
        if index is not None:
            break
    else:
        if found and tolerance is None:
            raise InputError(f"the goal cannot be met: by these costs nothing more can be saved: {found[1].steps[-1]}")
    assert found is not None
    return found


def path(
    model: nn.Module,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    costs: Costs | Mapping[str, Any] | str | os.PathLike[str] | None = None,
) -> Iterator[tuple[nn.Module, Report]]:
    """Merge unit after unit, to the end; arguments and errors as of :func:`merge`.

    Yields:
        The network, at first as it was, and the report up to here. The network goes on to be changed: copy it to keep.
    """
    table = _read(costs, model)
    trial = Trial(model, images, labels)
    prices: Mapping[str, Mapping[Outcome, float]] = (
        table.units if table else {name: {"select": 1.0, "merge": 0.0} for name in trial.units}
    )
    attention = trial.observe()
    alone: dict[Choice, Effect] = {}
    for name in attention:
        for outcome in prices[name]:
            if outcome != "select" and (module := trial.module(name, outcome)) is not None:
                alone[name, outcome] = trial.effect(name, module)
    units = [
        Unit(
            name=name,
            kernels="+".join(map(str, trial.units[name].kernels)),
            attention=tuple(weights.mean((0, 2)).tolist()),
            spread=float(weights.std(0, correction=0).mean()),
            class_spread=_class_spread(weights, labels),
            alone={outcome: effect for (unit, outcome), effect in alone.items() if unit == name},
        )
        for name, weights in attention.items()
    ]
    outcomes: dict[str, Outcome] = dict.fromkeys(trial.units, "select")
    steps: list[Step] = []
    moved, scores = None, dict.fromkeys(alone, 0.0)
    while True:
        # This run also leaves the statistics of the network as it is, not of one that was tried.
        effect = trial.effect()
        ratio = None if table is None else table.ratio(outcomes)
        steps.append(Step(moved=moved, outcomes=dict(outcomes), effect=effect, ratio=ratio))
        yield trial.model, Report(units=units, steps=tuple(steps), images=len(images))
        trial.observe()
        saved: dict[Choice, float] = {
            (name, outcome): prices[name][outcomes[name]] - prices[name][outcome] for name, outcome in scores
        }
        # A unit that was cut is not widened again.
        scores = {choice: scores[choice] for choice in scores if saved[choice] > 0 and outcomes[choice[0]] != "cut"}
        if moved is None:
            scores = {choice: alone[choice].change / saved[choice] for choice in scores}
        best = _best(trial, scores, saved, effect.change)
        if best is None:
            return
        moved, outcomes[best[0]] = best
        trial.put(moved, trial.module(*best))  # type: ignore[arg-type]
        # From here on it saves less.
        scores |= {choice: -math.inf for choice in scores if choice[0] == moved}


def _best(trial: Trial, scores: dict[Choice, float], saved: Mapping[Choice, float], before: float) -> Choice | None:
    """The choice that changes the output least for what it saves; ``scores`` of those that are measured are updated."""
    best = None
    for choice in sorted(scores, key=scores.__getitem__):
        # Measured anew as long as what was found is worse than what the next one had before.
        if best is not None and scores[best] <= scores[choice]:
            break
        scores[choice] = (trial.effect(choice[0], trial.module(*choice)).change - before) / saved[choice]
        best = choice if best is None or scores[choice] < scores[best] else best
    return best


def _read(costs: Any, model: nn.Module) -> Costs | None:
    if costs is None:
        return None
    from edge_sk.costs import read_costs  # loads pydantic

    return read_costs(costs, gated_units(model), "select", "merge")


def _class_spread(attention: Tensor, labels: Tensor | None) -> float | None:
    """Standard deviation of a channel's attention over the means of the classes, mean over channels."""
    if labels is None:
        return None
    means = torch.stack([attention[labels.cpu() == label].mean(0) for label in labels.cpu().unique()])
    return float(means.std(0, correction=0).mean())
