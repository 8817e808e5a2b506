"""What a step minimises, what an epoch records, and what a resumption allows."""

from __future__ import annotations

import copy
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import Tensor
from torch.nn import functional as F

import edge_sk
from edge_sk.errors import InputError
from edge_sk.training import loop, run
from edge_sk.training.data import Batch
from edge_sk.training.distributed import World
from edge_sk.training.evaluation import Metrics
from edge_sk.training.loop import Report, State, Trainer
from edge_sk.training.plan import Plan, start
from edge_sk.training.recipe import make_recipe
from edge_sk.training.run import Row, read_csv, saved_manifest, unfinished
from recipes.progress import progress

ARCH = "shufflenetv2_0.5"
QUICK = (
    "data.batch_size=479",
    "data.input_size=32",
    "schedule.epochs=3",
    "checkpoint.every_minutes=1000",
)  # 3 steps each


def trainer(folder: Path, *settings: str, resume: bool = False, arch: str = ARCH) -> Trainer:
    recipe = make_recipe({}, [*QUICK, *settings])
    return start(Plan(arch, recipe, "digits", "digits", 0, folder, resume), World(torch.device("cpu")))


def batch(size: int = 6) -> Batch:
    labels = torch.arange(size) % 10
    return Batch(torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8), labels, [])


def logits(model: torch.nn.Module, images: Tensor) -> Tensor:
    """Of a copy: batch norms in training count what they see."""
    return copy.deepcopy(model)(images)


def test_erasing_makes_one_rectangle_of_each_image_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    images = batch()
    for chance in (0, 1):
        training = trainer(tmp_path / str(chance), f"augment.erasing={chance}")
        training.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        training._loss(images)
    plain, erased = seen
    assert torch.equal(plain, training.normalizer(images.images))
    for before, after in zip(plain, erased, strict=True):
        changed = (before != after).all(dim=0)
        assert torch.equal(changed, (before != after).any(dim=0))
        rows, columns = (changed.any(dim=axis).sum().item() for axis in (1, 0))
        assert changed.sum().item() == rows * columns
        assert 0.01 < changed.float().mean().item() < 0.37  # rounded sides
        assert after[:, changed].std().item() > 0.5


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_binary_cross_entropy_treats_every_class_alone(tmp_path: Path, threshold: float | None) -> None:
    settings = ["loss.name=bce", "loss.label_smoothing=0.1"]
    training = trainer(tmp_path, *settings, *(["loss.bce_threshold=0.5"] if threshold else []))
    images = batch()
    scores = logits(training.model, training.normalizer(images.images))
    target = F.one_hot(images.labels, 10).float()
    target = target if threshold else 0.9 * target + 0.01
    expected = -(target * scores.sigmoid().log() + (1 - target) * (-scores).sigmoid().log()).mean()
    assert training._loss(images).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers") / "teacher"
    trainer(folder, "schedule.epochs=1", "schedule.warmup_epochs=0").run()
    # Its images were normalised otherwise than the student's.
    config = json.loads((folder / run.CONFIG).read_text()) | {"mean": [0.2] * 3, "std": [0.5] * 3}
    (folder / run.CONFIG).write_text(json.dumps(config))
    return folder


def test_distillation_is_cross_entropy_and_the_divergence_from_the_teacher(tmp_path: Path, teacher: Path) -> None:
    settings = [f"distill.teacher={teacher}", "distill.weight=0.7", "distill.temperature=3"]
    training = trainer(tmp_path, *settings, arch="sk_shufflenetv2_0.5")
    images = batch()
    scores = logits(training.model, training.normalizer(images.images)).log_softmax(1)
    known = run.load_run(teacher).model
    targets = known((images.images.float() / 255 - 0.2) / 0.5).detach()
    soft = (scores / 3).log_softmax(1)
    divergence = ((targets / 3).softmax(1) * ((targets / 3).log_softmax(1) - soft)).sum(1).mean()
    expected = 0.3 * F.nll_loss(scores, images.labels) + 0.7 * 9 * divergence
    before = copy.deepcopy(run.load_run(teacher).model.state_dict())
    loss = training._loss(images)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    assert training._distill is not None
    own: Any = training._distill.teacher.model
    assert all(parameter.grad is None for parameter in own.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())
    assert not own.training
    assert not any("teacher" in name for name in training.model.state_dict())


def test_a_teacher_is_a_run_a_file_or_weights_of_its_arch(tmp_path: Path, teacher: Path) -> None:
    def loaded(*settings: str) -> Tensor:
        training = trainer(tmp_path / str(len(list(tmp_path.iterdir()))), *settings)
        assert training._distill is not None
        known: Any = training._distill.teacher.model
        return known.state_dict()["fc.weight"]

    weights = load_file(teacher / run.WEIGHTS)
    torch.save(weights, bare := tmp_path / "bare.pt")
    edge_sk.register_with_timm()
    timms = timm.create_model("shufflenetv2_050", num_classes=10)
    timms.load_state_dict(weights)
    save_for_hf(timms, tmp_path / "timms", safe_serialization=True)
    for settings in (
        [f"distill.teacher={teacher}"],
        [f"distill.teacher=local-dir:{teacher}"],
        [f"distill.teacher={tmp_path / 'timms'}"],
        [f"distill.teacher={teacher / run.BEST}"],
        [f"distill.teacher={bare}", f"distill.arch={ARCH}"],
    ):
        assert torch.equal(loaded(*settings), weights["fc.weight"])

    def refusal(*settings: str) -> str:
        with pytest.raises(InputError) as raised:
            loaded(*settings)
        return str(raised.value)

    assert "does not say which network it holds: set distill.arch" in refusal(f"distill.teacher={bare}")
    assert "no weights at nowhere" in refusal("distill.teacher=nowhere")
    wrong = refusal(f"distill.teacher={bare}", "distill.arch=shufflenetv2_1.0")
    assert "does not hold the weights of shufflenetv2_1.0" in wrong
    torch.save({name: tensor[:5] if name.startswith("fc.") else tensor for name, tensor in weights.items()}, bare)
    five = refusal(f"distill.teacher={bare}", f"distill.arch={ARCH}")
    assert "fc.weight is (5, 1024) there and (10, 1024) here" in five
    (metrics := teacher / run.CSV).rename(kept := teacher / "kept.csv")
    assert "is not finished (0 of 1 epochs)" in refusal(f"distill.teacher={teacher}")
    kept.rename(metrics)


class Notes(Report):
    """What was said, and the rows."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.rows: list[Row] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def epoch(self, row: Row) -> None:
        self.rows.append(row)


@pytest.fixture
def validate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace the evaluation by given results, ``(top-1, loss)``."""

    def use(*results: tuple[float, float]) -> None:
        left = iter(results)

        def next_metrics(*_: object) -> Metrics:
            top1, loss = next(left)
            return Metrics(top1, 100.0, loss, 360)

        monkeypatch.setattr(loop, "evaluate", next_metrics)

    return use


def test_the_best_weights_are_kept_beside_the_last(tmp_path: Path, validate: Callable[..., None]) -> None:
    validate((50.0, 1.0), (70.0, 1.0), (60.0, 1.0))
    training = trainer(tmp_path)
    states: list[Tensor] = []

    class Watch(Report):
        def epoch(self, row: Row) -> None:
            states.append(training.model.state_dict()["fc.weight"].clone())

    training.run(Watch())
    assert torch.equal(load_file(tmp_path / run.BEST)["fc.weight"], states[1])
    assert torch.equal(load_file(tmp_path / run.WEIGHTS)["fc.weight"], states[2])
    assert run.load_run(tmp_path).model.state_dict()["fc.weight"].equal(states[2])


def test_a_run_is_evaluated_every_few_epochs_and_at_its_end(tmp_path: Path, validate: Callable[..., None]) -> None:
    validate((50.0, 1.0), (60.0, 1.0))
    notes = Notes()
    trainer(tmp_path, "checkpoint.evaluate_every=2").run(notes)
    assert [row.get("val_top1") for row in notes.rows] == [None, 50.0, 60.0]
    history = read_csv(tmp_path)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert [row.get("val_top1") for row in history] == [None, 50.0, 60.0]
    assert unfinished(tmp_path) is None


def test_a_validation_loss_worse_than_a_guess_is_explained(tmp_path: Path, validate: Callable[..., None]) -> None:
    validate((10.0, 40.0), (10.0, 3.0), (10.0, 2.5), (60.0, 1.0))
    notes = Notes()
    trainer(tmp_path / "a", "schedule.epochs=4").run(notes)
    (note,) = notes.said
    assert note.startswith("note: three validation losses are above that of guessing, 2.303")
    validate((10.0, 3.0), (10.0, 3.0), (10.0, 4.0))
    notes = Notes()
    trainer(tmp_path / "c").run(notes)
    assert [message.partition(":")[0] for message in notes.said] == ["warning"]
    validate(*[(50.0, math.log(10) + 0.01)] * 3)
    notes = Notes()
    trainer(tmp_path / "b").run(notes)
    assert not notes.said


def test_a_stop_is_noted_though_nobody_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError  # as of `train ... | head`

    monkeypatch.setattr("os.write", broken)
    with loop.stop_signals() as received:
        signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]


def diverge_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    loss = Trainer._loss

    def diverging(self: Trainer, batch: Batch) -> Tensor:
        return loss(self, batch) * (float("nan") if self.state.step == step else 1)

    monkeypatch.setattr(Trainer, "_loss", diverging)


def test_a_diverged_run_goes_on_with_what_the_message_recommends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validate: Callable[..., None]
) -> None:
    validate(*[(50.0, 1.0)] * 6)
    every = "checkpoint.every_minutes=0"
    remedies = ["optim.lr=0.01", "optim.clip_grad_norm=1", "schedule.warmup_epochs=1"]
    diverge_at(monkeypatch, 4)
    with pytest.raises(InputError, match=r"checkpoint of step 4 .* Continue with --resume and a lower optim.lr"):
        trainer(tmp_path, every).run()
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"was trained with optim.momentum 0.9, not 0.5"):
        trainer(tmp_path, every, *remedies, "optim.momentum=0.5", resume=True)
    validate(*[(50.0, 1.0)] * 6)
    training = trainer(tmp_path, every, *remedies, resume=True)
    assert training.state.step == 4
    training.run()
    # Cosine from the warm-up's end, 3 steps, to the end of the run, 9: the last step is the sixth of six.
    assert training.state.history[-1]["lr"] == pytest.approx(0.01 * (1 + math.cos(math.pi * 5 / 6)) / 2)
    manifest = saved_manifest(tmp_path)
    assert manifest["diverged"] == [{"step": 5, "problem": "the loss is nan at step 5"}]
    assert manifest["resumed"][-1]["notes"] == [
        "optim.lr is 0.01 in place of 0.1 from step 4 on",
        "optim.clip_grad_norm is 1.0 in place of None from step 4 on",
        "schedule.warmup_epochs is 1.0 in place of 0.0 from step 4 on",
    ]
    # Past the place where it diverged, the run is one like any other.
    with pytest.raises(InputError, match=r"was trained with optim.lr 0.01, not 0.1"):
        trainer(tmp_path, every, *remedies[1:], resume=True)


def test_runs_of_older_versions_are_read_and_resumed(tmp_path: Path, validate: Callable[..., None]) -> None:
    validate(*[(50.0, 1.0)] * 3)
    trainer(tmp_path).run()
    state: dict[str, Any] = torch.load(tmp_path / run.CHECKPOINT, weights_only=True)
    newer = [key for key in state["identity"] if key.startswith("distill.")] + ["augment.erasing", "optim.betas"]
    for key in newer:
        del state["identity"][key]
    state["history"] = [
        {name.replace("val_", "test_"): value for name, value in row.items()} for row in state["history"][:2]
    ]
    run.save_checkpoint(tmp_path, state | {"step": 6})
    csv = (tmp_path / run.CSV).read_text().replace("val_", "test_")
    (tmp_path / run.CSV).write_text(csv)
    assert [row["val_top1"] for row in read_csv(tmp_path)] == [50.0] * 3
    recipe = (tmp_path / run.RECIPE).read_text()
    (tmp_path / run.RECIPE).write_text(recipe[: recipe.index("distill:")] + recipe[recipe.index("ema:") :])
    assert unfinished(tmp_path) is None
    validate((60.0, 1.0))
    training = trainer(tmp_path, resume=True)
    training.run()
    assert [row["val_top1"] for row in training.state.history] == [50.0, 50.0, 60.0]
    with pytest.raises(InputError, match=r"was trained with augment.erasing 0.0, not 0.5"):
        trainer(tmp_path, "augment.erasing=0.5", resume=True)


def test_lines_where_stderr_is_no_terminal(
    tmp_path: Path, validate: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    validate(*[(50.0, 1.0)] * 3)
    training = trainer(tmp_path, "log.every_seconds=0")
    with progress(training) as report:
        state = State(step=4, seconds=30.0, loss_sum=1.5, loss_steps=1, epoch_seconds=10.0, epoch_images=479)
        report.step(state, lr=0.05)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == ("step 4/9  epoch 2/3  loss 1.500  lr 0.05  48 images/s  data wait 0%  training time left 0:00:50")
    with progress(trainer(tmp_path / "b", "checkpoint.evaluate_every=3")) as report:
        report.step(state, lr=0.05)
        assert capsys.readouterr().err == ""
        report.epoch({name: 1.0 for name in run.COLUMNS if not name.startswith("val_")})
    assert "epoch 1.0/3  train loss 1.000  not evaluated  lr 1 " in capsys.readouterr().err


def test_the_number_of_threads_is_chosen_without_an_effect_on_the_weights_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(folder: Path) -> dict[str, Tensor]:
        training = trainer(folder, "schedule.epochs=1", "schedule.warmup_epochs=0")
        training.run()
        assert training.state.threads == (None if loop.fixed() else 1)
        return training.model.state_dict()

    monkeypatch.setattr(loop, "fixed", lambda: True)
    given = weights(tmp_path / "given")
    monkeypatch.setattr(loop, "fixed", lambda: False)
    chosen = weights(tmp_path / "chosen")
    assert all(torch.equal(tensor, chosen[name]) for name, tensor in given.items())
    saved = run.load_checkpoint(tmp_path / "chosen")
    assert saved is not None
    assert saved[0]["threads"] == 1
