"""The training loop: epochs of steps, and the signals that stop them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import BinaryCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edge_sk.errors import InputError
from edge_sk.training.activations import keep_outputs
from edge_sk.training.data import Batch
from edge_sk.training.distributed import World
from edge_sk.training.evaluation import autocast, evaluate
from edge_sk.training.optimization import make_optimizer, make_scheduler
from edge_sk.training.randomness import seed_everything
from edge_sk.training.recipe import REMEDIES, Recipe, settings
from edge_sk.training.run import (
    BEST,
    Row,
    RunConfig,
    load_checkpoint,
    note_divergence,
    save_checkpoint,
    save_weights,
    saved_manifest,
    todays_row,
    write_csv,
)
from edge_sk.training.threads import Threads, fixed
from edge_sk.training.transforms import Normalizer

STEPS_BETWEEN_CHECKS = 10  # on a GPU, where reading a loss waits for the steps; on a CPU every step is checked
TRIAL_IMAGES = 64  # at most, of a step that is timed to choose the number of threads
SLOW_LOADER = 0.3  # warn where more of the time than this is spent waiting for data


@dataclass(frozen=True)
class Feed:
    """What a run reads, for one process of several."""

    steps_per_epoch: int
    training: Callable[[int, int], Iterator[Batch]]  # of an epoch from a step on, ``accumulation`` batches for a step
    test: Iterable[Batch]


@dataclass
class State:
    """How far a run has come; with the tensors of model and optimizer this is its checkpoint."""

    step: int = 0
    history: list[Row] = field(default_factory=list)  # a row per epoch
    unreadable: list[str] = field(default_factory=list)  # images
    threads: int | None = None  # of the CPU; None: nothing chose them
    seconds: float = 0.0  # training time of the finished epochs
    # Of the epoch under way:
    loss_sum: float = 0.0
    loss_steps: int = 0
    epoch_seconds: float = 0.0
    epoch_waited: float = 0.0
    epoch_images: int = 0

    @property
    def rates(self) -> tuple[float, float]:
        """Images per second, and the fraction of the time spent waiting for the loader, in the epoch under way."""
        seconds = max(self.epoch_seconds, 1e-9)
        return self.epoch_images / seconds, self.epoch_waited / seconds


class Report:
    """What a run reports while it trains. This one ignores all; ``recipes/progress.py`` has another."""

    def step(self, state: State, *, lr: float) -> None:
        """Called after every few steps."""

    def epoch(self, row: Row) -> None:
        """Called after an epoch was trained and, where it is its turn, evaluated."""

    def say(self, message: str) -> None:
        """Called with a warning or a note."""


class Trainer:
    """Trains one model by one recipe into one run folder.

    All randomness is a function of seed, epoch, step and sample (``randomness.py``): the tensors and the ``State`` of
    any step are enough to continue exactly. The model comes on the CPU; it is moved and trained in place. A checkpoint
    is resumed only if its ``identity`` (seed, architecture, recipe, ...) is this one. A ``teacher``, on the CPU too,
    has the model's classes, and says in its ``pretrained_cfg`` how its images are normalised.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        feed: Feed,
        *,
        folder: Path,
        config: RunConfig,
        world: World,
        identity: dict[str, Any],
        teacher: nn.Module | None = None,
    ) -> None:
        self.recipe, self.feed, self.folder, self.world, self.identity = recipe, feed, folder, world, identity
        self.title = f"{config.arch} {config.recipe} seed {identity['seed']}"
        runtime, augment, ema = recipe.runtime, recipe.augment, recipe.ema
        if runtime.sync_bn and world.size > 1:
            from timm.layers import convert_sync_batchnorm

            model = convert_sync_batchnorm(model)
        self.model = model = keep_outputs(model).to(world.device)
        if runtime.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(model, recipe.optim)
        self.scheduler = make_scheduler(self.optimizer, recipe.schedule, steps_per_epoch=feed.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=runtime.precision == "fp16")
        # The ranges of int8 are averages already, and infinite before the first step.
        average = {"decay": ema.decay, "use_warmup": ema.warmup, "exclude_buffers": recipe.quantization.qat}
        self.ema = ModelEmaV3(model, **average) if ema.enabled else None
        self._threads: Threads | None = None
        self._input_size = config.input_size
        self._trial_images = min(TRIAL_IMAGES, recipe.data.batch_size // recipe.data.accumulation)
        self.normalizer = Normalizer(config, world.device, channels_last=runtime.channels_last)
        smoothing = recipe.loss.label_smoothing
        self.mixup = None
        if augment.mixup or augment.cutmix:
            # Mixup smooths the targets.
            self.mixup = Mixup(augment.mixup, augment.cutmix, label_smoothing=smoothing, num_classes=config.num_classes)
            smoothing = 0.0
        self._erase: Any = nn.Identity()
        if augment.erasing:
            self._erase = RandomErasing(augment.erasing, mode="pixel", device=str(world.device))
        self._criterion: nn.Module = nn.CrossEntropyLoss(label_smoothing=smoothing)
        if recipe.loss.name == "bce":
            self._criterion = BinaryCrossEntropy(smoothing, recipe.loss.bce_threshold)
        self._forward: nn.Module = torch.compile(model) if runtime.compile else model  # type: ignore[assignment]
        if world.size > 1:
            ids = [world.device.index] if world.device.type == "cuda" else None
            self._forward = DistributedDataParallel(self._forward, device_ids=ids)
        self._distill = None
        if teacher is not None:
            from timm.task import DistillationTeacher, LogitDistillationTask

            self._distill = LogitDistillationTask(
                self._forward,
                DistillationTeacher(teacher.to(world.device), device=world.device),
                self._criterion,
                task_loss_weight=1 - recipe.distill.weight,
                temperature=recipe.distill.temperature,
                device=world.device,
                verbose=False,
            )
        self._parts: dict[str, Any] = {"model": model, "optimizer": self.optimizer, "scaler": self.scaler}
        self._parts |= {"ema": self.ema.module} if self.ema else {}
        # The network whose accuracy counts.
        self.evaluated_model: nn.Module = self._parts.get("ema", model)
        self._chance = math.log(config.num_classes)  # the loss of a guess
        self.state = State()
        self._saved: tuple[int, int] | None = None  # step and epochs of the newest checkpoint
        self._saved_at = time.monotonic()

    def resume(self) -> list[str]:
        """Continue from the folder's newest whole checkpoint, if there is one; returns what is special about that.

        A run that diverged behind the checkpoint may have other ``REMEDIES``. An ``InputError`` where the checkpoint is
        of another architecture, recipe, data set or seed, or none is whole.
        """
        saved, damaged = load_checkpoint(self.folder) or (None, None)
        if saved is None:
            return []
        notes = [f"warning: {damaged}; continuing from the one before it"] if damaged else []
        trained = settings(Recipe()) | saved["identity"]  # what an older version had no field for was as by default
        for key, value in self.identity.items():
            if trained.get(key) == value:
                continue
            diverged = saved_manifest(self.folder)["diverged"] if key in REMEDIES else []
            if not diverged or saved["step"] >= diverged[-1]["step"]:
                raise InputError(
                    f"{self.folder} was trained with {key} {trained.get(key)!r}, not {value!r}; "
                    "resume with the same, or start a new run with another --output"
                )
            notes.append(f"{key} is {value} in place of {trained.get(key)} from step {saved['step']} on")
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        self.state = State(**{field.name: saved[field.name] for field in dataclasses.fields(State)})
        self.state.history = [todays_row(row) for row in self.state.history]
        self._saved = self._position()
        return notes

    @property
    def finished(self) -> bool:
        """Whether every epoch is trained and recorded."""
        return len(self.state.history) >= self.recipe.schedule.epochs

    def run(self, report: Report | None = None) -> int | None:
        """Train to the end, or to a stop signal, which is returned; the run folder can then be evaluated and resumed.

        An ``InputError`` where the loss is not finite or too many images cannot be read; the last checkpoint stays.
        """
        epochs, per_epoch, is_main = self.recipe.schedule.epochs, self.feed.steps_per_epoch, self.world.is_main
        self._report = report if report and is_main else Report()
        stopped = None
        alone_on_cpu = self.world.device.type == "cpu" and self.world.size == 1
        with stop_signals() as self._signals:
            if alone_on_cpu and not (fixed() or self.recipe.runtime.compile or self.finished):
                self._report.say("timing a step to choose the number of threads")
                self._threads = Threads(self._trial(self._input_size), self.state.threads)
                self.state.threads = self._threads.count
            while stopped is None:
                if self.state.step // per_epoch > len(self.state.history):
                    self._end_epoch()
                if self.state.step >= epochs * per_epoch:
                    break
                stopped = self._train_epoch()
        if is_main:
            self._save()
            save_weights(self.folder, self.evaluated_model.state_dict())
            write_csv(self.folder, self.state.history)
        return stopped

    def _train_epoch(self) -> int | None:
        """Train to the end of the epoch; returns the signal that stopped it before."""
        per_epoch = self.feed.steps_per_epoch
        epoch, first = divmod(self.state.step, per_epoch)
        every = 1 if self.world.device.type == "cpu" else STEPS_BETWEEN_CHECKS
        self._epoch_began = time.perf_counter() - self.state.epoch_seconds
        batches = self.feed.training(epoch, first)
        losses, stopped = list[Tensor](), None
        for step in range(first + 1, per_epoch + 1):
            began, waited = time.perf_counter(), self.state.epoch_waited
            losses.append(self._train_step(batches))
            self._after_step(time.perf_counter() - began - (self.state.epoch_waited - waited))
            if step == per_epoch or self.state.step % every == 0:
                stopped = self._check(losses)
                losses.clear()
            if stopped is not None:
                break
        return stopped

    def _after_step(self, seconds: float) -> None:
        share = self._trial_images / self.recipe.data.batch_size
        if self._threads is not None and self._threads.after_step(share * seconds):
            self.state.threads = self._threads.count
            self._report.say(
                f"step {self.state.step}: computing with {self._threads.count} threads now, the fastest beside "
                "what else this machine does"
            )

    def _trial(self, input_size: Sequence[int]) -> Callable[[], None]:
        """A step of a copy of the network on at most ``TRIAL_IMAGES`` images, to be timed."""
        model, generator = copy.deepcopy(self.model), torch.Generator().manual_seed(0)
        images = torch.randint(256, (self._trial_images, *input_size), generator=generator, dtype=torch.uint8)

        def step() -> None:
            if self._signals:  # the run is to stop, not to choose
                return
            with autocast(self.world.device, self.recipe.runtime.precision):
                logits = model(self.normalizer(images))
            logits.float().logsumexp(1).sum().backward()

        return step

    def _train_step(self, batches: Iterator[Batch]) -> Tensor:
        """One optimizer step over ``accumulation`` parts; returns its loss."""
        parts = self.recipe.data.accumulation
        self.scheduler.step_update(self.state.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss_of_step = torch.zeros((), device=self.world.device)
        for part in range(parts):
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                raise InputError(
                    f"the training data ended at step {self.state.step}: too many images in a row are damaged"
                )
            self.state.epoch_waited += time.perf_counter() - began
            self._note_unreadable(batch.unreadable)
            # Dropout, drop path and mixup: a function of the step, so that nothing needs to be saved.
            seed_everything(self.identity["seed"], "step", self.state.step, part, self.world.rank)
            sync_now = part + 1 == parts or self.world.size == 1
            with contextlib.nullcontext() if sync_now else self._forward.no_sync():  # type: ignore[operator]
                loss = self._loss(batch) / parts
                self.scaler.scale(loss).backward()
            loss_of_step += loss.detach()
            self.state.epoch_images += len(batch.labels) * self.world.size
        if self.recipe.optim.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.state.step += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.state.step)
        return loss_of_step

    def _loss(self, batch: Batch) -> Tensor:
        images = self._erase(self.normalizer(batch.images))
        target = batch.labels.to(self.world.device, non_blocking=True)
        if self.mixup is not None:
            images, target = self.mixup(images, target)
        with autocast(self.world.device, self.recipe.runtime.precision):
            if self._distill is not None:
                return self._distill(images, target)["loss"]
            logits = self._forward(images)
        return self._criterion(logits.float(), target)

    def _check(self, losses: list[Tensor]) -> int | None:
        """Agree with the other processes on losses and stopping, save if it is time; returns a stop signal."""
        wants_stop = torch.tensor([float(bool(self._signals))], device=self.world.device)
        *sums, signalled = self.world.sum(torch.cat([torch.stack(losses), wants_stop])).tolist()
        for step, loss_sum in enumerate(sums, self.state.step - len(sums) + 1):
            loss = loss_sum / self.world.size
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss} at step {step}")
            self.state.loss_sum += loss
            self.state.loss_steps += 1
        self.state.epoch_seconds = time.perf_counter() - self._epoch_began
        self._report.step(self.state, lr=self._lr)
        minutes = (time.monotonic() - self._saved_at) / 60
        if self.world.is_main and minutes >= self.recipe.checkpoint.every_minutes:
            self._save()
        # The sum is the same in every process: one signalled process stops all.
        return (self._signals or [signal.SIGTERM])[0] if signalled else None

    def _end_epoch(self) -> None:
        """Record the epoch that just ended, evaluated if it is its turn."""
        epoch, epochs = self.state.step // self.feed.steps_per_epoch, self.recipe.schedule.epochs
        state, (rate, wait) = self.state, self.state.rates
        row: Row = {
            "epoch": epoch,
            "step": state.step,
            "lr": self._lr,
            "train_loss": state.loss_sum / max(1, state.loss_steps),
            "images_per_second": rate,
            "data_wait": wait,
            "seconds": state.seconds + state.epoch_seconds,
        }
        if epoch % self.recipe.checkpoint.evaluate_every == 0 or epoch == epochs:
            row |= self._evaluate()
        if wait > SLOW_LOADER and all(earlier["data_wait"] <= SLOW_LOADER for earlier in state.history):
            self._report.say(
                f"warning: {wait:.0%} of the training time went into waiting for the loader; "
                "raise --workers, or store smaller images"
            )
        self.state = State(state.step, [*state.history, row], state.unreadable, state.threads, row["seconds"])
        # run() writes the last epoch's row, after the weights: with it the run counts as finished.
        if self.world.is_main and epoch < epochs:
            write_csv(self.folder, self.state.history)
        self._report.epoch(row)
        losses = [earlier["val_loss"] for earlier in self.state.history if "val_loss" in earlier]
        above = [loss > 1.02 * self._chance for loss in losses]  # two per cent are noise
        if "val_loss" in row and above[-1] and epoch == epochs > 1:
            self._report.say(
                f"warning: the training ends with a validation loss above that of guessing, {self._chance:.3f}: "
                "it learnt nothing, or is sure where it is wrong. Lower optim.lr"
            )
        elif "val_loss" in row and above == [True] * 3:
            self._report.say(
                f"note: three validation losses are above that of guessing, {self._chance:.3f}. At first the running "
                "statistics of batch norms, which the validation uses, lag behind; if it stays so, lower optim.lr"
            )

    def _evaluate(self) -> Row:
        """The columns of the validation; weights that are better than all before are written."""
        for module in filter(None, (self.model, self.ema)):
            self.world.broadcast_buffers(module)

        def save_before_a_kill() -> None:
            # The stop waits for the end of the evaluation, which may come after a preempted machine is gone.
            if self._signals and self.world.is_main:
                self._save()

        precision, model = self.recipe.runtime.precision, self.evaluated_model
        metrics = evaluate(model, self.feed.test, self.normalizer, self.world, precision, save_before_a_kill)
        self._note_unreadable(metrics.unreadable)
        best = max((row["val_top1"] for row in self.state.history if "val_top1" in row), default=-1.0)
        if self.world.is_main and metrics.top1 > best and math.isfinite(metrics.loss):
            save_weights(self.folder, model.state_dict(), BEST)
        return {
            "val_loss": metrics.loss,
            "val_top1": metrics.top1,
            "val_top5": metrics.top5,
            "val_images": metrics.images,
        }

    def _note_unreadable(self, names: Sequence[str]) -> None:
        state, limit = self.state, self.recipe.data.max_unreadable
        for name in sorted(set(names) - set(state.unreadable)):
            state.unreadable.append(name)
            self._report.say(f"warning: skipped an image that cannot be read: {name}")
            if len(state.unreadable) > limit:
                raise InputError(
                    f"{len(state.unreadable)} images cannot be read, data.max_unreadable allows {limit}; the last: "
                    f"{name}. Repair or remove them, or raise the limit"
                )

    def _save(self) -> None:
        """Write ``checkpoint.pt`` unless this step is saved already; refuse to save weights that are not finite."""
        if self._saved == self._position():
            return
        for name, tensor in self.model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise self._diverged(f"{name} is not finite after step {self.state.step}")
        tensors = {name: part.state_dict() for name, part in self._parts.items()}
        save_checkpoint(self.folder, {"identity": self.identity, **tensors, **vars(self.state)})
        self._saved, self._saved_at = self._position(), time.monotonic()

    @property
    def _lr(self) -> float:
        """That of the recipe and its schedule; with ``layer_decay`` the last layers' alone."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def _position(self) -> tuple[int, int]:
        return self.state.step, len(self.state.history)

    def _diverged(self, problem: str) -> InputError:
        kept = "no checkpoint had been written yet"
        if self._saved is not None:
            kept = f"the checkpoint of step {self._saved[0]} in {self.folder} is good"
        epoch = (self.state.step - 1) // self.feed.steps_per_epoch + 1
        if self.world.is_main:
            note_divergence(self.folder, self.state.step, problem)
        return InputError(
            f"{problem} (epoch {epoch}): stopped; {kept}. Continue with --resume and a lower optim.lr, or with "
            "optim.clip_grad_norm or schedule.warmup_epochs (--set optim.lr=...)"
        )


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the signals that ask the run to finish its step, save and end; a second Ctrl-C interrupts at once."""
    received: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not received and os.environ.get("RANK", "0") == "0":
            with contextlib.suppress(OSError):  # not by print, which the signal may have interrupted
                os.write(2, b"\nstopping: the run is saved first; Ctrl-C again ends it at once\n")
        received.append(number)

    # Python lets only the main thread set handlers; elsewhere the program keeps its own.
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT) if is_main}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
