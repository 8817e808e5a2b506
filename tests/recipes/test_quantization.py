"""The script trains, continues with int8's rounding, exports, and writes a record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_sk.training.run import saved_recipe
from recipes import evaluate, quantization


@pytest.mark.slow
def test_the_script_trains_exports_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arch = "timm:test_byobnet"
    arguments = ["--arch", arch, "--seeds", "0", "--epochs", "3", "--qat-epochs", "1", "--output", str(tmp_path)]
    places = ["--record", str(tmp_path / "record.json")]
    assert quantization.main([*arguments, *places]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    (row,) = record["archs"][arch]
    folder = tmp_path / "timm-test_byobnet-seed0-qat"
    assert saved_recipe(folder).quantization.qat
    # A file of int8 is about a quarter of one in fp32; calibrated or learnt, it has the same tensors.
    assert row["int8"]["bytes"] < 0.4 * row["fp32"]["bytes"]
    assert row["qat_int8"]["bytes"] == pytest.approx(row["int8"]["bytes"], rel=0.02)
    (file,) = folder.glob("*.pte")
    written = file.stat().st_mtime_ns
    assert quantization.main([*arguments, *places]) == 0
    assert file.stat().st_mtime_ns == written
    capsys.readouterr()
    assert evaluate.main(["--checkpoint", str(folder), "--device", "cpu", "--json"]) == 0
    top1 = json.loads(capsys.readouterr().out)["top1"]
    assert abs(top1 - row["qat_int8"]["top1"]) < 3
