"""The sweep over the zoo: one row per network, errors in the table, and (slow) every network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from deploy import sweeping
from deploy.sweep_coreml import convert, main, table
from edge_sk.errors import InputError

RESULTS = Path(__file__).resolve().parents[2] / "deploy" / "results"


def test_one_network_makes_a_row_and_a_table(tmp_path, capsys):
    assert main(["--pattern", "sk_mobilenetv3_small_1.0", "--output", str(tmp_path)]) == 0
    row = json.loads((tmp_path / "coreml.json").read_text())["networks"]["sk_mobilenetv3_small_1.0"]
    assert row["top1_agreement"] >= 0.98
    assert row["max_rank"] == 4
    assert "| sk_mobilenetv3_small_1.0 | 64 |" in (tmp_path / "coreml.md").read_text()
    assert "1 of 1 convert and pass" in capsys.readouterr().out


def test_a_refusal_is_a_row_and_an_exit_code(tmp_path, monkeypatch, capsys):
    def refuse(*args: object, **kwargs: object) -> None:
        raise InputError("no such operator")

    monkeypatch.setattr("deploy.sweep_coreml.to_mlpackage", refuse)
    assert main(["--pattern", "shufflenetv2_0.5", "--output", str(tmp_path)]) == 1
    assert "| shufflenetv2_0.5 | no such operator |" in (tmp_path / "coreml.md").read_text()
    assert "0 of 1 convert and pass" in capsys.readouterr().out


def test_other_rows_stay_and_other_precisions_do_not_mix(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("deploy.sweep_coreml.convert", lambda name, precision: {"error": f"{name} at {precision}"})
    one, other = "shufflenetv2_0.5", "shufflenetv2_1.0"
    assert main(["--pattern", one, "--output", str(tmp_path)]) == 1
    assert main(["--pattern", other, "--output", str(tmp_path)]) == 1
    assert set(json.loads((tmp_path / "coreml.json").read_text())["networks"]) == {one, other}
    capsys.readouterr()
    assert main(["--resume", "--precision", "int8", "--output", str(tmp_path)]) == 2
    assert "is of fp16, not int8" in capsys.readouterr().err


def test_an_unknown_pattern_is_said(capsys):
    assert main(["--pattern", "nothing*"]) == 2
    assert "no name of the zoo matches 'nothing*'" in capsys.readouterr().err


def test_swept_networks_are_sensitive():
    """Every batch norm does something, and the classes of digits differ."""
    network = sweeping.small_network("resnext26", size=32)
    norms = [module for module in network.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.weight.min() > 0.5 and norm.running_mean.abs().sum() > 0 for norm in norms)
    images, _ = next(iter(network.images(split="test", limit=64)))
    with torch.no_grad():
        logits = network.model(images)
    assert logits.std(0).mean() > 1e-3 * logits.abs().max()


def test_the_committed_table_is_that_of_the_committed_data():
    content = json.loads((RESULTS / "coreml.json").read_text())
    assert (RESULTS / "coreml.md").read_text() == table(content)
    assert [name for name, row in content["networks"].items() if "error" in row] == []


def test_the_committed_table_has_every_network():
    assert set(json.loads((RESULTS / "coreml.json").read_text())["networks"]) == set(sweeping.names())


@pytest.mark.slow
@pytest.mark.parametrize("name", sweeping.names())
def test_every_network_converts_and_passes(name):
    convert(name, "fp16")  # raises where the format or the proof refuses
