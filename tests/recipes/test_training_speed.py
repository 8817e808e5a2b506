from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from recipes.training_speed import clock, main

ROOT = Path(__file__).parents[2]
MEMORY = ("edge_sk/plain", "edge_sk/plain, torch's ReLU6", "edge_sk/textbook", "edge_sk/textbook, one unit")


def test_the_page_shows_the_records_figures() -> None:
    record = json.loads((ROOT / "recipes" / "results" / "training_speed.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert record["command"] in page
    rows = [
        [
            one["arch"],
            *(
                f"{one['step_ratio'][pair]['median']:.2f}"
                for pair in ("edge_sk/plain", "textbook/plain", "edge_sk/textbook")
            ),
            *(f"{one['memory_ratio'][pair]:.2f}" for pair in MEMORY),
        ]
        for one in record["results"]
    ]
    table = page.split("one unit |\n")[1].split("\n\n")[0]
    assert [row.strip("| ").split(" | ") for row in table.splitlines()[1:]] == rows
    settings = record["settings"]
    assert (settings["compile"], settings["channels_last"], settings["threads"]) == (False, True, 1)
    said = f"Eager, channels last, batch of {settings['batch_size']} at {settings['input_size']} px, one thread"
    assert said in " ".join(page.split())


@pytest.mark.parametrize(("form", "most"), [("", 0.8), ("@act=relu", 0.75)])
def test_measures_time_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, most: float) -> None:
    sizes = ["--batch-size", "2", "--input-size", "32", "--rounds", "1", "--warmup", "0"]
    assert main(["--arch", f"sk_shufflenetv2_0.5{form}", *sizes, "--output", str(tmp_path / "record.json")]) == 0
    (one,) = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))["results"]
    assert json.loads(capsys.readouterr().out)["results"] == [one]
    assert one["step_ratio"]["edge_sk/plain"]["median"] > 0
    # The unit's own maps and nothing like the textbook's stack; without ReLU one map of their difference.
    assert 0.5 < one["memory_ratio"]["edge_sk/textbook, one unit"] < most


@pytest.mark.parametrize(("threads", "seconds"), [(1, 1.0), (2, 5.0)])
def test_the_waiting_of_several_threads_does_not_count(
    threads: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("time.process_time", lambda: 1.0)
    monkeypatch.setattr("time.perf_counter", lambda: 5.0)
    assert clock("cpu") == seconds


def test_a_network_without_sk_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--arch", "shufflenetv2_0.5"]) == 2
    assert re.search("no plain network to compare with", capsys.readouterr().err)
