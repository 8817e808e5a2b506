"""The command for a report, in a file of its own: it takes longer than the others together."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.test_readme import commands, run_as_written


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_reports_command_does_what_it_says(tmp_path: Path) -> None:
    trainings = [command for command in commands() if re.search(r"recipes/train.py --arch \S+$", command)]
    (command,) = (command for command in commands() if "deploy/report.py" in command)
    run_as_written([*trainings, command], tmp_path)
    report = json.loads((tmp_path / "reports" / "report.json").read_text(encoding="utf-8"))
    records = [(one["arch"], one["precision"], one["accuracy"] is not None) for one in report["records"]]
    networks = ("sk_shufflenetv2_1.0", "shufflenetv2_1.0")
    assert records == [(arch, precision, True) for arch in networks for precision in ("fp32", "int8")]
    sk, plain = (cost["params"] for cost in report["costs"])
    assert sk > plain
    assert all(one["input"]["shape"][-2:] == [40, 40] and one["latency"] for one in report["records"])
    assert report["failures"] == []
