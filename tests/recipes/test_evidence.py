from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import edge_sk
from edge_sk.training.comparison import Finished, compare
from recipes import evidence
from recipes.attention import parse as parse_attention
from recipes.compare import main as run_compare
from recipes.compare import parse as parse_compare


def record(gain: float) -> dict[str, Any]:
    """A record in which SK gains ``gain`` points over plain, give or take, and nothing over SE."""
    archs = list(evidence.COMPARISONS[0].archs)
    gains = dict(zip(archs, (0.0, gain, 0.0, 0.0, gain), strict=True))
    noise = [0.1, -0.1, 0.2, -0.2, 0.0]
    results = {
        arch: {
            seed: Finished(80 + seed + gains[arch] + (noise[seed] if arch == archs[-1] else 0), 60.0)
            for seed in range(5)
        }
        for arch in archs
    }
    costs = dict.fromkeys(archs, (350_000, 7_000_000))
    return {"data": "scaled_digits", "epochs": 5, "seeds": list(range(5)), "networks": compare(results, costs)}


def test_the_page_says_what_the_records_say() -> None:
    assert evidence.PAGE.read_text(encoding="utf-8") == evidence.page(), "run python recipes/evidence.py"


def test_plots_and_records_come_in_pairs() -> None:
    keys = [f"compare_{item.key}" for item in evidence.COMPARISONS] + [item.key for item in evidence.WATCHED]
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert (evidence.RESULTS / f"{key}.json").is_file() == (evidence.PLOTS / f"{key}.png").is_file(), key


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records, page and plots in a folder of their own."""
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    monkeypatch.setattr(evidence, "PAGE", tmp_path / "evidence.md")
    monkeypatch.setattr(evidence, "PLOTS", tmp_path / "plots")
    return tmp_path


@pytest.mark.parametrize(
    ("gain", "shown", "counted"),
    [
        (2.0, "**+2.00** [", "better in 1 of 1 comparisons, worse in 0, no difference shown in 0"),
        (-2.0, "**-2.00** [", "better in 0 of 1 comparisons, worse in 1, no difference shown in 0"),
        (0.0, "+0.00 [", "better in 0 of 1 comparisons, worse in 0, no difference shown in 1"),
    ],
)
def test_the_answers_follow_the_intervals(gain: float, shown: str, counted: str, elsewhere: Path) -> None:
    (elsewhere / "compare_shufflenetv2_0.5.json").write_text(json.dumps(record(gain)))
    assert evidence.main([]) == 0
    page = (elsewhere / "evidence.md").read_text()
    assert counted in page
    row = next(line for line in page.splitlines() if line.startswith("| `sk_shufflenetv2_0.5` | 5 |"))
    _, _, _, _, plain, se, *_ = (cell.strip() for cell in row.split("|"))
    assert plain.startswith(shown)
    # SE gained the same here, so that there is nothing between them.
    assert se.startswith("+0.00 [")
    assert (elsewhere / "plots" / "compare_shufflenetv2_0.5.png").is_file()
    assert page.count("Not run yet.") == len(evidence.COMPARISONS) + len(evidence.WATCHED) - 1


def test_selection_is_held_against_the_sum_of_the_same_kernels(elsewhere: Path) -> None:
    gains = {arch: 3.0 if "SK" in meaning else 1.0 for arch, meaning in evidence.KERNELS.archs.items()}
    results = {arch: {seed: Finished(80 + seed + gain, 60.0) for seed in (0, 1)} for arch, gain in gains.items()}
    entries = compare(results, dict.fromkeys(gains, (350_000, 7_000_000)))
    kernels = {"data": "scaled_digits", "epochs": 5, "seeds": [0, 1], "networks": entries}
    (elsewhere / "compare_kernels.json").write_text(json.dumps(kernels))
    page = evidence.page()
    for name in evidence.SUMMED_AND_SELECTED:
        assert f"| {name} | **+2.00** [+2.00, +2.00] |" in page


def test_directions_are_counted_by_depth() -> None:
    ways = {"larger": [0.1, 0.2], "smaller": [-0.2, -0.1], "neither": [-0.1, 0.1]}
    depth = ["larger", "larger", "neither", "smaller", "larger", "neither", "neither"]
    assert [
        (place, len(part), sentence)
        for place, part, sentence in evidence.directions([{"shift_ci95": ways[way]} for way in depth])
    ] == [
        ("first", 3, "2 larger, 0 smaller, 1 neither"),
        ("middle", 3, "1 larger, 1 smaller, 1 neither"),
        ("last", 1, "0 larger, 0 smaller, 1 neither"),
    ]


@pytest.mark.parametrize("item", evidence.COMPARISONS, ids=lambda item: item.key)
def test_the_commands_of_the_comparisons_resolve(
    item: evidence.Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = parse_compare(item.command[1:])
    assert args.arch == list(item.archs)
    assert item.of_interest in item.archs
    assert args.seeds == list(item.seeds)
    assert run_compare([*item.command[1:], "--output", str(tmp_path), "--dry-run"]) == 0
    output = capsys.readouterr()
    assert "warning" not in output.err
    assert output.out.count("to train") == len(item.seeds) * len(item.archs)


def test_the_attention_commands_name_runs_of_the_comparisons() -> None:
    for item in evidence.WATCHED:
        args = parse_attention(item.command[1:])
        assert item.arch in item.trained.archs
        assert {str(Path(folder).parents[1]) for folder in args.checkpoint} == {item.trained.output}
        names = [f"{item.arch}-seed{seed}" for seed in item.trained.seeds]
        assert [Path(folder).name for folder in args.checkpoint] == names
        assert any(isinstance(m, edge_sk.SelectiveKernel) for m in edge_sk.create_model(item.arch).modules())
