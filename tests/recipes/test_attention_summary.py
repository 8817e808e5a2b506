"""The summary of attention over networks: shifts, intervals, groups of units, refused input, table and figure."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from edge_sk.attention import attention_against_scale
from edge_sk.errors import InputError
from recipes.experiments.attention_figure import plot
from recipes.experiments.attention_summary import direction, markdown, summarize
from recipes.experiments.confidence import mean_interval
from tests.scale_units import OneUnit, Pyramid, Units, brightness_batches


def test_the_summary_gives_the_shift_its_sign() -> None:
    model = OneUnit()
    batches = brightness_batches({1.0: 0.5, 1.5: 2.0, 2.0: 6.0})
    result = attention_against_scale(model, batches, lambda images: images, num_classes=3)
    summary = summarize([result], ["a", "b", "c"])
    unit = summary["units"][0]
    assert unit["difference"] == sorted(unit["difference"])
    assert (unit["smaller"], unit["larger"]) == ("3", "3d2")
    assert unit["shift"] > 0
    assert direction(unit) == "larger"
    assert unit["by_class"][0][2] is None
    assert summary["interval_over"] == "images"
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    # Falling brightness moves it the other way.
    falling = attention_against_scale(
        model, brightness_batches({1.0: 6.0, 2.0: 0.5}), lambda images: images, num_classes=2
    )
    assert direction(summarize([falling])["units"][0]) == "smaller"


def test_intervals_over_runs_use_the_runs(tmp_path: Path) -> None:
    model = OneUnit()
    runs = [
        attention_against_scale(
            model, brightness_batches({1.0: 1.0, 2.0: factor}), lambda images: images, num_classes=2
        )
        for factor in (2.0, 3.0, 4.0)
    ]
    summary = summarize(runs)
    shifts = [float((run.by_image[1] - run.by_image[0]).mean()) for run in runs]
    assert (summary["runs"], summary["interval_over"]) == (3, "runs")
    assert summary["units"][0]["shift_ci95"] == pytest.approx(mean_interval(shifts), abs=1e-5)
    # A channel of one network is no channel of another.
    first = runs[0].larger_by_channel[0][1].tolist()
    assert summary["units"][0]["larger_by_channel"][1] == pytest.approx(first, abs=1e-4)
    assert first != pytest.approx(runs[1].larger_by_channel[0][1].tolist(), abs=1e-4)
    table = markdown(summary)
    assert "| `unit` | 12x12 | 3d2 - 3 |" in table
    assert table.count("|") == 8 * 3
    assert "from scale 1 to 2; intervals over 3 networks" in table
    plot(summary, tmp_path / "attention.png", title="one unit")
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_units_are_grouped_by_the_size_of_their_maps() -> None:
    runs = [
        attention_against_scale(
            Units(), brightness_batches({1.0: 1.0, 2.0: factor}), lambda images: images, num_classes=2
        )
        for factor in (2.0, 4.0)
    ]
    assert runs[0].maps == ((12, 12), (12, 12), (6, 6))
    summary = summarize(runs)
    large, small = summary["by_map"]
    assert (large["map"], large["units"]) == ([12, 12], ["first.unit", "second.unit"])
    assert (small["map"], small["units"]) == ([6, 6], ["third.unit"])
    shifts = torch.stack([(run.by_image[1] - run.by_image[0]).mean(0) for run in runs])
    # The two on large maps move apart: their mean hides what the size of their shifts shows.
    assert large["shift"] == pytest.approx(float(shifts[:, :2].mean()), abs=1e-5)
    assert large["shift_ci95"] == pytest.approx(mean_interval(shifts[:, :2].mean(1).tolist()), abs=1e-5)
    assert large["magnitude"] == pytest.approx(float(shifts[:, :2].abs().mean()), abs=1e-5)
    assert abs(large["shift"]) < 0.2 * large["magnitude"]
    assert small["magnitude"] == pytest.approx(abs(small["shift"]), abs=1e-5)


def test_groups_are_of_one_map_size_and_one_pair_of_kernels() -> None:
    batches = brightness_batches({1.0: 1.0, 2.0: 2.0})
    summary = summarize([attention_against_scale(Pyramid(), batches, lambda images: images, num_classes=2)])
    found = [(group["units"], group["larger"]) for group in summary["by_map"]]
    assert found == [(["first.unit", "third.unit"], "3d2"), (["second.unit"], "5")]


def test_of_equal_kernels_none_is_larger() -> None:
    up = {"shift_ci95": [0.1, 0.2]}
    assert direction(up | {"smaller": "3", "larger": "3d2"}) == "larger"
    assert direction(up | {"smaller": "3", "larger": "3"}) == "last"
    assert direction({"shift_ci95": [-0.2, -0.1], "smaller": "5", "larger": "3d2"}) == "first"
    # What the table shows as zero has no direction.
    assert direction({"shift_ci95": [0.0001, 0.0004], "smaller": "3", "larger": "3d2"}) == "not shown"


def test_one_image_of_one_network_has_no_interval() -> None:
    batches = {
        scale: [(images[:1], labels[:1])]
        for scale, ((images, labels), _) in brightness_batches({1.0: 1.0, 2.0: 2.0}).items()
    }
    with pytest.raises(InputError, match="one image of one network has no interval"):
        summarize([attention_against_scale(OneUnit(), batches, lambda images: images, num_classes=2)])


def test_runs_of_different_networks_are_refused() -> None:
    runs = [
        attention_against_scale(OneUnit(), brightness_batches(factors), lambda images: images, num_classes=2)
        for factors in ({1.0: 1.0, 2.0: 1.0}, {1.0: 1.0, 1.5: 1.0})
    ]
    with pytest.raises(InputError, match="the checkpoints were given images of different scales or sizes"):
        summarize(runs)
    other = attention_against_scale(Units(), brightness_batches({1.0: 1.0, 2.0: 1.0}), lambda x: x, num_classes=2)
    with pytest.raises(InputError, match="the checkpoints are of different architectures"):
        summarize([runs[0], other])


def test_no_networks_are_refused() -> None:
    with pytest.raises(InputError, match="there is no network to summarize the attention of"):
        summarize([])


def test_students_interval_against_the_textbook() -> None:
    # Five values of mean 3 and standard deviation sqrt(2.5); t(0.975, 4) = 2.776.
    low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert (low, high) == (pytest.approx(3 - half, abs=1e-5), pytest.approx(3 + half, abs=1e-5))
    assert mean_interval([1.0]) == (-math.inf, math.inf)
