"""A budget takes the sites whose measured cost fits, those of the middle stages first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edge_sk
from edge_sk import InputError


def block(stride: int) -> list[nn.Module]:
    return [nn.Conv2d(4, 4, 3, stride, 1, groups=4), nn.BatchNorm2d(4), nn.ReLU()]


@pytest.fixture
def network() -> nn.Sequential:
    """Sites ``0``, ``3``, ... at strides 2, 4, 8, 16 and 32: stages 0 to 4."""
    model = nn.Sequential(*(layer for _ in range(5) for layer in block(2)))
    model[0] = nn.Conv2d(4, 4, 3, 2, 1, groups=4)
    return model


SITES = ("0", "3", "6", "9", "12")


def table(*micros: float) -> dict[str, Any]:
    return {"plain": 100.0, "units": {name: {"select": cost} for name, cost in zip(SITES, micros, strict=True)}}


@pytest.mark.parametrize(
    ("budget", "micros", "taken"),
    [
        (1.05, (5, 5, 5, 5, 5), ["6"]),  # stride 8 first
        (1.10, (5, 5, 5, 5, 5), ["6", "9"]),
        (1.15, (5, 5, 5, 5, 5), ["3", "6", "9"]),
        (1.20, (5, 5, 5, 5, 5), ["0", "3", "6", "9"]),
        (1.30, (5, 5, 5, 5, 5), [*SITES]),
        (1.10, (3, 20, 30, 4, 3), ["0", "9", "12"]),  # what does not fit is left out, what comes later may
        (1.001, (5, 5, 5, 0, 5), ["9"]),
    ],
)
def test_middle_stages_come_first_as_long_as_they_fit(
    budget: float, micros: tuple[float, ...], taken: list[str], network: nn.Sequential, tmp_path: Path
) -> None:
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(table(*micros)))
    grafted, report = edge_sk.graft(network, budget=budget, costs=file, input_size=(4, 64, 64))
    assert [site.name for site in report.replaced] == taken
    assert {item.name: item.reason for item in report.left} == dict.fromkeys(
        {*SITES} - {*taken}, f"beyond budget={budget}"
    )
    torch.manual_seed(0)
    same, _ = edge_sk.graft(network, where=lambda site: site.name in taken, input_size=(4, 64, 64))
    assert [name for name, _ in grafted.named_modules()] == [name for name, _ in same.named_modules()]


def test_budgets_count_what_where_chose(network: nn.Sequential) -> None:
    where = edge_sk.grafting.stages(3, 4)
    _, report = edge_sk.graft(network, where=where, budget=1.05, costs=table(1, 1, 1, 9, 5), input_size=(4, 64, 64))
    assert [site.name for site in report.replaced] == ["12"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": 1.10}, "budget= needs costs=.* deploy/unit_costs.py"),
        ({"costs": table(5, 5, 5, 5, 5)}, "costs= goes with budget="),
        ({"budget": 1.0, "costs": table(5, 5, 5, 5, 5)}, "budget=1.0 is not a share .* above 1"),
        ({"budget": "1.1", "costs": table(5, 5, 5, 5, 5)}, "budget='1.1' is not a share"),
        ({"budget": float("nan"), "costs": table(5, 5, 5, 5, 5)}, "budget=nan is not a share"),
        ({"budget": 1.02, "costs": table(5, 7, 9, 4, 5)}, r"pays for no site: the smallest ratio that does is 1\.040"),
        ({"budget": 1.1, "costs": {"plain": 1.0, "units": {}}}, "costs has no unit 0: it was measured on another"),
        ({"budget": 1.1, "costs": "nowhere.json"}, "no costs at nowhere.json"),
        ({"budget": 1.1, "costs": {"plain": 1.0, "units": {name: {"cut": 0} for name in SITES}}}, "give select too"),
    ],
)
def test_bad_input(given: dict[str, Any], message: str, network: nn.Sequential) -> None:
    with pytest.raises(InputError, match=message):
        edge_sk.graft(network, input_size=(4, 64, 64), **given)
