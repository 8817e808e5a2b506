from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.fault_test import main

ROOT = Path(__file__).parents[2]


def test_the_committed_record_counts_no_loss() -> None:
    record = json.loads((ROOT / "recipes" / "results" / "fault_test.json").read_text(encoding="utf-8"))
    assert record["kills"] >= 200
    assert record["truncated_checkpoints"] + record["bit_flipped_checkpoints"] >= 60
    assert min(record["full_disks"], record["runs_over_damaged_images"]) >= 20
    assert record["lost_runs"] == record["wrong_results"] == 0
    assert record["finished_runs"] > 100
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert record["manifest"]["command"] in page
    keys = ("kills", "kills_while_a_file_was_being_written", "truncated_checkpoints", "bit_flipped_checkpoints")
    keys += ("full_disks", "damaged_images", "finished_runs", "lost_runs", "wrong_results")
    shown = re.findall(r"\| (\d+) \|$", page.split("| fault | times |")[1].split("\n\n")[0], re.MULTILINE)
    assert [int(number) for number in shown] == [record[key] for key in keys]


@pytest.mark.slow
def test_a_fault_of_each_kind_loses_nothing(tmp_path: Path) -> None:
    counts = {"kills": 2, "damages": 1, "full-disks": 1, "bad-images": 1}
    command = [sys.executable, "recipes/fault_test.py", "--output", str(tmp_path / "record.json")]
    command += [word for name, count in counts.items() for word in (f"--{name}", str(count))]
    # A process of its own: it forks, which one that has computed with several threads cannot.
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert record["kills"] >= 2
    assert record["truncated_checkpoints"] + record["bit_flipped_checkpoints"] == 1
    assert (record["full_disks"], record["runs_over_damaged_images"]) == (1, 1)
    assert record["lost_runs"] == record["wrong_results"] == 0
    assert record["finished_runs"] >= 3


def test_a_negative_count_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--full-disks", "-1"]) == 2
    assert "--full-disks -1 is negative" in capsys.readouterr().err
