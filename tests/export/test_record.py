"""Records: written whole, read back, refused when they are something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edge_sk.errors import InputError
from edge_sk.export import parity
from edge_sk.export.record import (
    InputContract,
    Latency,
    ParityEvidence,
    Record,
    read_record,
    record_of,
    record_path,
    write_record,
)
from edge_sk.files import file_digest
from edge_sk.manifest import manifest


def _record(**fields: Any) -> Record:
    contract = InputContract(shape=[1, 3, 8, 8], mean=[0.0], std=[1.0], interpolation="bilinear", crop_pct=0.875)
    defaults = {
        "arch": "net_1.0", "file": "net_1.0_xnnpack_fp32.pte", "format": "pte", "backend": "xnnpack",
        "precision": "fp32", "weights": "untrained", "num_classes": 2, "labels": ["a", "b"], "softmax": False,
        "input": contract, "params": 1, "macs": 2, "activations": 3, "size_bytes": 4, "manifest": manifest([]),
    }  # fmt: skip
    return Record(**(defaults | fields))


def test_round_trip(tmp_path: Path) -> None:
    artifact = tmp_path / "net_1.0_xnnpack_fp32.pte"
    path = write_record(artifact, _record())
    assert path == record_path(artifact) == tmp_path / "net_1.0_xnnpack_fp32.pte.json"
    assert read_record(path) == _record(manifest=read_record(path).manifest)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_evidence_keeps_what_was_demanded() -> None:
    logits = torch.randn(64, 4)
    limits = parity.threshold("pte", "fp32")
    evidence = ParityEvidence.of(parity.measure(logits, logits), limits, data="digits", runtime="here")
    assert evidence.threshold_relative == limits.relative
    assert evidence.images == 64


def measured(p50: float, where: str, date: str, threads: int = 1) -> Latency:
    return Latency(
        threads=threads, p50_ms=p50, p90_ms=p50, min_ms=p50, mean_ms=p50, runs=1, rounds=1, load_ms=1.0,
        peak_memory_mb=None, where=where, runtime="r", date=date,
    )  # fmt: skip


def test_measurements_stay_with_the_bytes_that_were_measured(tmp_path: Path) -> None:
    artifact = tmp_path / "net_1.0_xnnpack_fp32.pte"
    older = _record(sha256="a", latency=[measured(5.0, "a phone", "2026-01-01")])
    write_record(artifact, older)
    for sha256, kept in (("a", older.latency), ("b", []), (None, [])):
        record = _record(sha256=sha256)
        record.keep_measurements(artifact)
        assert record.latency == kept
    record.keep_measurements(tmp_path / "none.pte")
    record_path(artifact).write_text("{")
    record.keep_measurements(artifact)
    assert record.latency == []


@pytest.mark.parametrize(
    ("older", "newer", "kept"),
    [
        ("Core ML on macOS 15.0, all compute units", "the interpreter", True),
        ("Core ML on macOS 15.0, all compute units", "Core ML on macOS 26.0, all compute units", False),
        ("the interpreter", "the interpreter", False),
    ],
)
def test_what_a_device_computed_gives_way_to_a_device_alone(older: str, newer: str, kept: bool, tmp_path: Path) -> None:
    logits = torch.randn(64, 4)

    def record(runtime: str) -> Record:
        proof = ParityEvidence.of(
            parity.measure(logits, logits), parity.threshold("mlpackage", "fp32"), data="digits", runtime=runtime
        )
        return _record(sha256="a", parity=proof, notes=[f"by {runtime}"])

    write_record(tmp_path / "net.mlpackage", record(older))
    again = record(newer)
    again.keep_measurements(tmp_path / "net.mlpackage")
    assert again.parity is not None
    assert again.parity.runtime == (older if kept else newer)
    assert again.notes == [f"by {again.parity.runtime}"]


def test_a_record_is_of_its_file(tmp_path: Path) -> None:
    artifact = tmp_path / "net.pte"
    artifact.write_bytes(b"program")
    for sha256 in (file_digest(artifact), None):
        write_record(artifact, _record(sha256=sha256))
        assert record_of(artifact).sha256 == sha256
    write_record(artifact, _record(sha256="another"))
    with pytest.raises(InputError, match=r"net\.pte is not the file that net\.pte\.json describes: it is damaged"):
        record_of(artifact)


def test_a_new_measurement_takes_the_place_of_the_old_one_alone() -> None:
    record = _record()
    record.add_latency(measured(5.0, "a phone", "2026-01-01"), measured(9.0, "host", "2026-01-02"))
    record.add_latency(measured(8.0, "host", "2026-01-03"), measured(4.0, "host", "2026-01-03", threads=2))
    found = {(one.where, one.threads): one.p50_ms for one in record.latency}
    assert found == {("a phone", 1): 5.0, ("host", 1): 8.0, ("host", 2): 4.0}
    assert len(record.latency) == 3


def test_nan_is_none() -> None:
    logits = torch.full((64, 4), torch.nan)
    evidence = ParityEvidence.of(
        parity.measure(logits, logits), parity.threshold("pte", "fp32"), data="digits", runtime="here"
    )
    assert evidence.max_abs is None
    json.loads(evidence.model_dump_json(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"x.json is not JSON"),
        (b"\xff\xfe\x00", "x.json is not text in UTF-8"),
        ("[]", r"record .*x.json: .*dictionary"),
        ('{"arch": 3}', r"arch: .*string"),
    ],
)
def test_not_a_record(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read_record(path)


def test_no_record(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no record at"):
        read_record(tmp_path / "x.json")


def test_a_record_of_before_arithmetic_was_told_is_read(tmp_path: Path) -> None:
    logits = torch.randn(64, 4)
    limits = parity.threshold("pte", "fp32")
    evidence = ParityEvidence.of(
        parity.measure(logits, logits), limits, data="digits", runtime="here", arithmetic="fp32"
    )
    content = json.loads(_record(parity=evidence).to_json())
    assert content["parity"].pop("arithmetic") == "fp32"
    (tmp_path / "x.json").write_text(json.dumps(content))
    older = read_record(tmp_path / "x.json").parity
    assert older is not None
    assert older.arithmetic is None


def test_unknown_field(tmp_path: Path) -> None:
    content = _record().model_dump() | {"speed": "fast"}
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="speed: Extra inputs"):
        read_record(tmp_path / "x.json")
