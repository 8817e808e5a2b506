"""The page on the JSON of records and reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.record_schema import main

PAGE = Path(__file__).parents[2] / "docs" / "record.md"


def test_the_documented_schema_is_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert PAGE.read_text(encoding="utf-8") == capsys.readouterr().out, (
        "run: python deploy/record_schema.py > docs/record.md"
    )
