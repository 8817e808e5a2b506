"""The worked example of segmentation: its canvases, its measure, and in small the whole way to both files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from recipes import segmentation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "IMAGES", {"train": 128, "test": 64})


@pytest.mark.usefixtures("in_small")
def test_canvases_are_photographs_outside_the_strokes() -> None:
    from sklearn.datasets import load_sample_image

    canvases, masks = segmentation.draw("test", 3)
    again = segmentation.draw("test", 3)
    assert torch.equal(canvases, again[0])
    assert torch.equal(masks, again[1])
    assert canvases.shape == (64, 64, 64, 3)
    assert masks.flatten(1).sum(1).min() > 0
    assert 0.02 < masks.double().mean() < 0.4
    photographs = [load_sample_image(name)[:, segmentation.BORDER :] for name in segmentation.PHOTOGRAPHS]
    colours = {tuple(colour) for photograph in photographs for colour in photograph.reshape(-1, 3).tolist()}
    outside = canvases[masks == 0].tolist()
    inside = canvases[masks == 1].tolist()
    assert sum(tuple(colour) in colours for colour in outside) > 0.8 * len(outside)
    assert sum(tuple(colour) in colours for colour in inside) < 0.5 * len(inside)


def test_mean_iou_of_known_masks() -> None:
    masks = torch.tensor([[[0, 0, 1, 1]]])
    assert segmentation.mean_iou(masks, masks) == 100
    assert segmentation.mean_iou(1 - masks, masks) == 0
    assert segmentation.mean_iou(torch.tensor([[[0, 1, 1, 1]]]), masks) == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)


def test_the_documented_numbers_are_the_records() -> None:
    record = json.loads((ROOT / "recipes" / "results" / "segmentation.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "segmentation.md").read_text(encoding="utf-8")
    for row in record["rows"]:
        before, ungrafted, start, grafted = row["mean_iou"].values()
        assert start == pytest.approx(before, abs=0.01)
        assert f"| {row['seed']} | {before:.2f} | {ungrafted:.2f} | {grafted:.2f} |" in page
    for name, proof in record["files"].items():
        assert re.search(rf"`{name}` \| {100 * proof['top1_agreement']:.2f} \| {proof['sqnr_db']:.1f} \|", page)


@pytest.mark.slow
@pytest.mark.usefixtures("in_small")
def test_from_masks_to_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    assert segmentation.main(["--output", str(output), "--epochs", "2"]) == 0
    record = json.loads((output / "record.json").read_text(encoding="utf-8"))
    (row,) = record["rows"]
    assert row["sites"] == 11
    assert row["mean_iou"]["grafted, before"] == pytest.approx(row["mean_iou"]["ungrafted, before"], abs=0.01)
    assert {name.partition("_")[2] for name in record["files"]} == {
        "xnnpack_fp32.pte", "xnnpack_int8.pte", "coreml_fp16.mlpackage",
    }  # fmt: skip
    exact = record["files"]["strokes_xnnpack_fp32.pte"]
    assert exact["top1_agreement"] >= 0.999
    assert exact["mean_iou"] == pytest.approx(row["mean_iou"]["grafted"], abs=0.05)
    with Image.open(output / "masks.png") as picture:
        assert picture.size == (2 * 64 * 8, 2 * 64 * 3)
    assert "same class in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--epochs", "0"], "--epochs 0 trains nothing"), (["--seeds", "0", "-1"], "--seeds 0 -1: give whole numbers")],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert segmentation.main(["--output", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
