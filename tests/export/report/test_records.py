"""Records read, joined, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_sk.errors import InputError
from edge_sk.export.report import Report, read_report, write_report
from edge_sk.export.report.latencies import Setting, latency_in
from edge_sk.export.report.marks import delegation_mark
from edge_sk.export.report.model import join, read_records
from tests.export.report.samples import SAMPLE, find, latency, variant

ROOT = Path(__file__).parents[3]


def test_measurements_from_elsewhere_join_their_file(report: Report) -> None:
    mac = variant(find(report, "shufflenetv2_1.0", "fp16", "mlpackage"))
    mac.latency = [latency(0.4, where="MacBook", threads=0)]
    assert mac.program is not None
    mac.program.compute_units = {"MacBook": {"Neural Engine": 90, "CPU": 2}}
    joined = join([*report.records, mac])
    assert len(joined) == len(report.records)
    assert latency_in(find(Report(records=joined, manifest={}), "shufflenetv2_1.0", "fp16", "mlpackage"),
                      Setting("MacBook", "test", 0)) is not None  # fmt: skip
    assert any("90 on Neural Engine" in delegation_mark(record).reason for record in joined)
    newer = variant(mac, latency=[latency(0.3, where="MacBook", threads=0, date="2026-02-01T00:00:00+00:00")])
    again = join([newer, *joined])
    assert [one.p50_ms for record in again for one in record.latency if one.where == "MacBook"] == [0.3]
    assert len(join([*report.records, variant(mac, size_bytes=1)])) == len(report.records) + 1


def test_records_are_read_from_files_folders_and_reports(report: Report, tmp_path: Path) -> None:
    record = report.records[0]
    (tmp_path / "a.pte.json").write_text(record.model_dump_json())
    assert read_records([tmp_path, tmp_path / "a.pte.json"]) == [record, record]
    assert len(read_records([SAMPLE])) == 16
    write_report(tmp_path / "again.json", report)
    assert read_report(tmp_path / "again.json") == report


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file .*; give a record or a report.json"),
        ("{", "is not JSON"),
        ("{}", "arch: Field required; it is not a valid record"),
        ('{"records": [], "surprise": 1}', "manifest: Field required; it is not a valid report"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_records([path])


def test_a_folder_without_records_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no record, which ends in \.pte\.json"):
        read_records([tmp_path])


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
    example = read_report(ROOT / "docs" / "report" / "report.json")
    archs = {record.arch for record in example.records}
    assert archs == {
        "shufflenetv2_1.0", "se_shufflenetv2_1.0", "sk_shufflenetv2_1.0", "timm:mobilenetv4_conv_small",
    }  # fmt: skip
    assert all(record.latency for record in example.records if record.format == "pte")
