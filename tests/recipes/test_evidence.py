from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes import evidence
from recipes.experiments.page import page
from recipes.experiments.plan import COMPARISONS, EXPERIMENTS, read_records


def test_the_page_says_what_the_records_say() -> None:
    assert evidence.PAGE.read_text(encoding="utf-8") == page(read_records(evidence.RESULTS)), (
        "run python recipes/evidence.py"
    )


def test_plots_and_records_come_in_pairs() -> None:
    plots = {path.stem for path in evidence.PLOTS.glob("*.png")}
    assert plots == read_records(evidence.RESULTS).keys()


def test_one_training_has_one_result_in_all_records() -> None:
    found: dict[tuple[str, str, str], float] = {}
    records = read_records(evidence.RESULTS)
    for item in COMPARISONS.values():
        for network in records.get(item.key, {}).get("networks", []):
            for seed, top1 in network["top1_by_seed"].items():
                run = item.output, network["arch"], seed
                assert found.setdefault(run, top1) == top1, run
    assert found


def test_it_writes_the_page_and_a_plot_for_every_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "PAGE", tmp_path / "evidence.md")
    monkeypatch.setattr(evidence, "PLOTS", tmp_path / "plots")
    assert evidence.main([]) == 0
    assert (tmp_path / "evidence.md").read_text(encoding="utf-8") == page(read_records(evidence.RESULTS))
    plots = list((tmp_path / "plots").glob("*.png"))
    assert {path.stem for path in plots} == read_records(evidence.RESULTS).keys()
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)


def test_the_commands_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert evidence.main(["--commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # The one that is kept from before would be lost.
    assert len(lines) == len(EXPERIMENTS) - 1
    assert not any("_before" in line for line in lines)
    assert all(line.startswith(("python recipes/compare.py", "python recipes/attention.py")) for line in lines)


def test_a_record_of_something_else_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    (tmp_path / f"{EXPERIMENTS[0].key}.json").write_text(json.dumps({"networks": [], "commit": "abc"}))
    assert evidence.main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "has networks [], not [" in error
