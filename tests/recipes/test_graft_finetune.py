"""The comparison of fine-tuning with and without a graft, in small."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from recipes import graft_finetune


@pytest.fixture
def in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of one epoch on one seed, with two arms."""
    arms = {arm: graft_finetune.ARMS[arm] for arm in ("ungrafted", "preserve, k and k+2")}
    monkeypatch.setattr(graft_finetune, "ARMS", arms)
    monkeypatch.setattr(graft_finetune, "RECORD", tmp_path / "unwritten.json")
    record = str(tmp_path / "record.json")
    return ["--seeds", "0", "--epochs", "1", "--output", str(tmp_path / "runs"), "--record", record]


def test_the_documented_table_is_the_records() -> None:
    root = Path(__file__).resolve().parents[2]
    record = json.loads((root / "recipes" / "results" / "graft_finetune.json").read_text(encoding="utf-8"))
    text = (root / "docs" / "grafting.md").read_text(encoding="utf-8")
    assert set(record["summary"]) == set(graft_finetune.ARMS)
    for arm, found in record["summary"].items():
        cells = [
            f"{one['mean']:.2f} ± {statistics.stdev(one['values']):.2f}" for one in (found["before"], found["after"])
        ]
        assert f"| {arm} | {cells[0]} | {cells[1]} | {max(found['score_difference']['values']):.1e} |" in text


@pytest.mark.slow
def test_measures_both_arms_and_goes_on_after_an_interruption(in_small: list[str], tmp_path: Path) -> None:
    def rows() -> list[dict[str, Any]]:
        assert graft_finetune.main(in_small) == 0
        return json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))["rows"]

    first = rows()
    ungrafted, grafted = first[0]["arms"].values()
    assert grafted["before"] == ungrafted["before"] == first[0]["trained"]
    assert grafted["score_difference"] < 1e-4
    assert grafted["params"] > ungrafted["params"]
    # A run that was killed before its first checkpoint has only its description.
    killed = tmp_path / "runs" / "preserve-k-and-k2-seed0"
    for path in killed.iterdir():
        if path.name not in ("config.json", "manifest.json", "recipe.yaml"):
            path.unlink()
    assert rows() == first


def test_an_interrupted_training_ends_the_script(in_small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_sk.training.loop import Trainer

    monkeypatch.setattr(Trainer, "run", lambda self, report: 2)
    assert graft_finetune.main(in_small) == 130


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        graft_finetune.main(["--help"])
    assert stopped.value.code == 0
    assert "--epochs" in capsys.readouterr().out
