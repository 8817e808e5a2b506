from __future__ import annotations

import csv
import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from deploy.export import main as export
from edge_sk.training import loop
from edge_sk.training.digits import digits
from edge_sk.training.evaluation import Metrics
from edge_sk.training.recipe import Recipe, settings
from edge_sk.training.run import load_run, unfinished
from recipes import recipe_fields
from recipes.evaluate import main as evaluate
from recipes.train import main as train
from recipes.train import parse

ROOT = Path(__file__).parents[2]
ARCH = "sk_shufflenetv2_0.5"
# Seconds instead of minutes: 7 steps an epoch.
QUICK = [
    "data.batch_size=200",
    "data.input_size=32",
    "schedule.epochs=2",
    "optim.lr=0.02",
    "checkpoint.every_minutes=1000",
]


def quick(output: Path, *more: str, settings: tuple[str, ...] = ()) -> list[str]:
    return ["--arch", ARCH, "--output", str(output), "--device", "cpu", "--set", *QUICK, *settings, *more]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


TIMES = {"seconds", "images_per_second", "data_wait"}


def untimed(run: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows(run)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(quick(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 0, 1 and 2 as PNG files: 12 train and 4 val images a class."""
    root = tmp_path_factory.mktemp("images")
    for split, source, count in (("train", "train", 12), ("val", "test", 4)):
        images, labels = digits(source)  # type: ignore[arg-type]
        for label in range(3):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number, image in enumerate(images[labels == label][:count]):
                Image.fromarray(image.numpy()).resize((24, 20)).save(folder / f"{number}.png")
    return root


SMALL = (
    "--set",
    "data.batch_size=8",
    "data.input_size=32",
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "augment.mixup=0.2",
)


def on_folder(data: Path, output: Path, *more: str) -> list[str]:
    return [
        "--arch",
        ARCH,
        "--recipe",
        "digits",
        "--data",
        str(data),
        "--output",
        str(output),
        "--workers",
        "0",
        *SMALL,
        *more,
    ]


def test_help_names_the_recipes_and_where_their_fields_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Recipes: cifar, digits, finetune, large, light, scaled_digits, scaled_glyphs. " in said
    assert "recipes/README.md explains them all" in said


def test_the_readme_explains_every_field_as_the_recipe_has_it() -> None:
    text = recipe_fields.README.read_text(encoding="utf-8")
    assert recipe_fields.page(text) == text, "renew it: python recipes/recipe_fields.py"
    rows = {line.split("`")[1]: line.split(" | ")[-1] for line in recipe_fields.fields().splitlines() if "| `" in line}
    assert rows.keys() == settings(Recipe()).keys()
    assert [key for key, meaning in rows.items() if len(meaning) < 8] == []


def test_the_flags_are_the_agreed_ones() -> None:
    args = vars(parse(["--arch", "x"]))
    assert set(args) == {
        "arch", "recipe", "data", "output", "set", "seed", "device", "resume", "workers", "dry_run"
    }  # fmt: skip


def test_a_run_folder_holds_what_is_promised(uninterrupted: Path) -> None:
    assert {path.name for path in uninterrupted.iterdir()} == {
        "model.safetensors", "model_best.safetensors", "config.json", "checkpoint.pt", "metrics.csv", "curves.png",
        "recipe.yaml", "manifest.json",
    }  # fmt: skip
    config = json.loads((uninterrupted / "config.json").read_text())
    assert config["arch"] == ARCH
    assert config["classes"] == list("0123456789")
    assert config["input_size"] == [3, 32, 32]
    manifest = json.loads((uninterrupted / "manifest.json").read_text())
    assert manifest["command"].startswith(f"python recipes/train.py --arch {ARCH}")
    assert manifest["seed"] == 0
    assert [(row["epoch"], row["step"], row["val_images"]) for row in rows(uninterrupted)] == [
        ("1", "7", "360"),
        ("2", "14", "360"),
    ]
    assert float(rows(uninterrupted)[1]["train_loss"]) < float(rows(uninterrupted)[0]["train_loss"])
    with Image.open(uninterrupted / "curves.png") as curves:
        assert curves.size[0] > 800


def test_evaluate_reports_what_training_measured(uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(["--checkpoint", str(uninterrupted), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    last = rows(uninterrupted)[-1]
    assert result["images"] == 360
    assert result["top1"] == pytest.approx(float(last["val_top1"]), abs=1e-3)
    assert result["top5"] == pytest.approx(float(last["val_top5"]), abs=1e-3)
    assert result["loss"] == pytest.approx(float(last["val_loss"]), rel=1e-4)
    assert evaluate(["--checkpoint", str(uninterrupted), "--input-size", "48"]) == 0
    assert "at 48 x 48" in capsys.readouterr().out


def test_evaluate_honours_or_refuses_every_setting(uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def result(*more: str) -> dict[str, Any]:
        assert evaluate(["--checkpoint", str(uninterrupted), "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    assert result()["unfinished"] is None
    larger = result("--set", "data.input_size=48")
    assert larger["input_size"] == [3, 48, 48]
    assert larger == result("--input-size", "48")
    settings = ["data.crop_pct=0.5", "data.interpolation=bicubic", "data.eval_batch_size=100"]
    losses = [result(*(["--set", *settings[:count]] if count else []))["loss"] for count in range(3)]
    assert len(set(losses)) == 3
    assert result("--set", *settings)["loss"] == pytest.approx(losses[2], rel=1e-5)
    for options, message in (
        (("--set", "optim.lr=0.1"), "--set optim.lr changes nothing in an evaluation"),
        (("--set", "data.batch_size=8"), "--set data.batch_size changes nothing in an evaluation"),
        (("--set", "data.crop=1"), "unknown key data.crop "),
        (("--set", "data.input_size=48", "--input-size", "32"), "data.input_size is given 2 times"),
        (("--set", "data.eval_batch_size=48", "--batch-size", "8"), "data.eval_batch_size is given 2 times"),
        (("--input-size", "4"), "--input-size 4 is too small"),
        (("--batch-size", "0"), "--batch-size 0 must be at least 1"),
    ):
        assert evaluate(["--checkpoint", str(uninterrupted), *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_a_loaded_run_predicts_like_the_trained_network(uninterrupted: Path) -> None:
    run = load_run(uninterrupted)
    assert not run.model.training
    assert torch.equal(run.model.state_dict()["fc.weight"], weights(uninterrupted)["fc.weight"])


OTHER = ("ema.enabled=true", "ema.decay=0.9", "augment.erasing=0.5", "optim.layer_decay=0.9", "loss.name=bce")


@pytest.mark.parametrize(("step", "extra"), [(3, ()), (7, ()), (11, (*OTHER, "checkpoint.evaluate_every=2"))])
def test_a_run_stopped_at_any_step_and_resumed_is_bitwise_the_uninterrupted_one(
    tmp_path: Path,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
    extra: tuple[str, ...],
) -> None:
    reference = uninterrupted
    if extra:
        reference = tmp_path / "reference"
        assert train(quick(reference, settings=extra)) == 0
    train_step = loop.Trainer._train_step

    def preempted(self: loop.Trainer, *args: object) -> torch.Tensor:
        loss = train_step(self, *args)  # type: ignore[arg-type]
        if self.state.step == step:
            signal.raise_signal(signal.SIGTERM)
        return loss

    monkeypatch.setattr(loop.Trainer, "_train_step", preempted)
    run = tmp_path / "stopped"
    assert train(quick(run, settings=extra)) == 128 + signal.SIGTERM
    message = capsys.readouterr().out
    assert f"stopped by SIGTERM at step {step}" in message
    monkeypatch.undo()
    assert unfinished(run) == f"{step // 7 if step % 7 else step // 7 - 1} of 2 epochs"
    assert export(["--checkpoint", str(run), "--output", str(tmp_path / "exports")]) == 2
    assert f"the training of {run} is not finished" in capsys.readouterr().err
    assert not (tmp_path / "exports").exists()
    assert evaluate(["--checkpoint", str(run), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["unfinished"] == unfinished(run)
    assert f"warning: the training of {run} is not finished" in said.err
    command = re.search(r"^  edge-sk train (.*)$", message, re.MULTILINE)
    assert command is not None
    assert train(shlex.split(command[1])) == 0
    assert f"{run} continues after step {step}\n" in capsys.readouterr().out
    assert unfinished(run) is None
    assert_same_weights(run, reference)
    assert untimed(run) == untimed(reference)


def test_a_resume_of_a_finished_run_says_so_and_changes_nothing(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(uninterrupted, run)
    assert train(["--arch", ARCH, "--output", str(run), "--resume"]) == 0
    assert capsys.readouterr().out.startswith(f"{run} is finished: all 2 epochs were trained before\n")
    for name in ("model.safetensors", "metrics.csv", "manifest.json", "recipe.yaml"):
        assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    # A save after every step: the previous checkpoint is one step older.
    assert train(quick(run, settings=("checkpoint.every_minutes=0",))) == 0
    content = bytearray((run / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "checkpoint.pt").write_bytes(content)
    (run / "model.safetensors").unlink()
    assert train(["--arch", ARCH, "--output", str(run), "--resume"]) == 0
    assert "does not match its checksum" in capsys.readouterr().out
    assert_same_weights(run, uninterrupted)


def test_dry_run_of_sknet29_on_cifar_needs_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--arch", "sknet29", "--recipe", "cifar", "--data", "torch/cifar10", "--dry-run"]
    assert train([*args, "--output", str(tmp_path / "run"), "--set", f"data.root={tmp_path / 'none'}"]) == 0
    out = capsys.readouterr().out
    assert "50,000 training images, 10 classes" in out
    assert "parameters  27,813,450" in out
    assert "117,000 (300 epochs of 390 steps of 128 images; 80 of each epoch's images unused)" in out
    assert "MACs" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["light", "large", "cifar"])
def test_every_recipe_trains_on_an_image_folder(tmp_path: Path, image_folder: Path, recipe: str) -> None:
    args = on_folder(image_folder, tmp_path / "run")
    args[args.index("--recipe") + 1] = recipe
    if recipe != "light":
        args += ["--set", "schedule.name=cosine", "schedule.milestones=[]"]
    assert train(args) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["classes"] == ["class_0", "class_1", "class_2"]


def test_the_default_recipe_is_the_familys_with_data(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--arch", ARCH, "--data", str(image_folder), "--set", "data.batch_size=8", "--dry-run"]
    assert train(args) == 0
    out = capsys.readouterr().out
    assert "weight_decay: 4.0e-05" in out
    assert "36 training images, 12 validation images, 3 classes" in out
    assert "epochs of 4 steps of 8 images; 4 of each epoch's images unused)" in out
    assert f"runs/{ARCH}-light-{image_folder.name}-seed0" in out


def test_a_learning_rate_that_would_never_fall_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--arch", ARCH, "--recipe", "large", "--dry-run", "--set", "data.batch_size=8", "schedule.warmup_epochs=0"]
    assert train([*args, "schedule.epochs=30"]) == 0
    assert "milestones begin at epoch 30 of 30; for instance --set schedule.name=cosine" in capsys.readouterr().err
    assert train([*args, "schedule.epochs=31"]) == 0
    assert "milestones" not in capsys.readouterr().err


def failure(args: list[str], capsys: pytest.CaptureFixture[str], *, code: int = 2) -> str:
    """Run something that must fail with one line on stderr; returns the line."""
    assert train(args) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "999999999999"], "--workers 999999999999 must be from 0 to 256"),
        (["--workers", "-1"], "--workers -1 must be from 0 to 256"),
        (["--data", "hfds/"], "--data hfds/ has no name behind hfds/"),
        (["--data", "torch/"], "--data torch/ has no name behind torch/"),
    ],
)
def test_what_no_run_can_be_made_of(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failure([*quick(tmp_path / "run"), *more], capsys)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_is_not_finite_is_no_result(
    uninterrupted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Metrics(10.0, 50.0, math.nan, 360)
    monkeypatch.setattr("edge_sk.training.evaluation.evaluate", lambda *_: broken)
    assert evaluate(["--checkpoint", str(uninterrupted), "--json"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "the loss is nan: the network's outputs are not finite" in said.err


def test_unknown_names_suggest_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert "sk_shufflenetv2_1.0" in failure(["--arch", "sk_shuflenetv2_1.0", "--output", str(run)], capsys)
    assert "known are cifar, digits" in failure(["--arch", ARCH, "--recipe", "lite", "--output", str(run)], capsys)
    assert "unknown key optim.lrate" in failure(quick(run, settings=("optim.lrate=1",)), capsys)
    assert "unknown device 'tpu9'" in failure(["--arch", ARCH, "--output", str(run), "--device", "tpu9"], capsys)
    assert not run.exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda root: None,
            "does not exist; allowed: digits, scaled_digits, scaled_glyphs, a folder with train and val",
        ),
        (lambda root: root.write_text("x"), "is not a folder"),
        (lambda root: root.mkdir(), "has no folder 'train' .it holds nothing."),
        (lambda root: (root / "train").mkdir(parents=True), "has no images in class folders"),
        (lambda root: shutil.copytree(root.parent / "good" / "train", root / "train"), "has no folder 'val'"),
        (
            lambda root: (
                shutil.copytree(root.parent / "good", root),
                (root / "val" / "class_0").rename(root / "val" / "stranger"),
            ),
            "has classes that the training images have not: stranger",
        ),
        (
            lambda root: (
                shutil.copytree(root.parent / "good", root),
                shutil.copy(root / "val" / "class_0" / "0.png", root / "train"),
            ),
            "holds images outside class folders",
        ),
    ],
    ids=["missing", "file", "empty", "no images", "no val", "strange class", "loose image"],
)
def test_a_bad_data_folder_is_explained(
    tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str], make: object, message: str
) -> None:
    shutil.copytree(image_folder, tmp_path / "good")
    make(tmp_path / "data")  # type: ignore[operator]
    assert re.search(message, failure(on_folder(tmp_path / "data", tmp_path / "dry", "--dry-run"), capsys))
    assert not (tmp_path / "dry").exists()
    assert re.search(message, failure(on_folder(tmp_path / "data", tmp_path / "run"), capsys))
    # The list of a good training folder is kept for the next try.
    assert {path.name for path in (tmp_path / "run").glob("*")} <= {"index"}


def test_data_that_is_not_there_and_cannot_be_fetched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = on_folder(Path("torch/cifar10"), tmp_path / "run", "--set", f"data.root={tmp_path}", "data.download=false")
    assert "torch/cifar10 is neither in" in failure(args, capsys)
    args = on_folder(Path("torch/cifar11"), tmp_path / "run", "--set", f"data.root={tmp_path}")
    assert "unknown data set torch/cifar11" in failure(args, capsys)


def test_an_unreadable_image_is_named_skipped_and_counted(
    tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    for number in range(2):
        broken = data / "train" / "class_1" / f"{number}.png"
        broken.write_bytes(broken.read_bytes()[:40])
    (data / "val" / "class_2" / "3.png").write_bytes(b"")
    # 36 images in batches of 36: every image is met.
    args = on_folder(data, tmp_path / "run", "--set", "data.batch_size=36")
    assert train(args) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: skipped")]
    assert len(warnings) == 3
    assert any(str(data / "train" / "class_1" / "0.png") in line for line in warnings)
    assert rows(tmp_path / "run")[-1]["val_images"] == "11"
    assert evaluate(["--checkpoint", str(tmp_path / "run"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["unreadable"]) == (11, 1)
    message = failure([*args, "--output", str(tmp_path / "strict"), "--set", "data.max_unreadable=1"], capsys)
    assert "2 images cannot be read, data.max_unreadable allows 1; the last: " in message


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = loop.Trainer._loss

    def diverging(self: loop.Trainer, batch: object) -> torch.Tensor:
        value = loss(self, batch)  # type: ignore[arg-type]
        return value * float("nan") if self.state.step == 4 else value

    monkeypatch.setattr(loop.Trainer, "_loss", diverging)
    message = failure(quick(tmp_path / "run", settings=("checkpoint.every_minutes=0",)), capsys)
    assert "the loss is nan at step 5 (epoch 1): stopped; the checkpoint of step 4 in" in message
    monkeypatch.undo()
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 4
    assert train(["--arch", ARCH, "--output", str(tmp_path / "run"), "--resume"]) == 0


def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_step = loop.Trainer._train_step

    def poisoned(self: loop.Trainer, *args: object) -> torch.Tensor:
        loss = train_step(self, *args)  # type: ignore[arg-type]
        if self.state.step == 3:
            next(self.model.parameters()).data.fill_(float("inf"))
        return loss

    monkeypatch.setattr(loop.Trainer, "_train_step", poisoned)
    message = failure(quick(tmp_path / "run", settings=("checkpoint.every_minutes=0",)), capsys)
    assert "is not finite after step 3" in message
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 2


def test_an_existing_run_is_not_overwritten(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "exists already: --resume continues it, another --output" in failure(quick(uninterrupted), capsys)
    (tmp_path / "notes.txt").write_text("mine")
    assert "exists already: it is not empty" in failure(quick(tmp_path), capsys)
    assert "notes.txt is a file" in failure(quick(tmp_path / "notes.txt"), capsys)
    assert "cannot write into /proc/run" in failure(quick(Path("/proc/run")), capsys)
    assert "nothing to resume: " in failure(quick(tmp_path / "none", "--resume"), capsys)


def test_resume_refuses_another_run(tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def resume(arch: str, *more: str) -> str:
        return failure(["--arch", arch, "--output", str(uninterrupted), "--resume", *more], capsys)

    assert f"was trained with arch '{ARCH}', not 'shufflenetv2_0.5'" in resume("shufflenetv2_0.5")
    assert "was trained with optim.lr 0.02, not 0.2" in resume(ARCH, "--set", "optim.lr=0.2")
    assert "was trained with seed 0, not 1" in resume(ARCH, "--seed", "1")
    accumulated = resume(ARCH, "--set", "data.accumulation=2")
    assert "was trained with images per batch norm (batch_size / processes / accumulation) 200, not 100" in accumulated


def test_foreign_and_damaged_run_folders(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluation(folder: Path) -> str:
        assert evaluate(["--checkpoint", str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "does not exist" in evaluation(tmp_path / "none")
    assert "is not a run folder: it has no config.json" in evaluation(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[:1000])
    assert "model.safetensors is not a whole safetensors file" in evaluation(run)
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace(ARCH, "shufflenetv2_0.5"))
    (run / "model.safetensors").write_bytes(content)
    assert "does not hold the weights of shufflenetv2_0.5: " in evaluation(run)
    (run / "config.json").write_text(config[:50])
    assert "config.json is not JSON" in evaluation(run)
    (run / "config.json").write_text(config)
    (run / "model.safetensors").unlink()
    assert "finish the run with edge-sk train --resume" in evaluation(run)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (run / name).write_bytes(b"another program's file")
    assert "nothing to resume from" in failure(["--arch", ARCH, "--output", str(run), "--resume"], capsys)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    save_checkpoint = loop.save_checkpoint

    def full(folder: Path, state: dict) -> None:
        if state["step"] == 3:
            raise OSError(28, "No space left on device", str(folder / "checkpoint.pt"))
        save_checkpoint(folder, state)

    monkeypatch.setattr(loop, "save_checkpoint", full)
    message = failure(quick(run, settings=("checkpoint.every_minutes=0",)), capsys, code=1)
    assert "No space left on device" in message
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == 2


def test_the_script_runs_as_a_script_from_elsewhere(tmp_path: Path, image_folder: Path) -> None:
    args = on_folder(image_folder, Path("my runs") / "one")
    script = [sys.executable, str(ROOT / "recipes" / "train.py")]
    done = subprocess.run([*script, *args, "--workers", "1"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Exception" not in done.stderr  # of a worker that outlived the training
    next_commands = re.findall(r"^  edge-sk (.*)$", done.stdout, re.MULTILINE)
    assert len(next_commands) == 2
    command = [sys.executable, "-c", "from edge_sk_scripts import main; main()", *shlex.split(next_commands[0])]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "top-1" in result.stdout
    assert shlex.split(next_commands[1])[1:] == ["--checkpoint", "my runs/one", "--output", "exports/one"]
