"""Summarize attention against object scale over trained networks: the record, its table, and which way it shifted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edge_sk.attention import ScaleAttention
from edge_sk.errors import InputError
from edge_sk.selective_kernel import Kernel
from recipes.experiments.confidence import mean_interval
from recipes.markdown_tables import markdown_table


def summarize(runs: Sequence[ScaleAttention], classes: Sequence[str] | None = None) -> dict[str, Any]:
    """Average over the networks of one architecture, and compute the shift from the first scale to the last.

    The shift has Student's 95 % interval. With at least two runs it is over runs and covers another training. With a
    single run it is over images: it covers that network only, and is too narrow if several images show one object.

    Args:
        runs: One per trained network.
        classes: Names of the classes.

    Returns:
        A JSON-ready mapping: ``scales``, ``runs``, ``images``, ``interval_over``, ``classes``, ``units``, and
        ``by_map``, which groups the units of one map size and pair of kernels. ``by_channel`` and
        ``larger_by_channel`` of a unit are the first run's, because channels of different networks do not correspond.

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
    groups: dict[tuple[Any, ...], list[int]] = {}
    for position, name in enumerate(first.units):
        size, (small, large) = first.maps[position], first.kernels[position]
        groups.setdefault((size, small, large), []).append(position)
        units.append(
            {
                "name": name,
                "map": list(size),
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
    by_map = []
    for (size, small, large), members in groups.items():
        # Size of the shift regardless of its direction, in each network the mean over its units.
        magnitude = (means[:, -1, members] - means[:, 0, members]).abs().mean(1)
        by_map.append(
            {
                "map": list(size),
                "units": [first.units[position] for position in members],
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
    """Return a table with the mean difference per unit and scale, and the shift with its interval."""
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
                *map(_signed, unit["difference"]),
                f"{_signed(unit['shift'])} [{_signed(low)}, {_signed(high)}]",
                direction(unit),
            ]
        )
    table = markdown_table(head, rows, "lll" + "r" * (len(scales) + 1) + "l")
    over = f"{summary['runs']} networks" if summary["interval_over"] == "runs" else "the images of this one network"
    return f"{table}\n\nShift: from scale {scales[0]:g} to {scales[-1]:g}; intervals over {over}.\n"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 3) + 0.0:+.3f}"  # no -0.000


def direction(unit: Mapping[str, Any]) -> str:
    """Return ``larger`` or ``smaller``, the kernel that gained, or ``not shown`` if the interval contains zero.

    An interval that the page shows as zero contains it. Between kernels of equal extent, return ``last`` or ``first``.
    """
    low, high = (round(bound, 3) for bound in unit["shift_ci95"])
    names = ("first", "last") if same_extent(unit) else ("smaller", "larger")
    return names[1] if low > 0 else names[0] if high < 0 else "not shown"


def same_extent(unit: Mapping[str, Any]) -> bool:
    """Whether the unit's two kernels cover windows of the same size."""
    return Kernel.parse(unit["smaller"]).extent == Kernel.parse(unit["larger"]).extent
