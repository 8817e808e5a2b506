from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edge_sk.training.digits import DRAWINGS, digits
from recipes.experiments.comparison import Finished, compare
from recipes.experiments.page import anchor, page
from recipes.experiments.plan import ATTENTION, COMPARISONS, read_records

SMALL, SMALL_FIRST, KERNELS = (
    COMPARISONS[f"compare_{name}"] for name in ("shufflenetv2_0.5", "shufflenetv2_0.5_before", "kernels")
)
SK = "sk_shufflenetv2_0.5@act=relu"

RESULTS = Path(__file__).parents[2] / "recipes" / "results"
NOISE = [0.1, -0.1, 0.2, -0.2, 0.0]


def comparison(gains: dict[str, float]) -> dict[str, Any]:
    """A record in which each network gains so many points, and those that gain something give or take."""
    results = {
        arch: {seed: Finished(80 + seed + gain + (NOISE[seed] if gain else 0), 60.0) for seed in range(5)}
        for arch, gain in gains.items()
    }
    networks = compare(results, {arch: {"params": 350_000, "macs": 7_000_000} for arch in gains})
    return {"data": "scaled_digits", "epochs": 5, "seeds": list(range(5)), "networks": networks, "trained_at": ["abc"]}


def test_without_records_it_says_so_everywhere() -> None:
    text = page({})
    assert "**Does SK pay?** Not run yet." in text
    assert text.count("Not run yet.") == 2 + len(COMPARISONS) + len(ATTENTION)


@pytest.mark.parametrize(
    ("gain", "shown", "counted"),
    [
        (2.0, "**+2.00** [", "better in 1 of 1"),
        (-2.0, "**-2.00** [", "worse in 1 of 1"),
        (0.0, "+0.00 [", "not shown in 1 of 1"),
    ],
)
def test_the_answers_follow_the_intervals(gain: float, shown: str, counted: str) -> None:
    gains = dict.fromkeys(SMALL.archs, 0.0) | {SK: gain}
    text = page({SMALL.key: comparison(gains)})
    assert f"- against the plain network: {counted}\n" in text
    assert text.count(f": {counted}\n") == 5
    row = next(line for line in text.splitlines() if line.startswith("| `sk_shufflenetv2_0.5@act=relu` | 5 | 5 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 4 + 5
    assert all(cell.startswith(shown) for cell in cells[4:])
    assert text.count("Not run yet.") == 1 + len(COMPARISONS) + len(ATTENTION) - 1


def test_selection_is_held_against_the_sum_of_the_same_kernels() -> None:
    gains = {arch: 3.0 if "SK" in label else 1.0 for arch, label in KERNELS.archs.items()}
    text = page({KERNELS.key: comparison(gains)})
    assert "half of its intervals reach 0.0 points or more" in text
    for name in ("K3 + K5", "K3 + K7", "K5 + K7", "K3 + K5 + K7"):
        assert f"| {name} | 83.00 | 85.00 | **+2.00** [+2.00, +2.00] |" in text
    # The paper's Table 7.
    assert "| K3 + K7 | 83.00 | 85.00 | **+2.00** [+2.00, +2.00] | 21.82 / 20.97 |" in text


def test_what_was_trained_twice_is_held_against_itself_and_counted_once() -> None:
    again = comparison(dict.fromkeys(SMALL.archs, 0.0))
    before = comparison(dict.fromkeys(SMALL_FIRST.archs, 0.0) | {SK: 3.0})
    text = page({SMALL.key: again, SMALL_FIRST.key: before})
    assert "| SK | 85.00 | 82.00 | **-3.00** [" in text
    assert "| plain | 82.00 | 82.00 | +0.00 [+0.00, +0.00] |" in text
    # Of 20 runs, 15 are the same; 3 points and the most of the noise.
    assert "Run by run they differ by 0.0 points in the median and by up to 3.2." in text
    assert "| `sk_shufflenetv2_0.5@act=relu`, trained before | 5 | 5 | 85.00 | **+3.00**" in text
    assert "- against the plain network: not shown in 1 of 1\n" in text


def test_what_the_note_on_the_first_training_says_is_in_records() -> None:
    again = json.loads((RESULTS / "compare_shufflenetv2_0.5_before_sum.json").read_text())
    (summed,) = again["networks"]
    before = {entry["arch"]: entry for entry in read_records(RESULTS)[SMALL_FIRST.key]["networks"]}[summed["arch"]]
    once, then = ([f"{entry['top1_by_seed'][seed]:.2f}" for seed in "01"] for entry in (summed, before))
    assert f"came to {once[0]} and {once[1]} " in SMALL_FIRST.note
    assert f"not to the earlier {then[0]} and {then[1]}" in SMALL_FIRST.note
    assert again["commit"] == SMALL_FIRST.code


def test_links_lead_somewhere() -> None:
    text = page(read_records(RESULTS))
    headings = {anchor(line.lstrip("# ")) for line in text.splitlines() if line.startswith("#")}
    links = re.findall(r"\(#([^)]+)\)", text)
    assert "shufflenetv2_05-15-epochs-plain-sk" in headings
    assert len(links) > 2
    assert set(links) <= headings


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
            "to the larger kernel in 1 (6x6 of `sk_shufflenetv2_0.5@act=relu`), to the smaller kernel in 0, "
            "not shown in 0 of 1",
            "**+0.200** [+0.100, +0.300] | 0.200 | larger 2",
        ),
        (
            -0.2,
            "to the larger kernel in 0, to the smaller kernel in 1, not shown in 0 of 1",
            "**-0.200** [-0.300, -0.100] | 0.200 | smaller 2",
        ),
        (
            0.05,
            "to the larger kernel in 0, to the smaller kernel in 0, not shown in 1 of 1",
            "+0.050 [-0.050, +0.150] | 0.050 | not shown 2",
        ),
    ],
)
def test_where_the_attention_moved(shift: float, counted: str, cells: str) -> None:
    sk = next(item for item in ATTENTION if item.comparison is SMALL and not item.is_control)
    control = next(item for item in ATTENTION if item.is_control)
    text = page({sk.key: attention(shift), control.key: attention(0.3, equal=True)})
    assert f"By the mean shift over the units of one map size: {counted}. In the controls" in text
    assert "a shift to one of the two is shown in 1 of 1." in text
    assert f"| `sk_shufflenetv2_0.5@act=relu` | 6x6 | 2 | +0.000 | {shift:+.3f} | {cells} |" in text
    # Of two equal kernels none is larger.
    assert "control: equal kernels | 6x6 | 2 | +0.000 | +0.300 | **+0.300** [+0.200, +0.400] | 0.300 | last 2 |" in text


def test_the_method_counts_the_images_rightly() -> None:
    method = " ".join(page({}).split())
    for split in ("train", "test"):
        count = len(digits(split)[0])
        assert f"{count * DRAWINGS[split]:,} {'training' if split == 'train' else 'test'} images of {count:,}" in method
