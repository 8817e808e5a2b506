"""What a run says while it runs: a bar in a terminal, one line per epoch everywhere, on stderr."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edge_sk.training.metrics import Row


class Reporter:
    """Progress of a run; a silent one for the processes that are not the main one."""

    def __init__(self, *, epochs: int, steps_per_epoch: int, silent: bool) -> None:
        self._console = Console(file=sys.stderr, quiet=silent, highlight=False, soft_wrap=True)
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=silent or not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=epochs * steps_per_epoch, epoch="", status="")

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, step: int, *, loss: float, lr: float, images_per_second: float, data_wait: float) -> None:
        """Move the bar."""
        epoch = min(step // self._steps_per_epoch + 1, self._epochs)
        self._bar.update(
            self._task,
            completed=step,
            epoch=f"{epoch}/{self._epochs}",
            status=f"loss {loss:.3f}  lr {lr:.2g}  {images_per_second:.0f} images/s  data wait {data_wait:.0%}",
        )

    def epoch(self, row: Row) -> None:
        """Print the line of a finished epoch."""
        width = len(str(self._epochs))
        self.say(
            f"epoch {row['epoch']:{width}}/{self._epochs}  train loss {row['train_loss']:.3f}  "
            f"test loss {row['test_loss']:.3f}  top-1 {row['test_top1']:5.2f} %  lr {row['lr']:.2g}  "
            f"{row['images_per_second']:.0f} images/s  data wait {row['data_wait']:.0%}"
        )

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._console.print(message, markup=False)
