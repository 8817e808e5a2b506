"""The training loop."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from edge_sk.errors import InputError
from edge_sk.training import snapshot
from edge_sk.training.checkpoint import save_weights
from edge_sk.training.data import Batch
from edge_sk.training.distributed import World, synchronize_batch_norm
from edge_sk.training.evaluation import Metrics, Normalizer, evaluate
from edge_sk.training.feed import Feed
from edge_sk.training.metrics import Reporters, Row, plot_curves, write_csv
from edge_sk.training.optimization import make_optimizer, make_scheduler
from edge_sk.training.progress import Reporter
from edge_sk.training.randomness import seed_everything
from edge_sk.training.recipe import Recipe
from edge_sk.training.stopping import StopRequest

# Reading a loss waits for the GPU; on the CPU it is free.
STEPS_BETWEEN_CHECKS = {"cpu": 1, "cuda": 10, "mps": 10}

# Above this share of the time spent waiting for data, the loader is what limits the run.
SLOW_LOADER = 0.3


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    metrics: Metrics | None
    """The last epoch's; ``None`` when the run was stopped before its end."""
    step: int
    signal: int | None = None
    """The signal that stopped it."""


class Trainer:
    """Trains one model by one recipe into one run folder.

    The state of a run is its step, weights, optimizer, moving average, loss scaler and history. All
    randomness is a function of seed, epoch, step and sample (``randomness.py``), so that this state at any
    step is enough to continue as if nothing had happened.

    Args:
        model: The network, on the CPU; it is moved and trained in place.
        recipe: The recipe.
        feed: The data.
        folder: The run folder, which exists.
        world: The processes.
        mean: Of inputs in [0, 1], per channel.
        std: Of inputs in [0, 1], per channel.
        identity: What a checkpoint must agree with to be resumed here: ``seed``, architecture, recipe, ...
        title: Name of the run on its curves.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        feed: Feed,
        *,
        folder: Path,
        world: World,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        identity: dict[str, Any],
        title: str,
    ) -> None:
        self.recipe, self.feed, self.folder, self.world = recipe, feed, folder, world
        self.identity, self.title = identity, title
        runtime = recipe.runtime
        if runtime.sync_bn and world.size > 1:
            model = synchronize_batch_norm(model, world.device)
        model = model.to(world.device)
        if runtime.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        self.optimizer = make_optimizer(model, recipe.optim)
        self.scheduler = make_scheduler(self.optimizer, recipe.schedule, steps_per_epoch=feed.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=runtime.precision == "fp16")
        self.ema = (
            ModelEmaV3(model, decay=recipe.ema.decay, use_warmup=recipe.ema.warmup) if recipe.ema.enabled else None
        )
        self.mixup = _make_mixup(recipe, feed.num_classes)
        self.normalizer = Normalizer(mean, std, world.device)
        self._forward = self._wrap(model)

        self.step = 0
        self.history: list[Row] = []
        self.total_steps = recipe.schedule.epochs * feed.steps_per_epoch
        self._unreadable: set[str] = set()
        self._loss_sum, self._loss_steps = 0.0, 0
        self._pending_losses: list[Tensor] = []
        self._seconds = 0.0
        self._saved_step: int | None = None
        self._saved_rows = 0
        self._saved_at = time.monotonic()
        self._clock = _Clock()
        self._warned_loader = False

    def resume(self) -> str | None:
        """Continue from the folder's newest whole checkpoint, if there is one.

        Returns:
            A warning, when a newer checkpoint was damaged.

        Raises:
            InputError: The checkpoint is of another architecture, recipe, data set or seed, or none is whole.
        """
        loaded = snapshot.load_snapshot(self.folder)
        if loaded is None:
            return None
        state = loaded.state
        for key, value in self.identity.items():
            saved = state["identity"].get(key)
            if saved != value:
                raise InputError(
                    f"{self.folder} was trained with {key} {saved!r}, not {value!r}; "
                    "resume with the same, or start a new run with another --output"
                )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.step = self._saved_step = state["step"]
        self.history = state["history"]
        self._saved_rows = len(self.history)
        self._loss_sum, self._loss_steps = state["loss_sum"], state["loss_steps"]
        self._unreadable = set(state["unreadable"])
        self._seconds = state["seconds"]
        self._clock.seconds, self._clock.waited = state["epoch_seconds"], state["epoch_waited"]
        self._clock.images = state["epoch_images"]
        return loaded.warning

    def run(self) -> Outcome:
        """Train to the end, or to a stop signal; either way the run folder can be evaluated and resumed.

        Raises:
            InputError: The loss is not finite, or too many images cannot be read; the last good checkpoint
                stays.
        """
        schedule, per_epoch = self.recipe.schedule, self.feed.steps_per_epoch
        reporter = Reporter(epochs=schedule.epochs, steps_per_epoch=per_epoch, silent=not self.world.is_main)
        boards = self._open_boards()
        with StopRequest() as stop, reporter, contextlib.closing(boards) if boards else contextlib.nullcontext():
            stopped = None
            while True:
                finished_epochs = self.step // per_epoch
                if finished_epochs > len(self.history):
                    self._end_epoch(reporter, boards, stop)
                if self.step >= self.total_steps:
                    break
                stopped = self._train_epoch(reporter, stop)
                if stopped is not None:
                    break
        if self.world.is_main:
            self._save()
            save_weights(self.folder, self.evaluated_model.state_dict())
            if self.history:
                write_csv(self.folder, self.history)
                plot_curves(self.folder, self.history, title=self.title)
        if stopped is not None:
            return Outcome(None, self.step, signal=stopped)
        last = self.history[-1]
        metrics = Metrics(
            top1=last["test_top1"],
            top5=last["test_top5"],
            loss=last["test_loss"],
            images=int(last["test_images"]),
        )
        return Outcome(metrics, self.step)

    @property
    def evaluated_model(self) -> nn.Module:
        """The network whose accuracy counts: the moving average if the recipe keeps one."""
        return self.model if self.ema is None else self.ema.module

    def _wrap(self, model: nn.Module) -> nn.Module:
        if self.world.size > 1:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            model = DistributedDataParallel(model, device_ids=ids)
        if self.recipe.runtime.compile:
            model = torch.compile(model)  # type: ignore[assignment]
        return model

    def _open_boards(self) -> Reporters | None:
        if not self.world.is_main:
            return None
        return Reporters(self.recipe.log, self.folder, name=self.title, config=self.identity, step=self.step)

    def _train_epoch(self, reporter: Reporter, stop: StopRequest) -> int | None:
        """Train to the end of the epoch; returns the signal that stopped it before."""
        epoch, first = divmod(self.step, self.feed.steps_per_epoch)
        every = STEPS_BETWEEN_CHECKS.get(self.world.device.type, 1)
        self._clock.start()
        batches = self.feed.training(epoch, first)
        for step_in_epoch in range(first, self.feed.steps_per_epoch):
            self._train_step(batches, reporter)
            last = step_in_epoch + 1 == self.feed.steps_per_epoch
            if last or self.step % every == 0:
                stopped = self._check(reporter, stop)
                if stopped is not None:
                    self._clock.pause()
                    return stopped
        self._clock.pause()
        return None

    def _train_step(self, batches: Iterator[Batch], reporter: Reporter) -> None:
        """One optimizer step over ``accumulation`` parts."""
        parts = self.recipe.data.accumulation
        self.scheduler.step_update(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss_of_step = torch.zeros((), device=self.world.device)
        for part in range(parts):
            with self._clock.waiting():
                batch = next(batches)
            self._note_unreadable(batch, reporter)
            # Dropout, drop path and mixup: a function of the step, so that nothing needs to be saved.
            seed_everything(self.identity["seed"], "step", self.step, part, self.world.rank)
            sync_now = part + 1 == parts or not isinstance(self._forward, DistributedDataParallel)
            with contextlib.nullcontext() if sync_now else self._forward.no_sync():  # type: ignore[operator]
                loss = self._loss(batch) / parts
                self.scaler.scale(loss).backward()
            loss_of_step += loss.detach()
            self._clock.images += len(batch.labels) * self.world.size
        if self.recipe.optim.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.step)
        self._pending_losses.append(loss_of_step)

    def _loss(self, batch: Batch) -> Tensor:
        images = self.normalizer(batch.images)
        target = batch.labels.to(self.world.device, non_blocking=True)
        if self.mixup is not None:
            images, target = self.mixup(images, target)
        if self.recipe.runtime.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            logits = self._forward(images)
        # Mixed targets are smoothed already.
        smoothing = 0.0 if self.mixup is not None else self.recipe.loss.label_smoothing
        return F.cross_entropy(logits.float(), target, label_smoothing=smoothing)

    def _autocast(self) -> contextlib.AbstractContextManager:
        precision = self.recipe.runtime.precision
        if precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        return torch.autocast(self.world.device.type, dtype=dtype)

    def _check(self, reporter: Reporter, stop: StopRequest) -> int | None:
        """Agree with the other processes on losses and stopping, save if it is time; returns a stop signal."""
        wants_stop = torch.tensor([float(stop.signal is not None)], device=self.world.device)
        losses = torch.stack(self._pending_losses)
        *sums, signalled = self.world.sum(torch.cat([losses, wants_stop])).tolist()
        self._pending_losses.clear()
        for offset, loss_sum in enumerate(sums):
            loss = loss_sum / self.world.size
            if not math.isfinite(loss):
                self._refuse(f"the loss is {loss} at step {self.step - len(sums) + offset + 1}")
            self._loss_sum += loss
            self._loss_steps += 1
        rate, wait = self._clock.rates()
        lr = self.optimizer.param_groups[0]["lr"]
        reporter.step(self.step, loss=self._loss_sum / self._loss_steps, lr=lr, images_per_second=rate, data_wait=wait)
        minutes = (time.monotonic() - self._saved_at) / 60
        if self.world.is_main and minutes >= self.recipe.checkpoint.every_minutes:
            self._save()
        # The sum is the same in every process: one signalled process stops all.
        return (stop.signal or signal.SIGTERM) if signalled else None

    def _refuse(self, problem: str) -> None:
        kept = (
            "no checkpoint had been written yet"
            if self._saved_step is None
            else f"the checkpoint of step {self._saved_step} in {self.folder} is good"
        )
        epoch = (self.step - 1) // self.feed.steps_per_epoch + 1
        raise InputError(
            f"{problem} (epoch {epoch}): stopped; {kept}. Lower optim.lr, or set optim.clip_grad_norm or "
            "schedule.warmup_epochs"
        )

    def _note_unreadable(self, batch: Batch, reporter: Reporter) -> None:
        for name in batch.unreadable:
            if name in self._unreadable:
                continue
            self._unreadable.add(name)
            reporter.say(f"warning: skipped an image that cannot be read: {name}")
            limit = self.recipe.data.max_unreadable
            if len(self._unreadable) > limit:
                raise InputError(
                    f"{len(self._unreadable)} images cannot be read, data.max_unreadable allows {limit}; the last: "
                    f"{name}. Repair or remove them, or raise the limit"
                )

    def _end_epoch(self, reporter: Reporter, boards: Reporters | None, stop: StopRequest) -> None:
        """Evaluate and record the epoch that just ended."""
        for module in filter(None, (self.model, self.ema)):
            self.world.broadcast_buffers(module)

        def save_before_a_kill(_: int) -> None:
            # Evaluation may outlast the notice a preempted machine gives; the stop itself waits for its end.
            if stop.signal is not None and self.world.is_main and self._saved_step != self.step:
                self._save()

        metrics = evaluate(
            self.evaluated_model,
            self.feed.test(),
            self.normalizer,
            self.world,
            autocast=self._autocast(),
            channels_last=self.recipe.runtime.channels_last,
            after_batch=save_before_a_kill,
        )
        self._note_unreadable(Batch(torch.empty(0), torch.empty(0), unreadable=metrics.unreadable), reporter)
        rate, wait = self._clock.rates()
        self._seconds += self._clock.seconds
        row: Row = {
            "epoch": self.step // self.feed.steps_per_epoch,
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": self._loss_sum / max(1, self._loss_steps),
            "test_loss": metrics.loss,
            "test_top1": metrics.top1,
            "test_top5": metrics.top5,
            "test_images": metrics.images,
            "images_per_second": rate,
            "data_wait": wait,
            "seconds": self._seconds,
        }
        self.history.append(row)
        self._loss_sum, self._loss_steps = 0.0, 0
        self._clock = _Clock()
        reporter.epoch(row)
        if wait > SLOW_LOADER and not self._warned_loader:
            self._warned_loader = True
            reporter.say(
                f"warning: {wait:.0%} of the training time went into waiting for the loader; "
                "raise --workers, or store smaller images"
            )
        if self.world.is_main:
            # The last epoch's row tells that the run is finished: run() writes it behind the weights.
            if self.step < self.total_steps:
                write_csv(self.folder, self.history)
            if boards is not None:
                boards.log(row)

    def _save(self) -> None:
        """Write ``checkpoint.pt`` unless this step is saved already; refuse to save weights that are not finite."""
        if self._saved_step == self.step and self._saved_rows == len(self.history):
            return
        for name, tensor in self.model.state_dict().items():
            if not torch.isfinite(tensor).all():
                self._refuse(f"{name} is not finite after step {self.step}")
        snapshot.save_snapshot(
            self.folder,
            {
                "identity": self.identity,
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "ema": None if self.ema is None else self.ema.module.state_dict(),
                "history": self.history,
                "loss_sum": self._loss_sum,
                "loss_steps": self._loss_steps,
                "unreadable": sorted(self._unreadable),
                "seconds": self._seconds,
                "epoch_seconds": self._clock.seconds,
                "epoch_waited": self._clock.waited,
                "epoch_images": self._clock.images,
            },
        )
        self._saved_step, self._saved_rows = self.step, len(self.history)
        self._saved_at = time.monotonic()


class _Clock:
    """Time of an epoch's training: in all, and of it waiting for data."""

    def __init__(self) -> None:
        self.seconds, self.waited, self.images = 0.0, 0.0, 0
        self._mark: float | None = None

    def start(self) -> None:
        self._mark = time.perf_counter()

    def pause(self) -> None:
        self._tick()
        self._mark = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def rates(self) -> tuple[float, float]:
        """Images per second and the fraction of time spent waiting."""
        self._tick()
        seconds = max(self.seconds, 1e-9)
        return self.images / seconds, self.waited / seconds

    def _tick(self) -> None:
        if self._mark is not None:
            now = time.perf_counter()
            self.seconds += now - self._mark
            self._mark = now


def _make_mixup(recipe: Recipe, num_classes: int) -> Mixup | None:
    augment = recipe.augment
    if not augment.mixup and not augment.cutmix:
        return None
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        label_smoothing=recipe.loss.label_smoothing,
        num_classes=num_classes,
    )
