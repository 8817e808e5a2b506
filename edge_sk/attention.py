"""Record the attention of every selective-kernel unit, and summarize how it shifts with the scale of the object.

Li et al., *Selective Kernel Networks*, CVPR 2019, Sec. 4.5: their Figure 3 enlarges the object in the image and watches
the attention for the larger kernel; their Figure 4 does so per class.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from edge_sk.confidence import mean_interval
from edge_sk.errors import InputError
from edge_sk.markdown import markdown_table
from edge_sk.running import evaluating
from edge_sk.selective_kernel import Kernel, SelectiveKernel

T = TypeVar("T")


def gated_units(model: nn.Module) -> dict[str, SelectiveKernel]:
    """Map names to the units of ``model`` that have a gate, in the order of ``named_modules`` (in the zoo, by depth).

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
    """While entered, every forward pass of ``model`` puts its attention into the dictionary.

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
    gates = {name: unit.gate for name, unit in gated_units(model).items() if unit.gate is not None}
    with _recording(gates, lambda attention: attention.detach().flatten(2)) as recorded:
        yield recorded


@contextlib.contextmanager
def _recording(modules: Mapping[str, nn.Module], read: Callable[[Tensor], T]) -> Iterator[dict[str, T]]:
    """While entered, every forward pass puts ``read(output)`` of each module into the dictionary."""
    recorded: dict[str, T] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: recorded.update({name: read(output)})

    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook(name)).remove)
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


def attention_against_scale(
    model: nn.Module,
    batches: Mapping[float, Iterable[tuple[Tensor, Tensor]]],
    normalize: Callable[[Tensor], Tensor],
    *,
    num_classes: int,
) -> ScaleAttention:
    """Record the attention on the same images at several scales.

    Args:
        model: Any network with selective kernels; it is run in evaluation mode, and left in the mode it was in.
        batches: Per scale the same images in the same order, and their labels.
        normalize: From an image batch of ``batches`` to the network's input.
        num_classes: ``K``.

    Raises:
        InputError: No unit selects, there are no images, a label is not a class, or the scales hold different images,
            as far as their labels show.
    """
    units = gated_units(model)
    pairs = {name: kernel_pair(unit) for name, unit in units.items()}
    if not batches:
        raise InputError("there is no scale to record attention at")
    by_image, by_class, labels_seen = [], [], None
    channel_difference: list[list[Tensor]] = [[] for _ in units]
    channel_larger: list[list[Tensor]] = [[] for _ in units]
    with (
        evaluating(model),
        record_attention(model) as attention,
        _recording(units, lambda output: (output.shape[2], output.shape[3])) as maps,
    ):
        for scale, scale_batches in batches.items():
            parts: dict[str, list[Tensor]] = {name: [] for name in units}
            larger: dict[str, Tensor] = {}
            difference: dict[str, Tensor] = {}
            labels: list[Tensor] = []
            for images, batch_labels in scale_batches:
                targets = batch_labels.cpu()
                for extreme in (int(targets.min()), int(targets.max())):
                    if not 0 <= extreme < num_classes:
                        raise InputError(
                            f"an image is of class {extreme}, the network knows {num_classes} classes (0 and up): "
                            "give the data that it was trained on"
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
        ``by_map``: the units of one map size and pair of kernels together. ``by_channel`` and ``larger_by_channel`` of
        a unit are the first run's: a channel of one network is no channel of another.

    Raises:
        InputError: There are no runs, they differ in units, scales, map sizes, images or classes, or there is one
            image of one run.
    """
    if not runs:
        raise InputError("there is no network to summarize the attention of")
    first = runs[0]
    for run in runs[1:]:
        if (run.units, run.kernels) != (first.units, first.kernels):
            raise InputError("the checkpoints are of different architectures: give seeds of one")
        if (run.scales, run.maps) != (first.scales, first.maps):
            raise InputError("the checkpoints were given images of different scales or sizes")
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
                "by_channel": [_round(row) for row in first.by_channel[position]],
                "larger_by_channel": [_round(row) for row in first.larger_by_channel[position]],
            }
        )
    groups: dict[tuple[Any, ...], list[int]] = {}
    for position in range(len(units)):
        groups.setdefault((first.maps[position], first.kernels[position]), []).append(position)
    by_map = []
    for (size, (small, large)), members in groups.items():
        # How much attention reacts, whichever way: in each network, mean over its units.
        magnitude = (means[:, -1, members] - means[:, 0, members]).abs().mean(1)
        by_map.append(
            {
                "map": list(size),
                "units": [units[position]["name"] for position in members],
                "smaller": small,
                "larger": large,
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
    rows: list[list[str]] = []
    for unit in summary["units"]:
        low, high = unit["shift_ci95"]
        rows.append(
            [
                f"`{unit['name']}`",
                "x".join(map(str, unit["map"])),
                f"{unit['larger']} - {unit['smaller']}",
                *(f"{value:+.3f}" for value in unit["difference"]),
                f"{unit['shift']:+.3f} [{low:+.3f}, {high:+.3f}]",
                direction(unit),
            ]
        )
    table = markdown_table(head, rows, "lll" + "r" * (len(scales) + 1) + "l")
    over = f"{summary['runs']} networks" if summary["interval_over"] == "runs" else "the images of this one network"
    return f"{table}\n\nShift: from scale {scales[0]:g} to {scales[-1]:g}; intervals over {over}.\n"


def direction(unit: Mapping[str, Any]) -> str:
    """``larger`` or ``smaller`` kernel when the shift's interval leaves out zero, else ``not shown``.

    Of kernels of one extent none is larger: ``last`` or ``first`` then.
    """
    low, high = unit["shift_ci95"]
    names = ("first", "last") if same_extent(unit) else ("smaller", "larger")
    return names[1] if low > 0 else names[0] if high < 0 else "not shown"


def same_extent(unit: Mapping[str, Any]) -> bool:
    """Whether the unit's two kernels cover windows of the same size."""
    return Kernel.parse(unit["smaller"]).extent == Kernel.parse(unit["larger"]).extent
