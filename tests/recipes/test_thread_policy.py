"""The page shows the record of the thread policies, and bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.thread_policy import main, policies, table

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_record() -> None:
    record = json.loads((ROOT / "recipes" / "results" / "thread_policy.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert table(record) in page
    assert record["manifest"]["command"] in page
    assert {*record["runs"]["quiet"]} == {*policies()}
    quiet = {name: sorted(run["seconds"] for run in runs)[1] for name, runs in record["runs"]["quiet"].items()}
    shared = {name: run["seconds"] for name, (run,) in record["runs"]["shared"].items()}
    assert f"{quiet['measured'] / quiet['sleeping']:.2f} of the time that version 0.1 took" in page
    assert f"takes {shared['measured'] / shared['one']:.2f} of the time of one thread" in " ".join(page.split())


def test_a_training_that_fails_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--arch", "nothing", "--seeds", "0", "--output", str(tmp_path / "record.json")]) == 2
    assert "--arch nothing" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
