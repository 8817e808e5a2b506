"""What a training run reports: on stderr a bar, or lines where it is no terminal; TensorBoard, Weights & Biases."""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import Progress

from edge_sk.errors import require
from edge_sk.training.loop import Report, State, Trainer
from edge_sk.training.run import Row


@contextlib.contextmanager
def progress(trainer: Trainer) -> Iterator[Report]:
    """Open what the trainer's recipe asks for, and close it in the end; the main process alone reports."""
    if not trainer.world.is_main:
        yield Report()
        return
    with contextlib.ExitStack() as stack:
        yield _Progress(trainer, stack)


class _Progress(Report):
    def __init__(self, trainer: Trainer, stack: contextlib.ExitStack) -> None:
        self._board: Any = None
        self._wandb: Any = None
        log, folder, name = trainer.recipe.log, str(trainer.folder), trainer.title
        if log.tensorboard:
            module = require("torch.utils.tensorboard", extra="tensorboard", needed_for="log.tensorboard=true")
            # Rows after the step resumed from were lost with their checkpoint: TensorBoard hides them.
            self._board = module.SummaryWriter(f"{folder}/tensorboard", purge_step=trainer.state.step)
            stack.callback(self._board.close)
        if log.wandb:
            module = require("wandb", extra="wandb", needed_for="log.wandb=true")
            config: dict[str, Any] = {"config": trainer.identity, "dir": folder}
            self._wandb = module.init(project="edge_sk", name=name, id=name, resume="allow", **config)
            stack.callback(self._wandb.finish)
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._bar = Progress(console=self._console, disable=not self._console.is_terminal, transient=True)
        stack.enter_context(self._bar)
        self._epochs, self._per_epoch = trainer.recipe.schedule.epochs, trainer.feed.steps_per_epoch
        self._steps = self._epochs * self._per_epoch
        self._task = self._bar.add_task("", total=self._steps)
        self._every, self._shown_at = log.every_seconds, time.monotonic()

    def step(self, state: State, *, lr: float) -> None:
        """Move the bar; where there is none, print a line if it is time."""
        epoch = (state.step - 1) // self._per_epoch + 1
        rate, wait = state.rates
        loss = state.loss_sum / state.loss_steps
        text = f"epoch {epoch}/{self._epochs}  loss {loss:.3f}  lr {lr:.2g}  {rate:.0f} images/s  data wait {wait:.0%}"
        self._bar.update(self._task, completed=state.step, description=text)
        if self._bar.disable and time.monotonic() - self._shown_at >= self._every:
            self._shown_at = time.monotonic()
            left = (state.seconds + state.epoch_seconds) / state.step * (self._steps - state.step)
            time_left = datetime.timedelta(seconds=round(left))
            self.say(f"step {state.step:,}/{self._steps:,}  {text}  training time left {time_left}")

    def epoch(self, row: Row) -> None:
        """Print a line, and send the row to where the recipe asks for it."""
        width = len(str(self._epochs))
        result = "not evaluated"
        if "val_loss" in row:
            result = f"val loss {row['val_loss']:.3f}  top-1 {row['val_top1']:5.2f} %"
        self.say(
            f"epoch {row['epoch']:{width}}/{self._epochs}  train loss {row['train_loss']:.3f}  {result}  "
            f"lr {row['lr']:.2g}  {row['images_per_second']:.0f} images/s  data wait {row['data_wait']:.0%}"
        )
        values = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name.replace("_", "/", 1), value, row["step"])
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log(values, step=int(row["step"]))

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._console.print(message, markup=False)
