"""The committed table of grafts is what its record says, and can be made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _record() -> dict[str, Any]:
    return json.loads((ROOT / "recipes" / "results" / "graft_table.json").read_text(encoding="utf-8"))


def test_table_is_what_its_record_says_and_meets_the_target() -> None:
    from recipes.graft_table import ARCHS, GUIDE, MARKS, TABLE, TARGET, allowed, markdown, pairs, summary, worst

    record = _record()
    rows = record["rows"]
    assert record["command"].startswith("python recipes/graft_table.py --write")
    assert [one["arch"] for one in rows] == ARCHS
    assert TABLE.read_text(encoding="utf-8") == markdown(rows)
    assert summary(rows).join(MARKS) in GUIDE.read_text(encoding="utf-8")
    grafted = [one for one in rows if "refused" not in one]
    assert len(grafted) >= 100
    assert sum(one["replaced"] for one in grafted) > 0.95 * sum(one["convolutions"] for one in rows)
    for one in grafted:
        assert worst(one) <= allowed(one), one["arch"]
        assert max(pair["site_difference"] for pair in pairs(one)) <= TARGET / 10, one["arch"]
        assert one["response"] > 0.05, one["arch"]
        rewritten = one["rewritten"]
        assert rewritten["units"] == one["replaced"], one["arch"]
        # Above the target a network's rounding shows, not the rewrite.
        assert rewritten["difference"] <= TARGET or rewritten["exact"] <= 1e-8, one["arch"]
        assert one["replaced"] + sum(one["left"].values()) == one["convolutions"]
    assert all(one["refused"] for one in rows if "refused" in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch",
    ["timm:ghostnet_100", "timm:efficientvit_m0", "torchvision:mnasnet0_5", "timm:repvit_m1", "timm:edgenext_xx_small"],
)
def test_table_can_be_made_again(arch: str) -> None:
    from recipes.graft_table import TARGET, allowed, row, worst

    recorded = next(one for one in _record()["rows"] if one["arch"] == arch)
    again = json.loads(json.dumps(row(arch)))
    for key in ("found_by", "convolutions", "replaced", "with_bias", "left"):
        assert again[key] == recorded[key]
    assert again["params"][0] == recorded["params"][0]
    for kind in ("dense", "dilated"):
        for key in ("params", "macs"):
            assert again[kind][key] == recorded[kind][key]
        assert again[kind]["site_difference"] <= TARGET / 10
    assert worst(again) <= allowed(again)
