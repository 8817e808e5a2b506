"""The page on merging says what its record says, and the record is complete."""

from __future__ import annotations

import pytest

from deploy.merging_study import BUDGETS, KEYS, PAGE, RESULT, choice, costs, lacking, page, picture, ratios_by_costs
from edge_sk.reading import read_json

RECORD = read_json(RESULT)


def test_the_page_is_the_records() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(RECORD)


@pytest.mark.parametrize("arch", RECORD["studies"])
def test_every_seed_has_the_whole_path(arch: str) -> None:
    study = RECORD["studies"][arch]
    assert picture(arch).is_file()
    for row in study["seeds"].values():
        units = len(row["units"])
        path = row["path"]
        assert path[0]["select"] == units
        assert path[-1]["select"] == 0
        assert all(point["select"] + point["merge"] + point["cut"] == units for point in path)
        assert "latency" not in study or not any(lacking(study, row))
        for key in KEYS:
            ratios = ratios_by_costs(study, row, key)
            assert len(ratios) == len(path)
            for budget in BUDGETS:
                index = choice(study, row, key, budget)
                assert ratios[index] <= budget < min(ratios[:index])


@pytest.mark.parametrize("arch", RECORD["studies"])
def test_costs_are_those_of_the_whole_files(arch: str) -> None:
    study = RECORD["studies"][arch]
    ratios = {"select": 1.2, "merge": 1.06}
    table = costs(study | {"latency": {KEYS[0]: {"ratios": ratios}}}, KEYS[0])
    for outcome, ratio in ratios.items():
        assert table.ratio(dict.fromkeys(table.units, outcome)) == pytest.approx(ratio)  # type: ignore[arg-type]
    # The shares stay.
    before = costs(study | {"latency": {}}, KEYS[0])
    first, second, *_ = table.units
    share = table.units[first]["select"] / table.units[second]["select"]
    assert share == pytest.approx(before.units[first]["select"] / before.units[second]["select"])
