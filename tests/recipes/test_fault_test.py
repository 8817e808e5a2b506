from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recipes.fault_test import KINDS, FaultTest, Reference, main

ROOT = Path(__file__).parents[2]


def test_the_committed_record_counts_no_loss() -> None:
    record = json.loads((ROOT / "recipes" / "results" / "fault_test.json").read_text(encoding="utf-8"))
    assert record["kills"] >= 1000
    kinds = [record["kills_by_kind"][kind] for kind in KINDS]
    assert min(kinds) >= 200
    assert record["truncated_checkpoints"] + record["bit_flipped_checkpoints"] >= 60
    assert min(record["full_disks"], record["runs_over_damaged_images"]) >= 20
    assert record["lost_runs"] == record["wrong_results"] == 0
    assert record["finished_runs"] > 100
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert record["manifest"]["command"] in page
    keys = ("kills_of_one_process_of_two", "kills_before_the_first_checkpoint", "kills_while_a_file_was_being_written")
    keys += ("truncated_checkpoints", "bit_flipped_checkpoints")
    keys += ("full_disks", "damaged_images", "finished_runs", "lost_runs", "wrong_results")
    shown = re.findall(r"\| (\d+) \|$", page.split("| fault | times |")[1].split("\n\n")[0], re.MULTILINE)
    assert [int(number) for number in shown] == [record["kills"], *kinds, *(record[key] for key in keys)]


def test_a_wrong_result_and_a_lost_run_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(run: Path, value: float, loss: str = "0.5", seconds: str = "7") -> Path:
        run.mkdir()
        save_file({"weight": torch.tensor([1.0, value])}, run / "model.safetensors")
        (run / "metrics.csv").write_text(f"epoch,val_loss,seconds\n1,{loss},{seconds}\n")
        return run

    # What a run leaves behind is written here; the process that would train it does nothing, or cannot resume.
    codes = iter((0, 0, 0, 1))
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    monkeypatch.setattr(FaultTest, "_start", lambda *_, **__: None)
    monkeypatch.setattr(FaultTest, "_wait", lambda *_: next(codes))
    faults = FaultTest(tmp_path, random.Random(0))
    faults.references["digits"] = Reference(trained(tmp_path / "reference", 1.0), 1.0)
    names = ("finished_runs", "wrong_results", "lost_runs")
    for run, expected in (
        (trained(tmp_path / "same", 1.0, seconds="8"), [1, 0, 0]),
        (trained(tmp_path / "one rounding off", 1.0 + 2**-23), [2, 1, 0]),
        (trained(tmp_path / "another loss", 1.0, loss="0.50001"), [3, 2, 0]),
        (trained(tmp_path / "lost", 1.0), [3, 2, 1]),
    ):
        faults._finish(run, "digits")
        assert [faults.counts[name] for name in names] == expected


@pytest.mark.slow
def test_a_fault_of_each_kind_loses_nothing(tmp_path: Path) -> None:
    # Each kind is killed once at least: that with the fewest kills is next.
    counts = {"kills": 4, "damages": 1, "full-disks": 1, "bad-images": 1}
    output = tmp_path / "record.json"
    command = [sys.executable, "recipes/fault_test.py", "--output", str(output), "--resume"]
    for piece in ({"kills": 0, "damages": 0, "full-disks": 0, "bad-images": 1}, counts):
        words = [word for name, count in piece.items() for word in (f"--{name}", str(count))]
        # A process of its own: it forks, which one that has computed with several threads cannot.
        done = subprocess.run(
            [*command, *words],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text(encoding="utf-8"))
    assert record["kills"] == sum(record["kills_by_kind"].values()) >= 4
    assert min(record["kills_by_kind"][kind] for kind in KINDS) >= 1
    assert [piece["kills"] for piece in record["pieces"]] == [0, record["kills"]]
    assert record["truncated_checkpoints"] + record["bit_flipped_checkpoints"] == 1
    assert (record["full_disks"], record["runs_over_damaged_images"]) == (1, 1)
    assert record["lost_runs"] == record["wrong_results"] == 0
    assert record["finished_runs"] >= 5


def test_a_record_of_something_else_is_not_added_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume"]) == 2
    assert "--resume adds to a record: name it with --output" in capsys.readouterr().err
    (tmp_path / "other.json").write_text('{"what": "training step"}')
    assert main(["--resume", "--output", str(tmp_path / "other.json")]) == 2
    assert "other.json is not a record of this test" in capsys.readouterr().err


def test_a_negative_count_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--full-disks", "-1"]) == 2
    assert "--full-disks -1 is negative" in capsys.readouterr().err
