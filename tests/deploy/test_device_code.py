"""The device code: it asks files only for what they hold, it resizes as evaluation does, and it compiles."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from edge_sk.export import to_mlpackage
from edge_sk.export.coreml.mil import MilProgram
from edge_sk.export.executorch import executorch
from edge_sk.export.network import Network
from edge_sk.stderr import capture_stderr
from edge_sk.training.transforms import evaluation_transform

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
INEXACT = 1 / 1.5
KOTLIN, SWIFT, CORE_ML = "android/EdgeSkClassifier.kt", "ios/EdgeSkClassifier.swift", "ios/CoreMLClassifier.swift"


@pytest.mark.parametrize("source", [KOTLIN, SWIFT])
def test_a_pte_has_every_method_that_is_asked_for(source: str, small_pte: Path) -> None:
    asked = set(re.findall(r'execute\("(\w+)"\)', (DEPLOY / source).read_text()))
    assert {"crop_pct", "softmax", "labels"} <= asked
    with capture_stderr():
        program = executorch("runtime").Runtime.get().load_program(str(small_pte))
    assert asked <= set(program.method_names)


def test_a_package_has_every_entry_that_is_asked_for(small_network: Network, tmp_path: Path) -> None:
    """The device divides by ``crop_pct`` and rounds down, as evaluation does: 32 pixels make 48, and not 47."""
    source = (DEPLOY / "ios" / "CoreMLClassifier.swift").read_text()
    record = to_mlpackage(dataclasses.replace(small_network, crop_pct=INEXACT), tmp_path)
    program = MilProgram.load(tmp_path / record.file)
    assert float(program.description.metadata.userDefined["edge_sk.crop_pct"]) == INEXACT
    asked = re.findall(r'metadata\["([\w.]+)"\]', source)
    assert "edge_sk.crop_pct" in asked
    assert set(asked) <= set(program.description.metadata.userDefined)
    assert re.findall(r'inputDescriptionsByName\["(\w+)"\]', source) == [program.image.name]


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (107, 98)])
@pytest.mark.parametrize("input_size", [(3, 32, 32), (3, 32, 48), (3, 48, 32)])
def test_images_are_resized_as_in_evaluation(input_size: tuple[int, int, int], size: tuple[int, int]) -> None:
    """The expressions of the device code are Python's, too, but for the division of integers."""
    transform: Any = evaluation_transform(input_size, 0.875, "bilinear")
    wide, high = transform.transforms[1].transforms[0](Image.new("RGB", size)).size
    image = SimpleNamespace(width=size[0], height=size[1])
    names = {"min": min, "max": max, "maxOf": max, "Double": float, "image": image, "bitmap": image}
    names |= {"resizedWidth": int(input_size[2] / 0.875), "resizedHeight": int(input_size[1] / 0.875)}
    # Where the input is not square, timm rounds the longer side to the nearest pixel, and the device down.
    tolerance = 0 if input_size[1] == input_size[2] else 1

    def value(source: str, name: str) -> float:
        (expression,) = re.findall(rf"(?:let|val) {name} = (m\w+\(.+\))", (DEPLOY / source).read_text())
        return eval(expression if source == CORE_ML else expression.replace("/", "//"), names)

    for source in (KOTLIN, SWIFT):
        assert value(source, "wide") == pytest.approx(wide, abs=tolerance)
        assert value(source, "high") == pytest.approx(high, abs=tolerance)
    scale = value(CORE_ML, "scale")
    assert (size[0] / scale, size[1] / scale) == pytest.approx((wide, high), abs=1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("kotlinc") is None, reason="no Kotlin compiler (npm install kotlin-compiler)")
def test_the_code_for_android_compiles(tmp_path: Path) -> None:
    stand_ins = [str(path) for path in Path(__file__).with_name("kotlin").rglob("*.*")]
    command = ["kotlinc", "-Werror", "-d", str(tmp_path), *stand_ins, str(DEPLOY / KOTLIN)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (compiled.returncode, compiled.stderr) == (0, "")
    assert (tmp_path / "edgesk" / "EdgeSkClassifier.class").is_file()


@pytest.mark.parametrize("source", [SWIFT, CORE_ML])
def test_an_initialiser_that_throws_does_not_trap(source: str) -> None:
    (body,) = re.findall(r"^  init\(.+?^  }", (DEPLOY / source).read_text(), re.DOTALL | re.MULTILINE)
    assert "throws" in body
    assert re.findall(r"\w!|\)!|\]!|try!|as!|\[0\](?!\?)", body) == []
