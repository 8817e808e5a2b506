"""Records of the sample report, and changes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_sk.export.record import Accuracy, Latency, Record
from edge_sk.export.report import Report

# What the exporter wrote for four networks; only the times are of a busy machine.
SAMPLE = Path(__file__).parents[3] / "docs" / "report" / "report.json"


def latency(
    p50: float, *, medians: tuple[float, ...] = (), threads: int = 1, where: str = "phone", **more: Any
) -> Latency:
    values: dict[str, Any] = {
        "threads": threads, "p50_ms": p50, "p90_ms": p50 * 1.2, "min_ms": p50 * 0.9, "mean_ms": p50,
        "round_p50_ms": list(medians), "runs": 150, "rounds": 3, "load_ms": 5.0, "peak_memory_mb": None,
        "where": where, "runtime": "test", "date": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Latency(**values | more)


def variant(record: Record, **changes: Any) -> Record:
    return record.model_copy(deep=True, update=changes)


def find(report: Report, arch: str, precision: str = "fp32", form: str = "pte") -> Record:
    return next(r for r in report.records if (r.arch, r.precision, r.format) == (arch, precision, form))


def trained(report: Report, *, plain: float, sk: float, images: int = 10_000) -> Report:
    records = [find(report, "shufflenetv2_1.0"), find(report, "sk_shufflenetv2_1.0")]
    for record, top1 in zip(records, (plain, sk), strict=True):
        record.weights, record.accuracy = "run", Accuracy(top1=top1, eager_top1=top1, images=images, data="x")
    report.records = records
    return report
