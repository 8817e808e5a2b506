"""The page on merging says what its record says, and the record is complete."""

from __future__ import annotations

import pytest

from deploy.merging_study import PAGE, RESULT, page
from edge_sk.reading import read_json

RECORD = read_json(RESULT)


def test_the_page_is_the_records() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(RECORD)


@pytest.mark.parametrize("arch", RECORD["studies"])
def test_every_seed_has_the_whole_path(arch: str) -> None:
    study = RECORD["studies"][arch]
    assert (PAGE.parent / "merging" / f"{arch}.png").is_file()
    for row in study["seeds"].values():
        units = len(row["units"])
        path = row["path"]
        assert path[0]["select"] == units
        assert path[-1]["select"] == 0
        ratios = [point["ratio_by_costs"] for point in path]
        assert ratios == sorted(ratios, reverse=True)
        assert all(point["select"] + point["merge"] + point["cut"] == units for point in path)
        for choice in row["budgets"].values():
            assert choice["top1"] == path[choice["index"]]["test_top1"]
