"""Data for the charts of the page, which page.js draws; text is escaped, because plotly reads HTML in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from edge_sk.export.record import Record, Trace
from edge_sk.export.report.latencies import METRICS, Setting, front, latency_in, noise_ms
from edge_sk.export.report.marks import parity_mark
from edge_sk.export.report.model import file_title, network_title


def tradeoffs(records: Sequence[Record], settings: Sequence[Setting]) -> dict[str, Any]:
    """Return the latencies and metrics of all files, and the fronts of every setting and metric."""
    return {
        "files": [_point(record, settings) for record in records],
        "settings": [setting.thread_text for setting in settings],
        "metrics": {metric.key: {"title": metric.title, "zero": not metric.more_is_better} for metric in METRICS},
        "fronts": [{metric.key: front(records, setting, metric) for metric in METRICS} for setting in settings],
    }


def _point(record: Record, settings: Sequence[Setting]) -> dict[str, Any]:
    size = f"{record.params / 1e6:.2f} M parameters, {record.macs / 1e6:.1f} M MACs, {record.size_bytes / 1e6:.2f} MB"
    latencies = [latency_in(record, setting) for setting in settings]
    return {
        "network": escape(network_title(record)),
        "precision": record.precision,
        "title": escape(file_title(record)),
        "text": Markup("{}<br>outputs: {}").format(size, parity_mark(record)),
        "values": {metric.key: metric.value(record) for metric in METRICS},
        "latencies": [known and known.model_dump() | {"noise_ms": noise_ms(known)} for known in latencies],
    }


def operators(traced: Sequence[tuple[Record, Trace]]) -> list[dict[str, Any]]:
    """Return the traced operators of each file."""
    return [
        {
            "name": Markup("{}<br>{}").format(network_title(record), record.precision),
            "title": escape(file_title(record)),
            "operators": [
                operator.model_dump() | {"name": escape(operator.name), "kind": escape(operator.kind)}
                for operator in trace.operators
            ],
        }
        for record, trace in traced
    ]
