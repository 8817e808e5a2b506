"""Making the files and measuring them: what is kept, what fails alone. Records from elsewhere: read and joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deploy.collecting
from deploy.collecting import Artifact, Request, collect, join, read_records
from edge_sk.errors import InputError
from edge_sk.export.executorch import latency as timing
from edge_sk.export.network import from_arch
from edge_sk.export.record import Latency, Record, read_record, write_record
from edge_sk.export.report import Report, read_report, write_report
from edge_sk.export.report.latencies import Setting, latency_in
from edge_sk.export.report.marks import delegation_mark
from edge_sk.files import file_digest
from tests.export.report.samples import SAMPLE, find, latency, variant


@pytest.fixture
def report() -> Report:
    return read_report(SAMPLE)


def fake_exports(monkeypatch: pytest.MonkeyPatch, report: Report, calls: list[str]) -> None:
    """Exports and measurements that write sample records at once."""

    def export(form: str) -> Callable[..., Record]:
        def write(network: Any, folder: Path, *, precision: str, **_: Any) -> Record:
            calls.append(f"export {precision} .{form}")
            record = variant(find(report, "shufflenetv2_1.0", precision, form), latency=[], traces=[])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / record.file).write_text(f"{form} {precision}")
            record.sha256 = file_digest(folder / record.file)
            write_record(folder / record.file, record)
            return record

        return write

    def measure(files: list[Path], *, threads: int, rounds: int, runs: int) -> list[Latency]:
        calls.append(f"measure {len(files)} files, {threads}")
        more = {"where": timing.this_host(), "rounds": rounds, "runs": rounds * runs}
        return [latency(3.0, threads=threads, **more) for _ in files]

    monkeypatch.setattr(deploy.collecting, "to_pte", export("pte"))
    monkeypatch.setattr(deploy.collecting, "to_mlpackage", export("mlpackage"))
    monkeypatch.setattr(timing, "measure", measure)
    monkeypatch.setattr(timing, "operator_times", lambda *_, **__: calls.append("trace") or [])


def test_what_is_made_and_unchanged_is_kept(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    calls: list[str] = []
    fake_exports(monkeypatch, report, calls)
    network = dataclasses.replace(from_arch("shufflenetv2_0.5"), input_size=(3, 32, 32))
    artifacts: tuple[Artifact, ...] = (("pte", "fp32"), ("pte", "int8"), ("mlpackage", "fp16"))
    request = Request(artifacts=artifacts, threads=(1, 2), rounds=2, runs=5, argv=["x"])
    steps: list[str] = []

    def run(**changes: Any) -> list[str]:
        calls.clear()
        steps.clear()
        collected = collect([network], tmp_path, dataclasses.replace(request, **changes), steps.append)
        assert len(collected.records) == len(artifacts)
        return calls[:]

    everything = ["export fp32 .pte", "export int8 .pte", "export fp16 .mlpackage"]
    everything += ["measure 2 files, 1", "measure 2 files, 2", "trace", "trace"]
    assert run() == everything
    assert len(steps) == request.steps(1)
    assert run() == []
    assert run(threads=(1, 2, 4)) == ["measure 2 files, 4"]
    assert run(rounds=3) == ["measure 2 files, 1", "measure 2 files, 2"]

    file = tmp_path / report.records[0].file
    assert read_record(f"{file}.json").latency
    file.write_text("damaged")
    assert run() == ["export fp32 .pte", "measure 2 files, 1", "measure 2 files, 2", "trace"]
    Path(f"{file}.json").unlink()
    assert run()[0] == "export fp32 .pte"
    file.unlink()
    assert run()[0] == "export fp32 .pte"
    Path(f"{file}.json").write_text("{")
    assert run()[0] == "export fp32 .pte"
    # Another command wrote a file of the same name.
    write_record(file, variant(find(report, "shufflenetv2_1.0"), sha256=file_digest(file)))
    assert run()[0] == "export fp32 .pte"

    with torch.no_grad():
        next(network.model.parameters()).add_(1)
    assert run() == everything


def test_one_failing_file_costs_only_itself(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    calls: list[str] = []
    fake_exports(monkeypatch, report, calls)
    working = timing.measure

    def refuse(*_: Any, **__: Any) -> Record:
        raise InputError("cannot be converted")

    def measure(files: list[Path], **options: Any) -> list[Latency]:
        if any("int8" in file.name for file in files):
            raise InputError("cannot run it")
        return working(files, **options)

    monkeypatch.setattr(deploy.collecting, "to_mlpackage", refuse)
    monkeypatch.setattr(timing, "measure", measure)
    request = Request(
        artifacts=(("pte", "fp32"), ("pte", "int8"), ("mlpackage", "fp16")), threads=(1,), rounds=1, runs=1, argv=["x"]
    )
    collected = collect([from_arch("shufflenetv2_0.5")], tmp_path, request, lambda _: None)
    assert [(one.precision, one.stage, one.reason) for one in collected.failures] == [
        ("fp16", "export", "cannot be converted"),
        ("int8", "latency", "cannot run it"),
    ]
    assert [len(record.latency) for record in collected.records] == [1, 0]


def test_two_networks_in_one_place_are_refused(tmp_path: Path) -> None:

    network = from_arch("shufflenetv2_0.5")
    request = Request(artifacts=(), threads=(1,), rounds=1, runs=1, argv=["x"])
    with pytest.raises(InputError, match=r"two networks would write shufflenetv2_0\.5"):
        collect([network, network], tmp_path, request, lambda _: None)


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
        ("{}", "record .*x.json: arch: Field required"),
        ('{"records": [], "surprise": 1}', "report .*x.json: manifest: Field required"),
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
