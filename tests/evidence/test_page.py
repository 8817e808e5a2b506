from __future__ import annotations

from typing import Any

import pytest

from edge_sk.evidence.experiments import COMPARISONS, KERNELS, SMALL, SUMMED_AND_SELECTED, WATCHED
from edge_sk.evidence.page import METHOD, page
from edge_sk.training.comparison import Finished, compare
from edge_sk.training.digits import digits
from edge_sk.training.scaled_digits import DRAWINGS

NOISE = [0.1, -0.1, 0.2, -0.2, 0.0]


def comparison(gains: dict[str, float]) -> dict[str, Any]:
    """A record in which each network gains so many points, and those that gain something give or take."""
    results = {
        arch: {seed: Finished(80 + seed + gain + (NOISE[seed] if gain else 0), 60.0) for seed in range(5)}
        for arch, gain in gains.items()
    }
    networks = compare(results, dict.fromkeys(gains, (350_000, 7_000_000)))
    return {"data": "scaled_digits", "epochs": 5, "seeds": list(range(5)), "networks": networks, "trained_at": ["abc"]}


def test_without_records_it_says_so_everywhere() -> None:
    text = page({})
    assert "**Does SK pay?** Not run yet." in text
    assert text.count("Not run yet.") == 2 + len(COMPARISONS) + len(WATCHED)


@pytest.mark.parametrize(
    ("gain", "shown", "counted"),
    [
        (2.0, "**+2.00** [", "better in 1, worse in 0, no difference shown in 0"),
        (-2.0, "**-2.00** [", "better in 0, worse in 1, no difference shown in 0"),
        (0.0, "+0.00 [", "better in 0, worse in 0, no difference shown in 1"),
    ],
)
def test_the_answers_follow_the_intervals(gain: float, shown: str, counted: str) -> None:
    gains = dict.fromkeys(SMALL.archs, 0.0) | {SMALL.selective: gain}
    text = page({SMALL.key: comparison(gains)})
    assert f"Against the plain network: {counted} of the comparisons below" in text
    row = next(line for line in text.splitlines() if line.startswith("| `sk_shufflenetv2_0.5` | 5 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 3 + 5
    assert all(cell.startswith(shown) for cell in cells[3:])
    assert text.count("Not run yet.") == 1 + len(COMPARISONS) + len(WATCHED) - 1


def test_selection_is_held_against_the_sum_of_the_same_kernels() -> None:
    gains = {arch: 3.0 if "SK" in meaning else 1.0 for arch, meaning in KERNELS.archs.items()}
    text = page({KERNELS.key: comparison(gains)})
    assert "3 seeds only: half of the intervals reach 0.0 points or more" in text
    for name in SUMMED_AND_SELECTED:
        assert f"| {name} | **+2.00** [+2.00, +2.00] |" in text


def attention(shift: float, *, equal: bool = False) -> dict[str, Any]:
    kernels = {"smaller": "3", "larger": "3" if equal else "3d2"}
    interval = {"shift": shift, "shift_ci95": [shift - 0.1, shift + 0.1]}
    units = [{"name": name, "map": [6, 6], "difference": [0.0, shift], **kernels, **interval} for name in ("a", "b")]
    group = {"map": [6, 6], "units": ["a", "b"], "magnitude": abs(shift), **kernels, **interval}
    common = {"scales": [0.25, 1.0], "runs": 5, "interval_over": "runs", "trained_at": ["abc"]}
    return common | {"units": units, "by_map": [group]}


@pytest.mark.parametrize(
    ("shift", "counted", "cells"),
    [
        (
            0.2,
            "to the larger kernel in 1, to the smaller in 0, neither in 0",
            "**+0.200** [+0.100, +0.300] | 0.200 | 2 larger",
        ),
        (
            -0.2,
            "to the larger kernel in 0, to the smaller in 1, neither in 0",
            "**-0.200** [-0.300, -0.100] | 0.200 | 2 smaller",
        ),
        (
            0.05,
            "to the larger kernel in 0, to the smaller in 0, neither in 1",
            "+0.050 [-0.050, +0.150] | 0.050 | 2 neither",
        ),
    ],
)
def test_where_the_attention_moved(shift: float, counted: str, cells: str) -> None:
    sk = next(item for item in WATCHED if item.trained is SMALL and not item.is_control)
    control = next(item for item in WATCHED if item.is_control)
    text = page({sk.key: attention(shift), control.key: attention(0.3, equal=True)})
    assert f"controls left out: {counted}." in text
    assert f"| `sk_shufflenetv2_0.5` | 6x6 | 2 | {cells} |" in text
    # Of two equal kernels none is larger.
    assert "control: equal kernels | 6x6 | 2 | **+0.300** [+0.200, +0.400] | 0.300 | 2 second |" in text


def test_the_method_counts_the_images_rightly() -> None:
    for split in ("train", "test"):
        count = len(digits(split)[0])
        assert f"{count * DRAWINGS[split]:,} {'training' if split == 'train' else 'test'} images of {count:,}" in METHOD
