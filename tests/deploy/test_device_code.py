"""The device code cannot be compiled here: that it asks files only for what they hold, and that this is exact."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from edge_sk.export import to_mlpackage
from edge_sk.export.executorch_tools import executorch, quiet
from edge_sk.export.mil import MilProgram
from edge_sk.export.network import Network

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
INEXACT = 1 / 1.5


@pytest.mark.parametrize("source", ["android/EdgeSkClassifier.kt", "ios/EdgeSkClassifier.swift"])
def test_a_pte_has_every_method_that_is_asked_for(source: str, small_pte: Path) -> None:
    asked = set(re.findall(r'execute\("(\w+)"\)', (DEPLOY / source).read_text()))
    assert {"crop_pct", "softmax"} <= asked
    with quiet():
        program = executorch("runtime").Runtime.get().load_program(str(small_pte))
    assert asked <= set(program.method_names)


def test_a_package_has_every_entry_that_is_asked_for(small_network: Network, tmp_path: Path) -> None:
    """The device divides by ``crop_pct`` and rounds down, as evaluation does: 32 pixels make 48, and not 47."""
    source = (DEPLOY / "ios" / "CoreMLClassifier.swift").read_text()
    record = to_mlpackage(dataclasses.replace(small_network, crop_pct=INEXACT), tmp_path)
    program = MilProgram.load(tmp_path / record.file)
    assert float(program.metadata["edge_sk.crop_pct"]) == INEXACT
    asked = re.findall(r'metadata\["([\w.]+)"\]', source)
    assert "edge_sk.crop_pct" in asked
    assert set(asked) <= set(program.metadata)
    assert re.findall(r'inputDescriptionsByName\["(\w+)"\]', source) == program.input_names
