"""The committed tables say what a fresh count says; every difference is explained; the plot is drawn; bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recipes.paper.plot import plot
from recipes.paper.tables import TABLES, compute, increments, unexplained
from recipes.paper.text import markdown
from recipes.paper_tables import main

ROOT = Path(__file__).resolve().parents[2]
BY_KEY = {table.key: table for table in TABLES}
# The large networks take most of the time: their tables are for the slow run, SKNet-50 is in Table 3.
TABLES_TO_CHECK = [
    pytest.param(table, id=table.key, marks=() if table.key in ("1", "3", "4", "5") else pytest.mark.slow)
    for table in TABLES
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("table", TABLES_TO_CHECK)
def test_committed_files_equal_a_fresh_count(table):
    committed = (ROOT / "recipes/paper_tables.md").read_text(encoding="utf-8")
    section = markdown([table]).split("\n## ", 1)[1]
    renew = "the tables changed: look, then run `python recipes/paper_tables.py --write`"
    assert section in committed, renew
    record = json.loads((ROOT / "recipes/results/paper_tables.json").read_text(encoding="utf-8"))
    stored = next(one for one in record["tables"] if one["table"] == table.key)
    assert stored == json.loads(json.dumps(compute(table))), renew
    if table.key == "4":
        assert record["table4_increments"] == increments(), renew


@pytest.mark.parametrize("table", TABLES_TO_CHECK)
def test_differences_are_small_or_explained(table):
    assert unexplained(compute(table)) == []


def test_an_unexplained_difference_is_found():
    row = {"name": "x", "arch": "resnext50", "difference_pct": {"params": 1.1, "macs": 0.0}, "note": ""}
    assert unexplained({"rows": [row]}) == ["x"]
    assert unexplained({"rows": [row | {"difference_pct": {"params": 0.9, "macs": -2.1}}]}) == ["x"]
    assert unexplained({"rows": [row | {"difference_pct": {"params": 0.9, "macs": -1.9}}]}) == []
    assert unexplained({"rows": [row | {"note": "why"}]}) == []


def test_the_whole_file_is_of_this_script():
    committed = (ROOT / "recipes/paper_tables.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## Table (\S+): (.*)$", committed, flags=re.MULTILINE)
    assert titles == [(table.key, table.title) for table in TABLES]


def test_figures_that_are_quoted_from_memory_are_marked():
    committed = (ROOT / "recipes/paper_tables.md").read_text(encoding="utf-8")
    line = next(line for line in committed.splitlines() if line.startswith("| ShuffleNetV2 1.0x (the author's)"))
    assert "2.45 †" in line
    assert "140.35 †" in line
    assert "30.57 |" in line


def test_selective_kernels_cost_what_table_4_says_they_add():
    """Parameters to the paper's last digit; MACs only once elementwise work is added to ours."""
    for row in increments():
        if row["name"].endswith("SK"):
            assert row["ours"]["params_m"] == pytest.approx(row["paper"]["params_m"], abs=0.006)
            assert row["ours"]["mmacs_with_elementwise"] == pytest.approx(row["paper"]["mmacs"], rel=0.03)


def test_command_prints_text_json_and_markdown(capsys):
    assert main(["--tables", "3"]) == 0
    assert "ResNeXt-56, deeper" in capsys.readouterr().out
    assert main(["--tables", "3", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [table["table"] for table in record["tables"]] == ["3"]
    assert record["tables"][0]["rows"][1]["paper"]["top1_error_pct"] == {"224": 20.79}
    assert "recipes/paper_tables.py" in record["command"]
    assert main(["--tables", "3", "--markdown"]) == 0
    assert "| **SKNet-50** |" in capsys.readouterr().out


@pytest.mark.slow
def test_plot_is_written(tmp_path):
    png, svg = plot(tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()


def test_the_script_says_what_it_wrote_and_the_library_does_not(tmp_path, capsys, monkeypatch):
    """Without counting, which takes minutes."""
    monkeypatch.setattr("recipes.paper.plot.count", lambda row: SimpleNamespace(macs=1e9, params=1e6))
    paths = [tmp_path / f"paper_accuracy.{extension}" for extension in ("png", "svg")]
    assert plot(tmp_path) == paths
    assert capsys.readouterr().out == ""
    assert main(["--plot", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "".join(f"wrote {path}\n" for path in paths)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tables", "8"], "--tables '8' is not a table here; there are 1, 2"),
        (["--write", "--tables", "3"], "--write renews whole files"),
    ],
)
def test_bad_command_lines_are_one_line(argv, message, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
