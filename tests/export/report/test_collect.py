"""Making the files and measuring them: what is kept, what fails alone, what random weights need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edge_sk.errors import InputError
from edge_sk.export.record import Latency, Record, read_record, write_record
from edge_sk.export.report import Report
from edge_sk.files import file_digest
from tests.export.report.samples import find, latency, variant


def fake_exports(monkeypatch: pytest.MonkeyPatch, report: Report, calls: list[str]) -> None:
    """Exports and measurements that write sample records at once."""
    from edge_sk.export.executorch import latency as timing
    from edge_sk.export.report import collect

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

    monkeypatch.setattr(collect, "to_pte", export("pte"))
    monkeypatch.setattr(collect, "to_mlpackage", export("mlpackage"))
    monkeypatch.setattr(timing, "measure", measure)
    monkeypatch.setattr(timing, "operator_times", lambda *_, **__: calls.append("trace") or [])


def test_what_is_made_and_unchanged_is_kept(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from edge_sk.export.network import from_arch
    from edge_sk.export.report.collect import Artifact, Request, collect

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
    from edge_sk.export.executorch import latency as timing
    from edge_sk.export.network import from_arch
    from edge_sk.export.report import collect

    calls: list[str] = []
    fake_exports(monkeypatch, report, calls)
    working = timing.measure

    def refuse(*_: Any, **__: Any) -> Record:
        raise InputError("cannot be converted")

    def measure(files: list[Path], **options: Any) -> list[Latency]:
        if any("int8" in file.name for file in files):
            raise InputError("cannot run it")
        return working(files, **options)

    monkeypatch.setattr(collect, "to_mlpackage", refuse)
    monkeypatch.setattr(timing, "measure", measure)
    request = collect.Request(
        artifacts=(("pte", "fp32"), ("pte", "int8"), ("mlpackage", "fp16")), threads=(1,), rounds=1, runs=1, argv=["x"]
    )
    collected = collect.collect([from_arch("shufflenetv2_0.5")], tmp_path, request, lambda _: None)
    assert [(one.precision, one.stage, one.reason) for one in collected.failures] == [
        ("fp16", "export", "cannot be converted"),
        ("int8", "latency", "cannot run it"),
    ]
    assert [len(record.latency) for record in collected.records] == [1, 0]


def test_two_networks_in_one_place_are_refused(tmp_path: Path) -> None:
    from edge_sk.export.network import from_arch
    from edge_sk.export.report.collect import Request, collect

    network = from_arch("shufflenetv2_0.5")
    request = Request(artifacts=(), threads=(1,), rounds=1, runs=1, argv=["x"])
    with pytest.raises(InputError, match=r"two networks would write shufflenetv2_0\.5"):
        collect([network, network], tmp_path, request, lambda _: None)
