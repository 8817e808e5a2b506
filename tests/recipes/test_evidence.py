"""The page in docs is the one that the records give, and a record of something else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes import evidence
from recipes.experiments.page import page
from recipes.experiments.plan import COMPARISONS, commands, read_ratios, read_records


def test_the_page_says_what_the_records_say() -> None:
    found = page(read_records(evidence.RESULTS), read_ratios(evidence.RESULTS))
    assert evidence.PAGE.read_text(encoding="utf-8") == found, "run python recipes/evidence.py"
    assert evidence.PLOT.is_file() == ("evidence/pareto.png" in found)


def test_one_training_has_one_result_in_all_records() -> None:
    found: dict[tuple[str, str, str], float] = {}
    for key, record in read_records(evidence.RESULTS).items():
        for network in record["networks"] if key in COMPARISONS else ():
            for seed, top1 in network["top1_by_seed"].items():
                run = COMPARISONS[key].runs, network["arch"], seed
                assert found.setdefault(run, top1) == top1, run


def test_the_commands_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert evidence.main(["--commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(commands())
    assert evidence.main(["--commands", "--finished"]) == 0
    finished = capsys.readouterr().out.splitlines()
    for line, other in zip(lines, finished, strict=True):
        assert other == (f"{line} --finished" if "compare.py" in line else line)


def test_a_record_of_something_else_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    monkeypatch.setattr(evidence, "PAGE", tmp_path / "evidence.md")
    key, item = next(iter(COMPARISONS.items()))
    good = {"networks": [], "data": "scaled_glyphs", "recipe": "scaled_glyphs", "set": [], "input_differences": {}}
    archs = [{"arch": arch} for arch in item.archs]
    for wrong, message in (
        ({"networks": []}, "is of [] and"),
        ({"networks": archs[1:]}, "is of ["),
        ({"networks": archs[::-1]}, "is of ["),
        ({"networks": archs, "data": "digits"}, "'data': 'digits'"),
        ({"networks": archs, "set": ["optim.lr=1"]}, f"not of {key}"),
        ({"networks": [{}]}, "is damaged (KeyError: 'arch'); make it again: python recipes/compare.py --arch"),
    ):
        (tmp_path / f"{key}.json").write_text(json.dumps(good | wrong))
        assert evidence.main([]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "evidence.md").exists()
    (tmp_path / f"{key}.json").write_text("[")
    assert evidence.main([]) == 2
    assert f"{key}.json is not JSON" in capsys.readouterr().err
