"""What the README tells a reader to do works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_python_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(code, {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", TEXT))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_cost_table_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from edge_sk.profiling import main

    rows = re.findall(r"^\| (s?\w*shufflenetv2_1\.0) \| ([\d.]+) \| ([\d.]+) \|", TEXT, re.MULTILINE)
    assert len(rows) == 3
    assert main([name for name, _, _ in rows] + ["--json"]) == 0
    counted = {row["name"]: row for row in json.loads(capsys.readouterr().out)["networks"]}
    for name, params, macs in rows:
        row = counted[name]
        assert f"{row['params'] / 1e6:.3f}" == params
        assert f"{row['macs'] / 1e6:.2f}" == macs


def test_the_dry_run_shows_recipe_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    from recipes.train import main

    (command,) = re.findall(r"^python recipes/train.py (.* --dry-run)$", TEXT, re.MULTILINE)
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    for expected in ("weight_decay", "27,813,450", "4,180,928,512", "steps"):
        assert expected in printed
