"""What the pages say of distillation is what the record says, and the script makes such a record."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from edge_sk.training.run import saved_recipe
from recipes import distillation

ROOT = Path(__file__).resolve().parents[2]


def test_the_documented_numbers_are_the_records() -> None:
    record = json.loads(distillation.RECORD.read_text(encoding="utf-8"))
    section = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").split("## Distillation")[1].split("\n## ")[0]
    said = " ".join(section.split())
    assert [len(rows) for rows in record["arms"].values()] == [5, 5]
    for rows in record["arms"].values():
        assert f"{statistics.fmean(row['val_top1'] for row in rows):.2f} %" in said
    for name, digits in (("val_top1", 2), ("val_loss", 3)):
        difference = record["difference"][name]
        low, high = difference["ci95"]
        assert f"{difference['mean']:+.{digits}f}" in said
        assert f"[{low:+.{digits}f}, {high:+.{digits}f}]" in said
    assert f"{record['teacher']['val_top1']:.2f} %" in said


@pytest.mark.slow
def test_the_arms_differ_in_the_teacher_alone(tmp_path: Path) -> None:
    arguments = ["--teacher", "shufflenetv2_0.5", "--seeds", "0", "1", "--epochs", "1", "--teacher-epochs", "1"]
    places = ["--output", str(tmp_path / "runs"), "--record", str(tmp_path / "record.json")]
    assert distillation.main([*arguments, *places]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert [[row["seed"] for row in rows] for rows in record["arms"].values()] == [[0, 1], [0, 1]]
    alone, distilled = (saved_recipe(tmp_path / "runs" / f"{arm}-seed1") for arm in ("labels-alone", "distilled"))
    assert distilled.distill.teacher == str(tmp_path / "runs" / "teacher")
    assert distilled.model_copy(update={"distill": alone.distill}) == alone
