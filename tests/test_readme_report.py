"""The command for a report, in a file of its own: it takes longer than the others together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_readme import commands, run_as_written


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_reports_command_does_what_it_says(tmp_path: Path) -> None:
    (command,) = (command for command in commands() if "deploy/report.py" in command)
    run_as_written([command], tmp_path)
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert len(report["records"]) == 8
    assert report["failures"] == []
