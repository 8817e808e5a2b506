"""Draw a summary of attention against object scale like Figures 3 and 4 of Li et al."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_sk.files import atomic_write
from recipes.experiments.attention_summary import direction, same_extent


def plot(summary: Mapping[str, Any], path: str | Path, *, title: str) -> None:
    """Draw a summary as PNG.

    From above: the attention of every unit (Figure 3 c), its shift with the interval, and for the first unit of every
    map size the attention per class (Figure 4) and, of the first network, per channel (Figure 3 a, b).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    units, scales, classes = summary["units"], summary["scales"], summary["classes"]
    position = {unit["name"]: place for place, unit in enumerate(units)}
    chosen = [units[position[group["units"][0]]] for group in summary["by_map"]]
    names = _short_names([unit["name"] for unit in units])
    labels = [f"{name}\n{unit['map'][0]}x{unit['map'][1]}" for name, unit in zip(names, units, strict=True)]
    pair = "last - first" if all(map(same_extent, units)) else "largest - smallest"
    colours = [f"C{place}" for place in range(len(scales))]
    figure = Figure(figsize=(13, 13), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(3, 1, height_ratios=(2.2, 1, 1))  # the stub knows a single one only
    top, middle, bottom = parts

    attention_axes, shift_axes = top.subplots(2, 1, sharex=True)
    depth = range(len(units))
    for place, scale in enumerate(scales):
        values = [unit["difference"][place] for unit in units]
        attention_axes.plot(depth, values, marker="o", color=colours[place], label=f"scale {scale:g}")
    networks = f"{summary['runs']} networks" if summary["runs"] > 1 else "one network"
    attention_axes.set_title(f"{title}\nmean over {networks}, {summary['images']} images and all channels", fontsize=11)
    attention_axes.set_ylabel(f"attention,\n{pair} kernel")
    attention_axes.legend(ncols=len(scales))
    for place, unit in enumerate(units):
        low, high = unit["shift_ci95"]
        colour = "grey" if direction(unit) == "not shown" else "C3"
        error = [[unit["shift"] - low], [high - unit["shift"]]]
        shift_axes.errorbar(place, unit["shift"], yerr=error, fmt="o", color=colour, capsize=3)
    shift_axes.set_ylabel(f"shift from scale {scales[0]:g} to {scales[-1]:g},\n95 % CI over {summary['interval_over']}")
    shift_axes.set_xticks(depth, labels, fontsize=9 if len(units) < 15 else 7.5)
    for axes in (attention_axes, shift_axes):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.grid(alpha=0.3)
        for place in range(1, len(units)):
            if units[place]["map"] != units[place - 1]["map"]:
                axes.axvline(place - 0.5, color="grey", linestyle=":")

    many = len(classes) > 20
    for axes, unit in zip(middle.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        for place, of_scale in enumerate(unit["by_class"]):
            values = [math.nan if value is None else value for value in of_scale]
            axes.plot(values, "-" if many else "o", color=colours[place], linewidth=0.8)
        axes.axhline(0, color="black", linewidth=0.8)
        if not many:
            axes.set_xticks(range(len(classes)), classes)
        axes.set_xlabel("class")
        axes.set_title(_heading(unit, names[position[unit["name"]]]), fontsize=10)
    middle.supylabel(f"attention, {pair}", fontsize=10)

    for axes, unit in zip(bottom.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        by_scale = unit["larger_by_channel"]
        order = sorted(range(len(by_scale[0])), key=by_scale[0].__getitem__)
        for place in reversed(range(len(by_scale))):
            values = [by_scale[place][channel] for channel in order]
            axes.plot(values, "-" if place == 0 else ".", color=colours[place], linewidth=1, markersize=4)
        axes.axhline(1 / unit["branches"], color="black", linewidth=0.8)
        axes.set_xlabel(f"channels of the first network,\nby attention at scale {scales[0]:g}")
        axes.set_title(_heading(unit, names[position[unit["name"]]]), fontsize=10)
    bottom.supylabel(f"attention, {pair.split(' ')[0]}", fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _heading(unit: Mapping[str, Any], name: str) -> str:
    return f"{name}, {unit['map'][0]}x{unit['map'][1]}"


def _short_names(names: Sequence[str]) -> list[str]:
    """Return the names of modules without their common ending."""
    ends = [name.split(".")[::-1] for name in names]
    common = 0
    for same in zip(*ends, strict=False):
        if len(set(same)) > 1 or len(names) == 1:
            break
        common += 1
    return [".".join(end[common:][::-1]) or name for end, name in zip(ends, names, strict=True)]
