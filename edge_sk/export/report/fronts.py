"""The Pareto front: the files that no other file beats on both axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from edge_sk.export.record import Record
from edge_sk.export.report.settings import Setting, latency_in


@dataclasses.dataclass(frozen=True)
class Metric:
    """What latency is weighed against."""

    key: str
    title: str
    more_is_better: bool
    value: Callable[[Record], float | None]


METRICS = (
    Metric("accuracy", "top-1 accuracy, %", True, lambda r: 100 * r.accuracy.top1 if r.accuracy else None),
    Metric("macs", "MACs, millions", False, lambda r: r.macs / 1e6),
    Metric("size", "file size, MB", False, lambda r: r.size_bytes / 1e6),
    Metric("params", "parameters, millions", False, lambda r: r.params / 1e6),
)


def default_metric(records: Sequence[Record], setting: Setting | None) -> Metric:
    """Accuracy where two files have it in this setting, otherwise MACs."""
    known = [record for record in records if record.accuracy and latency_in(record, setting)]
    return METRICS[0] if len(known) > 1 else METRICS[1]


def front(records: Sequence[Record], setting: Setting | None, metric: Metric) -> list[int]:
    """Indices of the files on the front, the fastest first; files without latency or metric take no part.

    A file is off the front if another is at least as good on both axes and better on one.
    """
    sign = -1 if metric.more_is_better else 1
    points: dict[int, tuple[float, float]] = {}
    for index, record in enumerate(records):
        latency, value = latency_in(record, setting), metric.value(record)
        if latency is not None and value is not None:
            points[index] = (latency.p50_ms, sign * value)
    return sorted(
        (
            index
            for index, (x, y) in points.items()
            if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
        ),
        key=lambda index: points[index],
    )
