"""The sweep over the zoo for ExecuTorch: rows, table, exit code, and what is committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edge_sk
from deploy import sweeping
from deploy.sweep import OTHERS, main, table
from edge_sk.errors import InputError

RESULTS = Path(__file__).resolve().parents[2] / "deploy" / "results"
WHOLE = {"delegates": 1, "left": {}, "relative_difference": 1e-6, "seconds": 1.0}


def test_rows_a_table_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"shufflenetv2_0.5": WHOLE, "shufflenetv2_1.0": WHOLE | {"delegates": 3, "left": {"amax": 2}}}

    def lower(network, precision):
        if network.arch not in found:
            raise InputError("no such operator")
        return found[network.arch]

    monkeypatch.setattr("deploy.sweep.lower", lower)
    options = ["--precisions", "fp32", "--output", str(tmp_path)]
    assert main(["--pattern", "shufflenetv2_0.5", *options]) == 0
    assert main(["--pattern", "shufflenetv2_1.0", *options]) == 1
    assert main(["--pattern", "shufflenetv2_1.5", *options]) == 1
    text = (tmp_path / "delegation.md").read_text()
    assert "| shufflenetv2_0.5 | fp32 | 1 | none | 1.0e-06 |" in text
    assert "| shufflenetv2_1.0 | fp32 | 3 | 2x amax | 1.0e-06 |" in text
    assert "| shufflenetv2_1.5 | fp32 |  | no such operator |  |" in text
    found["shufflenetv2_0.5"] = WHOLE | {"relative_difference": 1e-3}
    capsys.readouterr()
    assert main(["--pattern", "shufflenetv2_0.5", *options]) == 1
    assert "0 of 3 are one delegate" in capsys.readouterr().out


def test_the_committed_table_is_that_of_the_committed_data() -> None:
    content = json.loads((RESULTS / "delegation.json").read_text())
    assert (RESULTS / "delegation.md").read_text() == table(content)


def test_every_network_is_one_delegate_with_the_same_outputs() -> None:
    found = json.loads((RESULTS / "delegation.json").read_text())["networks"]
    mobile = [name for name in edge_sk.list_models() if "shufflenet" in name or "mobilenet" in name]
    others = {f"{sweeping.PREFIX}{name} fp32" for name in OTHERS}
    every = {f"{name} fp32" for name in sweeping.names()} | {f"{name} int8" for name in mobile}
    assert set(found) == every | others
    split = {name for name, row in found.items() if row["delegates"] != 1 or row["left"]}
    assert split <= others
    # Between delegates lie operators that none takes; the table names them.
    assert all(found[name]["left"] for name in split)
    differences = {name: row["relative_difference"] for name, row in found.items() if name.endswith("fp32")}
    assert max(differences.values()) <= 1e-4
