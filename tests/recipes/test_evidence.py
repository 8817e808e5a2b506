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


@pytest.mark.parametrize(("gain", "verdict"), [(2.0, "better"), (-2.0, "worse"), (0.0, "no difference shown")])
def test_the_answers_follow_the_intervals(
    gain: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    monkeypatch.setattr(evidence, "PAGE", tmp_path / "evidence.md")
    monkeypatch.setattr(evidence, "PLOTS", tmp_path / "plots")
    (tmp_path / "compare_shufflenetv2_0.5.json").write_text(json.dumps(record(gain)))
    assert evidence.main([]) == 0
    page = (tmp_path / "evidence.md").read_text()
    assert f"`sk_shufflenetv2_0.5` against `shufflenetv2_0.5`: {gain:+.2f} points, 95 % CI [" in page
    sentence = next(line for line in page.splitlines() if "against `shufflenetv2_0.5`" in line)
    assert sentence.endswith(f"**{verdict}**.")
    # SE gained the same here, so that there is nothing between them.
    sentence = next(line for line in page.splitlines() if "against `se_shufflenetv2_0.5`" in line)
    assert sentence.endswith("**no difference shown**.")
    assert (tmp_path / "plots" / "compare_shufflenetv2_0.5.png").is_file()
    assert page.count("Not run yet.") == len(evidence.COMPARISONS) + len(evidence.WATCHED) - 1


@pytest.mark.parametrize("item", evidence.COMPARISONS, ids=lambda item: item.key)
def test_the_commands_of_the_comparisons_resolve(
    item: evidence.Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = parse_compare(item.command[1:])
    assert args.arch == list(item.archs)
    assert item.of_interest in item.archs
    assert args.seeds == list(evidence.SEEDS)
    assert run_compare([*item.command[1:], "--output", str(tmp_path), "--dry-run"]) == 0
    output = capsys.readouterr()
    assert "warning" not in output.err
    assert output.out.count("to train") == 5 * len(item.archs)


def test_the_attention_commands_name_runs_of_the_comparisons() -> None:
    for item in evidence.WATCHED:
        args = parse_attention(item.command[1:])
        assert item.arch in item.trained.archs
        assert {str(Path(folder).parents[1]) for folder in args.checkpoint} == {item.trained.output}
        names = [f"{item.arch}-seed{seed}" for seed in range(5)]
        assert [Path(folder).name for folder in args.checkpoint] == names
        assert any(isinstance(m, edge_sk.SelectiveKernel) for m in edge_sk.create_model(item.arch).modules())
