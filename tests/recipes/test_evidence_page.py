"""What the page says follows from the numbers in the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_sk.training import glyphs
from recipes.evidence import plot
from recipes.experiments.comparison import Finished, compare
from recipes.experiments.page import half_width, page
from recipes.experiments.plan import ATTENTION, COMPARISONS
from recipes.planning import load_recipe

KEY = "glyphs_shufflenetv2_0.5"
PLAIN, SK, WIDE = COMPARISONS[KEY].archs
NOISE = [0.1, -0.1, 0.2, -0.2, 0.0]
RATIOS = {KEY: {PLAIN: 1.0, SK: 1.11, WIDE: 1.1}}


def record(gains: dict[str, float], *, seeds: int = 5) -> dict[str, Any]:
    """A record in which each network gains so many points, and those that gain something give or take."""
    results = {
        arch: {seed: Finished(70 + seed + gain + (NOISE[seed] if gain else 0), 60.0) for seed in range(seeds)}
        for arch, gain in gains.items()
    }
    costs = {}
    for arch, gain in gains.items():
        # The whole gain is in the third bin, for all seeds alike.
        bins = {str(seed): [50.0 + seed, 60.0 + seed, 70.0 + seed + 4 * gain, 80.0 + seed] for seed in range(seeds)}
        costs[arch] = {"params": 350_000, "macs": 7_000_000, "top1_by_scale": bins}
    return {"networks": compare(results, costs), "trained_at": ["abc"]}


def test_without_records_it_says_so_everywhere() -> None:
    text = page({}, {})
    assert text.count("not run yet") == 2 + len(COMPARISONS) + 1
    assert text.count("Not run yet.") == 5 + 2
    assert "*s* is not measured yet" in text
    assert "pareto.png" not in text


@pytest.mark.parametrize(
    ("gain", "shown", "said", "advice"),
    [
        (2.0, "**+2.00** [", "ahead of", "SK is worth its latency"),
        (-2.0, "**-2.00** [", "behind", "a wider plain network is the better choice"),
        (
            0.0,
            "+0.00 [",
            "not shown to differ from",
            "neither is shown to be better, and a wider plain network is simpler",
        ),
    ],
)
def test_the_answers_follow_the_intervals(gain: float, shown: str, said: str, advice: str) -> None:
    text = page({KEY: record({PLAIN: 0.0, SK: gain, WIDE: 0.0})}, RATIOS)
    assert f"- **In short:** ShuffleNetV2 0.5x: {advice}." in text
    assert f"- **Does SK help?** ShuffleNetV2 0.5x: {said} the network *plain* ({shown}" in text
    assert f"wider plain network?** ShuffleNetV2 0.5x: {said} the network *plain, as large as SK*" in text
    assert "two kernels?** Not run yet." in text
    row = next(line for line in text.splitlines() if line.startswith("| ShuffleNetV2 0.5x: SK |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == [f"`{SK}`", "5", f"{72 + gain:.2f}"]
    assert cells[4].startswith(shown)
    assert cells[5:] == ["", "1.11", "0.350 M"]
    assert "15 of 15 runs" in text


def test_networks_of_two_comparisons_are_compared_with_sk() -> None:
    equal = "sk_shufflenetv2_0.5@kernels=3+3"
    controls = record({PLAIN: 0.0, equal: 1.0})
    text = page({KEY: record({PLAIN: 0.0, SK: 1.0}), f"{KEY}_controls": controls}, {})
    row = next(line for line in text.splitlines() if f"`{equal}`" in line and line.startswith("| Shuffle"))
    assert [cell.strip() for cell in row.split("|")][4:8] == [
        "73.00",
        "**+1.00** [+0.80, +1.20]",
        "+0.00 [+0.00, +0.00]",
        "not measured",
    ]
    assert text.count("| ShuffleNetV2 0.5x: plain |") == 2  # in the table, and by scale


def test_one_seed_is_called_one() -> None:
    text = page({KEY: record({PLAIN: 0.0, SK: 1.0}, seeds=1)}, RATIOS)
    assert "not shown to differ from the network *plain* (+1.10 (one seed) points, 1 seed)" in text


def test_accuracy_by_scale_is_paired() -> None:
    text = page({KEY: record({PLAIN: 0.0, SK: 0.5})}, {})
    plain = "| ShuffleNetV2 0.5x: plain | 52.00 | 62.00 | 72.00 | 82.00 |"
    minus = (
        "| ShuffleNetV2 0.5x: SK minus plain | +0.00 [+0.00, +0.00] | +0.00 [+0.00, +0.00] | **+2.00** [+2.00, +2.00] |"
    )
    assert plain in text
    assert minus in text
    assert "|  | 0.15 to 0.24 | 0.24 to 0.38 | 0.38 to 0.60 | 0.60 to 0.95 |" in text


def test_power_is_students() -> None:
    # t(0.975, 4) / sqrt(5) and t(0.975, 11) / sqrt(12)
    assert half_width(5) == pytest.approx(2.776445 / 5**0.5, abs=1e-5)
    assert half_width(12) == pytest.approx(2.200985 / 12**0.5, abs=1e-5)
    text = " ".join(page({KEY: record({PLAIN: 0.0, SK: 1.0})}, {}).split())
    # The noise has a standard deviation of sqrt(0.025) = 0.158.
    assert (
        "So far *s* is 0.16 (median over the networks): 5 seeds show 0.20 points, and half a point needs 3 seeds."
        in text
    )


@pytest.mark.parametrize(("shift", "moved"), [(0.2, "larger"), (-0.2, "smaller"), (0.05, "not shown")])
def test_where_the_attention_moved(shift: float, moved: str) -> None:
    group = {"map": [6, 6], "units": ["a", "b"], "smaller": "3", "larger": "3d2", "shift": shift}
    group["shift_ci95"] = [shift - 0.1, shift + 0.1]
    text = page({ATTENTION[SK][0]: {"by_map": [group]}}, {})
    assert f"| `{SK}`, SK | 6x6 | 2 | {shift:+.3f} [{shift - 0.1:+.3f}, {shift + 0.1:+.3f}] | {moved} |" in text


def test_the_plot_shows_what_was_measured(tmp_path: Path) -> None:
    plot({KEY: record({PLAIN: 0.0, SK: 1.0, WIDE: 0.5})}, RATIOS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_method_counts_rightly() -> None:
    method = " ".join(page({}, {}).split())
    recipe = load_recipe("scaled_glyphs")
    faces = sum(map(len, glyphs.TYPEFACES.values()))
    for said in (
        f"{len(glyphs.CLASSES)} letters and digits of {faces} typefaces",
        f"{glyphs.IMAGES['test']:,} test images",
        f"{glyphs.IMAGES['validation']:,} validation images",
        f"{recipe.schedule.epochs * glyphs.IMAGES['train']:,} images",
        f"batches of {recipe.data.batch_size}",
        f"drawn at {glyphs.SCALES[0]} to {glyphs.SCALES[1]} of a {glyphs.CANVAS}-pixel canvas",
    ):
        assert said in method
