"""The curves of a training run, drawn for ``train.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_sk.files import atomic_write
from edge_sk.training.run import Row

CURVES = "curves.png"


def plot_curves(folder: Path, history: Sequence[Row], *, title: str) -> None:
    """Draw ``curves.png``: loss, top-1 and learning rate against the epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, rate = figure.subplots(1, 3)
    evaluated = [row for row in history if "val_top1" in row]
    for axes, name, rows, color in (
        (loss, "train_loss", history, "tab:blue"),
        (loss, "val_loss", evaluated, "tab:orange"),
        (accuracy, "val_top1", evaluated, "tab:orange"),
        (rate, "lr", history, "tab:green"),
    ):
        marker, label = "o" if len(rows) == 1 else "", name.removesuffix("_loss")
        axes.plot([row["epoch"] for row in rows], [row[name] for row in rows], marker=marker, label=label, color=color)
    # The first epochs of a batch-normed network can test a thousand times worse than the rest.
    loss.set_yscale("log")
    loss.legend()
    for row in evaluated[-1:]:
        accuracy.annotate(
            f"{row['val_top1']:.2f} %",
            (row["epoch"], row["val_top1"]),
            xytext=(-4, -14),
            textcoords="offset points",
            horizontalalignment="right",
        )
    for axes, label in ((loss, "loss"), (accuracy, "val top-1 (%)"), (rate, "learning rate")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    with atomic_write(folder / CURVES) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
