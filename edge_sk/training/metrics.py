"""The history of a run: ``metrics.csv``, and TensorBoard and Weights & Biases if the recipe asks for them."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError, require
from edge_sk.files import write_text
from edge_sk.training.recipe import LogRecipe

CSV = "metrics.csv"

COLUMNS = (
    "epoch",  # finished epochs
    "step",  # optimizer steps
    "lr",  # of the last step
    "train_loss",  # mean over the epoch, as the loss is trained: smoothed, augmented
    "test_loss",
    "test_top1",  # per cent
    "test_top5",  # per cent
    "test_images",
    "images_per_second",  # training, all processes together
    "data_wait",  # fraction of the training time spent waiting for the loader
    "seconds",  # since the run began, pauses not counted
)

Row = dict[str, float]


def write_csv(folder: Path, history: Sequence[Row]) -> None:
    """Write ``metrics.csv`` whole: after a resume it holds no row of the lost steps."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in history:
        values: Any = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
        writer.writerow(values)
    write_text(folder / CSV, text.getvalue())


def read_csv(folder: str | Path) -> list[Row]:
    """``epoch``, ``test_top1`` and ``seconds`` of every row of ``metrics.csv``; nothing where there is no such file."""
    path = Path(folder) / CSV
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8") as file:
            columns = ("epoch", "test_top1", "seconds")
            return [{name: float(row[name]) for name in columns} for row in csv.DictReader(file)]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error})") from None


@contextlib.contextmanager
def boards(
    recipe: LogRecipe, folder: Path, *, name: str, config: dict[str, Any], step: int
) -> Iterator[Callable[[Row], None]]:
    """Open TensorBoard and Weights & Biases where the recipe asks for them; gives a function that reports an epoch."""
    board: Any = None
    wandb: Any = None
    if recipe.tensorboard:
        module = require("torch.utils.tensorboard", extra="train", needed_for="log.tensorboard=true")
        # Rows after the step resumed from were lost with their checkpoint: TensorBoard hides them.
        board = module.SummaryWriter(str(folder / "tensorboard"), purge_step=step)
    if recipe.wandb:
        module = require("wandb", extra="train", needed_for="log.wandb=true")
        wandb = module.init(project="edge_sk", name=name, id=name, dir=str(folder), config=config, resume="allow")

    def log(row: Row) -> None:
        values = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        if board is not None:
            for name, value in values.items():
                board.add_scalar(name.replace("_", "/", 1), value, row["step"])
            board.flush()
        if wandb is not None:
            wandb.log(values, step=int(row["step"]))

    try:
        yield log
    finally:
        if board is not None:
            board.close()
        if wandb is not None:
            wandb.finish()
