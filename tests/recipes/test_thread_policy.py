"""What docs/training.md says of threads is the record's."""

from __future__ import annotations

import json
from pathlib import Path

from recipes.thread_policy import policies, table

ROOT = Path(__file__).parents[2]


def test_the_documented_table_is_the_records() -> None:
    record = json.loads((ROOT / "recipes" / "results" / "thread_policy.json").read_text(encoding="utf-8"))
    assert table(record) in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for runs in record["runs"].values():
        assert runs.keys() == policies().keys()
