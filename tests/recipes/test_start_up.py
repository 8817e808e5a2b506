from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from recipes.start_up import KINDS, main

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_records_figures() -> None:
    record = json.loads((ROOT / "recipes" / "results" / "start_up.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    medians = {
        name: {kind: statistics.median(values) for kind, values in kinds.items()}
        for name, kinds in record["seconds"].items()
    }
    rows = [
        [
            name,
            *(f"{medians[name][kind]:.1f}" for kind in KINDS),
            f"{medians[name]['first'] - medians[name]['few_files']:.1f}",
        ]
        for name in ("before", "after")
    ]
    table = page.split("| for the folder's size |\n")[1].split("\n\n")[0]
    assert [row.strip("| ").split(" | ") for row in table.splitlines()[1:]] == rows
    assert record["manifest"]["command"].rpartition(" --trees ")[0] in page
    assert (record["images"], record["classes"], record["processes"]) == (300_000, 1000, 4)


@pytest.mark.slow
def test_a_start_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    sizes = ["--images", "300", "--classes", "10", "--processes", "2", "--rounds", "1"]
    assert main(["--trees", f"after={ROOT}", *sizes, "--output", str(output)]) == 0
    record = json.loads(output.read_text(encoding="utf-8"))
    assert all(len(record["seconds"]["after"][kind]) == 1 for kind in KINDS)
    assert record["ratio"]["after"]["first"] == 1.0


def test_what_cannot_be_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--trees", f"before={tmp_path}"]) == 2
    assert f"--trees before={tmp_path}: there is no recipes/train.py" in capsys.readouterr().err
    assert main(["--trees", f"after={ROOT}", "--images", "50", "--classes", "10"]) == 2
    assert "--images 50 are fewer than 11 for each of 10 classes" in capsys.readouterr().err
