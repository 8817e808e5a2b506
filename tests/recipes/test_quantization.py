"""The script trains, continues with int8's rounding, exports, and writes a record."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from edge_sk.training.run import saved_recipe
from recipes import evaluate, quantization


def test_the_table_is_what_the_record_says() -> None:
    record = json.loads(quantization.RECORD.read_text(encoding="utf-8"))
    page = (quantization.RECORD.parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    for arch, rows in record["archs"].items():
        cells = []
        for kind in ("fp32", "int8", "qat_int8"):
            top1 = [row[kind]["top1"] for row in rows]
            cells.append(f"{statistics.fmean(top1):.2f} ({', '.join(f'{value:.2f}' for value in top1)})")
        assert f"| `{arch}` | {' | '.join(cells)} |" in page
        assert record["mean_top1"][arch]["qat_int8 - fp32"] >= -0.3


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
