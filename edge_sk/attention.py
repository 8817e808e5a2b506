"""Which kernel did it choose: the attention of every selective-kernel unit, recorded and set against object scale.

Li et al., *Selective Kernel Networks*, CVPR 2019, Sec. 4.5: their Figure 3 enlarges the object in the image and watches
the attention for the larger kernel; their Figure 4 does so per class.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_sk.confidence import mean, mean_interval
from edge_sk.errors import InputError
from edge_sk.files import atomic_write
from edge_sk.selective_kernel import Kernel, SelectiveKernel


def gated_units(model: nn.Module) -> dict[str, SelectiveKernel]:
    """The units of ``model`` that select, by name, in the order of ``named_modules`` (which is that of depth).

    Raises:
        InputError: There is none.
    """
    units = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SelectiveKernel) and module.gate is not None
    }
    if not units:
        raise InputError(
            "the network has no selective kernels that select: take an sk_ or sknet name, or a grafted network, "
            "before reparameterize()"
        )
    return units


@contextlib.contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While entered, every forward pass of ``model`` leaves its attention in the dictionary.

    Yields:
        Name of the unit to attention, ``(N, M, C)``, summing to 1 over the ``M`` branches; of the latest forward pass.

    Raises:
        InputError: The network has no unit that selects.

    Example:
        >>> import edge_sk
        >>> model = edge_sk.create_model("sk_shufflenetv2_0.5").eval()
        >>> with record_attention(model) as attention:
        ...     _ = model(torch.zeros(2, 3, 64, 64))
        >>> attention["stage2.1.branch2.3"].shape
        torch.Size([2, 2, 24])
    """
    recorded: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_: nn.Module, inputs: Any, attention: Tensor) -> None:
            recorded[name] = attention.detach().flatten(2)

        return hook

    with contextlib.ExitStack() as stack:
        for name, unit in gated_units(model).items():
            assert unit.gate is not None
            handle = unit.gate.register_forward_hook(keep(name))
            stack.callback(handle.remove)
        yield recorded


def kernel_pair(unit: SelectiveKernel) -> tuple[int, int]:
    """Positions of the branches with the smallest and the largest extent; the first and last where all are equal."""
    extents = [kernel.extent for kernel in unit.kernels]
    smallest = min(range(len(extents)), key=lambda branch: extents[branch])
    largest = max(range(len(extents)), key=lambda branch: (extents[branch], branch))
    return smallest, largest


@dataclass(frozen=True)
class ScaleAttention:
    """Attention for the largest kernel minus that for the smallest, over images of several scales.

    Axes: ``S`` scales, ``N`` images, ``U`` units, ``K`` classes, ``C`` channels of a unit.
    """

    scales: tuple[float, ...]
    units: tuple[str, ...]
    kernels: tuple[tuple[str, str], ...]
    """Smallest and largest kernel of each unit."""
    branches: tuple[int, ...]
    """``M`` of each unit."""
    maps: tuple[tuple[int, int], ...]
    """``(H, W)`` of each unit's output: a kernel that is larger hardly differs from a smaller one there."""
    by_image: Tensor
    """``(S, N, U)``, mean over channels."""
    by_class: Tensor
    """``(S, K, U)``, mean over channels and images; NaN for a class without images."""
    by_channel: tuple[Tensor, ...]
    """For each unit ``(S, C)``, mean over images."""
    larger_by_channel: tuple[Tensor, ...]
    """For each unit ``(S, C)``: the attention for the largest kernel itself, mean over images."""


@torch.inference_mode()
def attention_against_scale(
    model: nn.Module,
    batches: Mapping[float, Iterable[tuple[Tensor, Tensor]]],
    normalize: Callable[[Tensor], Tensor],
    *,
    num_classes: int,
) -> ScaleAttention:
    """Record the attention on the same images at several scales.

    Args:
        model: Any network with selective kernels; it is run in evaluation mode.
        batches: Per scale the same images in the same order, and their labels.
        normalize: From an image batch of ``batches`` to the network's input.
        num_classes: ``K``.

    Raises:
        InputError: No unit selects, there are no images, a label is not below ``num_classes``, or the scales hold
            different images.
    """
    units = gated_units(model)
    pairs = {name: kernel_pair(unit) for name, unit in units.items()}
    maps: dict[str, tuple[int, int]] = {}
    was_training = model.training
    model.eval()
    by_image, by_class, labels_seen = [], [], None
    channel_difference: list[list[Tensor]] = [[] for _ in units]
    channel_larger: list[list[Tensor]] = [[] for _ in units]
    try:
        for scale, scale_batches in batches.items():
            parts: dict[str, list[Tensor]] = {name: [] for name in units}
            larger: dict[str, Tensor] = {}
            difference: dict[str, Tensor] = {}
            labels: list[Tensor] = []
            with record_attention(model) as attention, _record_maps(units, maps):
                for images, targets in scale_batches:
                    if int(targets.max()) >= num_classes:
                        raise InputError(
                            f"an image is of class {int(targets.max())}, the network knows {num_classes} classes "
                            "(0 and up): give the data that it was trained on"
                        )
                    model(normalize(images))
                    labels.append(targets)
                    for name, (small, large) in pairs.items():
                        weights = attention[name].cpu().double()  # mps has no float64
                        gap = weights[:, large] - weights[:, small]
                        parts[name].append(gap.mean(1))
                        difference[name] = difference.get(name, 0) + gap.sum(0)
                        larger[name] = larger.get(name, 0) + weights[:, large].sum(0)
            if not labels:
                raise InputError("there are no images to record attention on")
            targets = torch.cat(labels)
            if labels_seen is not None and not torch.equal(targets, labels_seen):
                raise InputError(
                    f"scale {scale} holds other images than the first scale: the shift would not be paired"
                )
            labels_seen = targets
            values = torch.stack([torch.cat(parts[name]) for name in units], 1)  # (N, U)
            by_image.append(values)
            by_class.append(_mean_by_class(values, targets, num_classes))
            for position, name in enumerate(units):
                channel_difference[position].append(difference[name] / len(targets))
                channel_larger[position].append(larger[name] / len(targets))
    finally:
        model.train(was_training)
    return ScaleAttention(
        scales=tuple(batches),
        units=tuple(units),
        kernels=tuple(
            (str(unit.kernels[pairs[name][0]]), str(unit.kernels[pairs[name][1]])) for name, unit in units.items()
        ),
        branches=tuple(len(unit.kernels) for unit in units.values()),
        maps=tuple(maps[name] for name in units),
        by_image=torch.stack(by_image),
        by_class=torch.stack(by_class),
        by_channel=tuple(torch.stack(rows) for rows in channel_difference),
        larger_by_channel=tuple(torch.stack(rows) for rows in channel_larger),
    )


@contextlib.contextmanager
def _record_maps(units: Mapping[str, SelectiveKernel], maps: dict[str, tuple[int, int]]) -> Iterator[None]:
    """While entered, every forward pass leaves the size of each unit's output in ``maps``."""

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_: nn.Module, inputs: Any, output: Tensor) -> None:
            maps[name] = (output.shape[2], output.shape[3])

        return hook

    with contextlib.ExitStack() as stack:
        for name, unit in units.items():
            stack.callback(unit.register_forward_hook(keep(name)).remove)
        yield


def _mean_by_class(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    sums = torch.zeros(num_classes, values.shape[1], dtype=values.dtype).index_add_(0, labels, values)
    counts = torch.bincount(labels, minlength=num_classes)
    return sums / counts[:, None]


def summarize(runs: Sequence[ScaleAttention], classes: Sequence[str] | None = None) -> dict[str, Any]:
    """Mean over runs of one architecture, and how far the attention shifts from the first scale to the last.

    The interval of the shift is Student's at 95 %: over runs where there are at least two, so that it holds for
    training again; over images for a single run, so that it holds for that network only, and is too narrow where
    images are of the same object.

    Args:
        runs: One per trained network.
        classes: Names of the classes.

    Returns:
        A JSON-ready mapping: ``scales``, ``runs``, ``images``, ``interval_over``, ``classes``, ``units``, and
        ``by_map``: the units of one map size together, in the order of depth.

    Raises:
        InputError: The runs differ in units, scales, images or classes, or there is one image of one run.
    """
    first = runs[0]
    for run in runs[1:]:
        if (run.units, run.scales, run.kernels, run.maps) != (first.units, first.scales, first.kernels, first.maps):
            raise InputError("the checkpoints are of different architectures: give seeds of one")
        if (run.by_image.shape, run.by_class.shape) != (first.by_image.shape, first.by_class.shape):
            raise InputError("the checkpoints were given different images or know different classes")
    over = "runs" if len(runs) > 1 else "images"
    by_image = torch.stack([run.by_image for run in runs])  # (R, S, N, U)
    by_class = torch.stack([run.by_class for run in runs]).mean(0)  # (S, K, U)
    means = by_image.mean(2)  # (R, S, U)
    # (R, U) over runs, (N, U) over images
    shifts = means[:, -1] - means[:, 0] if over == "runs" else by_image[0, -1] - by_image[0, 0]
    if len(shifts) < 2:
        raise InputError("one image of one network has no interval: give more images, or several networks")
    units = []
    for position, name in enumerate(first.units):
        small, large = first.kernels[position]
        units.append(
            {
                "name": name,
                "map": list(first.maps[position]),
                "smaller": small,
                "larger": large,
                "branches": first.branches[position],
                "difference": _round(means[:, :, position].mean(0)),
                "difference_by_run": [_round(row) for row in means[:, :, position]],
                **_shift(shifts[:, position]),
                "by_class": [_round(row) for row in by_class[:, :, position]],
                "by_channel": [_round(row) for row in torch.stack([run.by_channel[position] for run in runs]).mean(0)],
                "larger_by_channel": [
                    _round(row) for row in torch.stack([run.larger_by_channel[position] for run in runs]).mean(0)
                ],
            }
        )
    by_map = []
    for size, group in itertools.groupby(range(len(units)), key=lambda position: first.maps[position]):
        members = list(group)
        # How much attention reacts, whichever way: in each network, mean over its units.
        magnitude = (means[:, -1, members] - means[:, 0, members]).abs().mean(1)
        by_map.append(
            {
                "map": list(size),
                "units": [units[position]["name"] for position in members],
                "smaller": units[members[0]]["smaller"],
                "larger": units[members[0]]["larger"],
                **_shift(shifts[:, members].mean(1)),
                "magnitude": round(float(magnitude.mean()), 6),
                "magnitude_by_run": _round(magnitude),
            }
        )
    return {
        "scales": list(first.scales),
        "runs": len(runs),
        "images": by_image.shape[2],
        "interval_over": over,
        "classes": list(classes) if classes is not None else [str(k) for k in range(by_class.shape[1])],
        "units": units,
        "by_map": by_map,
    }


def _shift(values: Tensor) -> dict[str, Any]:
    low, high = mean_interval(values.tolist())
    return {"shift": round(float(values.mean()), 6), "shift_ci95": [round(low, 6), round(high, 6)]}


def _round(values: Tensor) -> list[float | None]:
    # JSON has no NaN: a class without images is null.
    return [None if math.isnan(value) else round(value, 4) for value in values.tolist()]


def markdown(summary: Mapping[str, Any]) -> str:
    """A table: mean difference per unit and scale, and the shift with its interval."""
    scales = summary["scales"]
    head = ["unit", "map", "kernels", *(f"scale {scale:g}" for scale in scales), "shift, 95 % CI", "moved to the"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|" + "---:|" * (len(scales) + 1) + "---|"]
    for unit in summary["units"]:
        low, high = unit["shift_ci95"]
        cells = [
            f"`{unit['name']}`",
            "x".join(map(str, unit["map"])),
            f"{unit['larger']} - {unit['smaller']}",
            *(f"{value:+.3f}" for value in unit["difference"]),
            f"{unit['shift']:+.3f} [{low:+.3f}, {high:+.3f}]",
            direction(unit),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    over = f"{summary['runs']} networks" if summary["interval_over"] == "runs" else "the images of this one network"
    return "\n".join(lines) + f"\n\nShift: from scale {scales[0]:g} to {scales[-1]:g}; intervals over {over}.\n"


def direction(unit: Mapping[str, Any]) -> str:
    """``larger`` or ``smaller`` kernel when the shift's interval leaves out zero, else ``neither``.

    Of kernels of one extent neither is larger: ``second`` or ``first`` then.
    """
    low, high = unit["shift_ci95"]
    names = ("first", "second") if _equal(unit) else ("smaller", "larger")
    return names[1] if low > 0 else names[0] if high < 0 else "neither"


def _equal(unit: Mapping[str, Any]) -> bool:
    return Kernel.parse(unit["smaller"]).extent == Kernel.parse(unit["larger"]).extent


def plot(summary: Mapping[str, Any], path: str | Path, *, title: str) -> None:
    """Draw a summary as PNG: per unit (Figure 3 c), per class (Figure 4) and per channel (Figure 3 a, b)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    units, scales, classes = summary["units"], summary["scales"], summary["classes"]
    chosen = sorted({0, len(units) // 2, len(units) - 1})
    figure = Figure(figsize=(13, 10), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(3, 1)  # the stub knows a single one only
    top, middle, bottom = parts
    colours = [f"C{position}" for position in range(len(scales))]

    axes = top.subplots()
    for position, scale in enumerate(scales):
        rows = [[run[position] for run in unit["difference_by_run"]] for unit in units]
        depth = range(len(units))
        axes.plot(depth, [mean(row) for row in rows], marker="o", color=colours[position], label=f"scale {scale:g}")
        if summary["runs"] > 1:
            axes.fill_between(
                depth, [min(row) for row in rows], [max(row) for row in rows], color=colours[position], alpha=0.12
            )
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(units)), [unit["name"] for unit in units], rotation=25, ha="right", fontsize=7)
    pair = "second - first" if all(map(_equal, units)) else "largest - smallest"
    difference = f"attention,\n{pair} kernel"
    axes.set_ylabel(difference)
    band = f"; band: all {summary['runs']} runs" if summary["runs"] > 1 else ""
    axes.set_title(f"{title}: mean over {summary['images']} images and all channels, by depth{band}", fontsize=10)
    axes.legend(fontsize=8)

    many = len(classes) > 20
    by_class = middle.subplots(1, len(chosen), squeeze=False)[0]
    by_class[0].set_ylabel(difference)
    for axes, number in zip(by_class, chosen, strict=True):
        for position in range(len(scales)):
            values = [math.nan if value is None else value for value in units[number]["by_class"][position]]
            axes.plot(values, marker="" if many else "o", color=colours[position], linewidth=0.8)
        axes.axhline(0, color="grey", linewidth=0.8)
        if not many:
            axes.set_xticks(range(len(classes)), classes, fontsize=7)
        axes.set_xlabel("class")
        axes.set_title(units[number]["name"], fontsize=9)
    by_channel = bottom.subplots(1, len(chosen), squeeze=False)[0]
    by_channel[0].set_ylabel(f"attention,\n{pair.split(' ')[0]} kernel")
    for axes, number in zip(by_channel, chosen, strict=True):
        by_scale = units[number]["larger_by_channel"]
        order = sorted(range(len(by_scale[0])), key=by_scale[0].__getitem__)
        for position, values in enumerate(by_scale):
            axes.plot([values[channel] for channel in order], color=colours[position], linewidth=0.8)
        axes.axhline(1 / units[number]["branches"], color="grey", linewidth=0.8)
        axes.set_xlabel(f"channel, by attention at scale {scales[0]:g}")
        axes.set_title(f"{units[number]['name']}: attention for {units[number]['larger']}", fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
