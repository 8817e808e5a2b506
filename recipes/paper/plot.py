"""Plot the paper's accuracy against our MACs and parameters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edge_sk.files import atomic_write
from recipes.paper.tables import TABLES, Row, count, number

# Curves of the plot: family, colour, table of the paper, networks.
FAMILIES = (
    ("SKNet", "#c2410c", "S9", ("SKNet-26", "SKNet-50", "SKNet-101")),
    ("SENet", "#0f766e", "2", ("SENet-50", "SENet-101")),
    ("ResNeXt", "#1d4ed8", "2", ("ResNeXt-50", "ResNeXt-101")),
    ("ResNeXt + BAM", "#7c3aed", "2", ("ResNeXt-50 + BAM", "ResNeXt-101 + BAM")),
    ("ResNeXt + CBAM", "#a16207", "2", ("ResNeXt-50 + CBAM", "ResNeXt-101 + CBAM")),
    ("DPN", "#64748b", "S9", ("DPN-68", "DPN-92", "DPN-98")),
    ("DenseNet", "#94a3b8", "S9", tuple(f"DenseNet-{layers} (k = 32)" for layers in (169, 201, 264))),
    ("ResNet", "#475569", "S9", ("ResNet-50", "ResNet-101", "ResNet-152")),
)


def plot(folder: Path) -> list[Path]:
    """Draw the paper's accuracy against our MACs and parameters.

    Returns:
        The files, ``paper_accuracy.png`` and ``.svg`` in ``folder``.
    """
    import matplotlib

    rows = {(table.key, row.name): row for table in TABLES for row in table.rows}
    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#94a3b8",
        "axes.labelcolor": "#0f172a",
        "xtick.color": "#475569",
        "ytick.color": "#475569",
        "svg.hashsalt": "edge-sk",
    }
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11.5, 5.2), dpi=160, facecolor="white", layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, quantity in zip(panels, ("macs", "params"), strict=True):
            for family, colour, key, names in FAMILIES:
                points = [_point(rows[key, name], quantity) for name in names]
                highlight = family == "SKNet"
                thick = {"markersize": 7, "linewidth": 2.6, "zorder": 3}
                thin = {"markersize": 5, "linewidth": 1.2, "zorder": 2}
                look = thick if highlight else thin
                axes.plot(*zip(*points, strict=True), color=colour, marker="o", label=family, **look)
                if highlight:
                    for point, name in zip(points, names, strict=True):
                        place = {"xytext": (-8, 5), "textcoords": "offset points", "ha": "right"}
                        axes.annotate(name, point, **place, color=colour, fontweight="bold")
            axes.set_xlim(left=0)
            axes.set_ylim(75.9, 80.1)
            axes.grid(color="#e2e8f0", linewidth=0.8)
            axes.set_axisbelow(True)
        panels[0].set_xlabel("GMACs, counted by edge_sk")
        panels[1].set_xlabel("parameters, millions, counted by edge_sk")
        panels[0].set_ylabel("ImageNet top-1 accuracy %, as the paper reports it")
        panels[1].legend(loc="lower right", frameon=False, fontsize=9)
        paths = [folder / f"paper_accuracy.{extension}" for extension in ("png", "svg")]
        for path in paths:
            with atomic_write(path) as temporary:
                # Without a date the file stays the same when nothing in it changed.
                metadata = {"Date": None} if path.suffix == ".svg" else None
                figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
    return paths


def _point(row: Row, quantity: str) -> tuple[float, float]:
    ours = count(row)
    return (ours.macs / 1e9 if quantity == "macs" else ours.params / 1e6), 100 - (number(row.errors[0]) or math.nan)
