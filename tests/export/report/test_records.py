"""Reports read and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_sk.errors import InputError
from edge_sk.export.report import read_report
from tests.export.report.samples import SAMPLE


def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    content = json.loads(SAMPLE.read_text())
    content["records"][0]["latency"] = [{"threads": 1}]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"records\.0\.latency\.0\.p50_ms: Field required"):
        read_report(path)
    content["records"][0]["latency"], content["records"][0]["speed"] = [], 1
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"records\.0\.speed: Extra inputs are not permitted"):
        read_report(path)


def test_the_committed_example_is_a_report() -> None:
    example = read_report(SAMPLE)
    archs = {record.arch for record in example.records}
    assert archs == {
        "shufflenetv2_1.0", "se_shufflenetv2_1.0", "sk_shufflenetv2_1.0", "timm:mobilenetv4_conv_small",
    }  # fmt: skip
    assert all(record.latency for record in example.records if record.format == "pte")
