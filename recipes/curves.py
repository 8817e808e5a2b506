"""The curves of a training run, drawn for ``train.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sk.files import atomic_write
from edge_sk.training.run import COLUMNS, Row

CURVES = "curves.png"


def plot_curves(folder: Path, history: Sequence[Row], *, title: str) -> None:
    """Draw ``curves.png``: loss, top-1 and learning rate against the epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, rate = figure.subplots(1, 3)
    columns = {name: [row[name] for row in history] for name in COLUMNS}
    style: Any = {"data": columns, "marker": "o" if len(history) == 1 else ""}
    loss.plot("epoch", "train_loss", label="train", **style)
    loss.plot("epoch", "test_loss", label="test", **style)
    accuracy.plot("epoch", "test_top1", color="tab:orange", **style)
    rate.plot("epoch", "lr", color="tab:green", **style)
    # The first epochs of a batch-normed network can test a thousand times worse than the rest.
    loss.set_yscale("log")
    loss.legend()
    accuracy.annotate(
        f"{history[-1]['test_top1']:.2f} %",
        (history[-1]["epoch"], history[-1]["test_top1"]),
        xytext=(-4, -14),
        textcoords="offset points",
        horizontalalignment="right",
    )
    for axes, label in ((loss, "loss"), (accuracy, "test top-1 (%)"), (rate, "learning rate")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    with atomic_write(folder / CURVES) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
