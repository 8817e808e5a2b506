from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import edge_sk
import edge_sk.attention
from edge_sk.training.digits import digits
from recipes.attention import main
from recipes.train import main as train

QUICK = ["schedule.epochs=1", "schedule.warmup_epochs=0", "data.input_size=32"]


def trained(folder: Path, *more: str, arch: str = "sk_shufflenetv2_0.5", settings: tuple[str, ...] = ()) -> Path:
    arguments = ["--arch", arch, "--output", str(folder), "--device", "cpu", "--workers", "0", *more]
    assert train([*arguments, "--set", *QUICK, *settings]) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "digits", settings=("data.batch_size=479",))


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for split, source in (("train", "train"), ("val", "test")):
        images, labels = digits(source)  # type: ignore[arg-type]
        for label in range(2):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number, image in enumerate(images[labels == label][:6]):
                Image.fromarray(image.numpy()).resize((48, 40)).save(folder / f"{number}.png")
    return root


def test_object_scales_of_scaled_digits(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "record.json"
    arguments = ["--checkpoint", str(run), "--data", "scaled_digits", "--limit", "30", "--record", str(record)]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "attention.json").read_text())
    assert summary == json.loads(record.read_text())
    assert summary["arch"] == "sk_shufflenetv2_0.5"
    assert (summary["scales"], summary["images"], summary["interval_over"]) == ([0.25, 0.5, 1.0], 30, "images")
    assert len(summary["units"]) == 13
    first = summary["units"][0]
    assert (first["name"], first["smaller"], first["larger"]) == ("stage2.1.branch2.3", "3", "3d2")
    assert len(first["larger_by_channel"][0]) == 24
    assert len(first["by_class"][0]) == 10
    assert {"command", "versions", "host"} <= summary.keys()
    assert (tmp_path / "out" / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "attention.md").read_text().strip() in capsys.readouterr().out


def test_an_image_folder_is_enlarged_in_the_middle(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--recipe", "digits", "--data", str(image_folder)]
    # Large steps, so that the attention of one epoch differs from image to image beyond the digits that are kept.
    settings = ("data.batch_size=6", "optim.clip_grad_norm=null")
    runs = [trained(tmp_path / f"run{seed}", *common, "--seed", str(seed), settings=settings) for seed in (0, 1)]
    seen: dict[float, torch.Tensor] = {}
    original = edge_sk.attention.attention_against_scale

    def spy(model: torch.nn.Module, batches: dict, *rest: object, **named: object) -> object:
        batches = {scale: list(of_scale) for scale, of_scale in batches.items()}
        seen.update({scale: torch.cat([images for images, _ in of_scale]) for scale, of_scale in batches.items()})
        return original(model, batches, *rest, **named)

    monkeypatch.setattr(edge_sk.attention, "attention_against_scale", spy)
    assert main(["--checkpoint", *map(str, runs), "--output", str(tmp_path / "out")]) == 0
    # Twice as large: what is seen is the middle half, enlarged.
    size = seen[1.0].shape[2]
    middle = seen[1.0][:, :, size // 4 : -(size // 4), size // 4 : -(size // 4)]
    enlarged = torch.nn.functional.interpolate(middle, size=(size, size), mode="bilinear")
    assert (enlarged - seen[2.0]).abs().mean() < 0.04 < (seen[1.0] - seen[2.0]).abs().mean()
    summary = json.loads((tmp_path / "out" / "attention.json").read_text())
    assert (summary["seeds"], summary["epochs"]) == ([0, 1], 1)
    assert (summary["scales"], summary["images"], summary["runs"]) == ([1.0, 1.5, 2.0], 12, 2)
    assert (summary["interval_over"], summary["classes"]) == ("runs", ["class_0", "class_1"])
    # The scales show different pictures.
    assert any(len(set(unit["difference"])) == 3 for unit in summary["units"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scales", "1.0"], "--scales 1: give two or more, ascending"),
        (["--scales", "2", "1"], "--scales 2 1: give two or more, ascending"),
        (["--scales", "1", "inf"], "--scales 1 inf: give two or more, ascending"),
        (["--scales", "1", "nan"], "--scales 1 nan: give two or more, ascending"),
        (["--scales", "0.5", "1"], "the middle of an image can only be enlarged, by 1.0 to 10.0"),
        (["--scales", "1", "1e308"], "--scales 1e+308: the middle of an image can only be enlarged, by 1.0 to 10.0"),
        (["--data", "scaled_digits", "--scales", "0.5", "2"], "the scale must be from 0.25 to 1.0"),
        (["--data", "scaled_digits@0.5"], "the scale is what is varied; leave out @SCALE and give --scales"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--device", "cuda:99"], "asks for GPU 99"),
        (["--workers", "-1"], "--workers -1 must be from 0 to 256"),
        (["--workers", "999999999999"], "--workers 999999999999 must be from 0 to 256"),
        (["--output", "/proc/out"], "cannot write into /proc/out"),
        (["--record", "/proc/out/x.json"], "cannot write into /proc/out"),
        (["--checkpoint", ""], "is not a run folder"),
        (["--limit", "1"], "--limit 1 must be at least 2"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--checkpoint", str(run), "--output", str(tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_data_of_other_classes_are_refused(
    run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--checkpoint", str(run), "--data", str(image_folder), "--output", str(tmp_path / "out")]) == 2
    assert "has other classes (2: class_0, class_1) than the network (10: 0, 1, 2, ...)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_architectures_and_networks_without_selection_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = trained(tmp_path / "plain", arch="shufflenetv2_0.5", settings=("data.batch_size=1000",))
    capsys.readouterr()
    assert main(["--checkpoint", str(run), str(plain), "--limit", "2", "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f"{plain} is another training than {run} (arch: sk_shufflenetv2_0.5 -> shufflenetv2_0.5" in message
    assert main(["--checkpoint", str(plain), "--limit", "2", "--output", str(tmp_path / "out")]) == 2
    assert "has no selective kernels that select" in capsys.readouterr().err
