"""Draw a summary of attention against object scale like Figure 3 c of Li et al."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sk.files import atomic_write
from recipes.experiments.attention_summary import direction, same_extent


def plot(summary: Mapping[str, Any], path: str | Path, *, title: str) -> None:
    """Draw the attention of every unit at every scale, and below it its shift with the interval, as PNG."""
    from matplotlib.figure import Figure

    units, scales = summary["units"], summary["scales"]
    pair = "last - first" if all(map(same_extent, units)) else "largest - smallest"
    figure = Figure(figsize=(12, 7), layout="constrained")
    attention, shift = figure.subplots(2, 1, sharex=True)
    for place, scale in enumerate(scales):
        attention.plot([unit["difference"][place] for unit in units], marker="o", label=f"scale {scale:g}")
    networks = f"{summary['runs']} networks" if summary["runs"] > 1 else "one network"
    attention.set_title(f"{title}\nmean over {networks}, {summary['images']} images and all channels", fontsize=11)
    attention.set_ylabel(f"attention,\n{pair} kernel")
    attention.legend(ncols=len(scales))
    for place, unit in enumerate(units):
        low, high = unit["shift_ci95"]
        colour = "grey" if direction(unit) == "not shown" else "C3"
        error = [[unit["shift"] - low], [high - unit["shift"]]]
        shift.errorbar(place, unit["shift"], yerr=error, fmt="o", color=colour, capsize=3)
    shift.set_ylabel(f"shift from scale {scales[0]:g} to {scales[-1]:g},\n95 % CI over {summary['interval_over']}")
    labels = [f"{unit['name']}\n{unit['map'][0]}x{unit['map'][1]}" for unit in units]
    shift.set_xticks(range(len(units)), labels, rotation=45, ha="right", fontsize=8)
    for axes in (attention, shift):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
