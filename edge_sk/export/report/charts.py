"""Plotly figures as plain data; the page draws them and gives them its colours, light or dark."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from edge_sk.export.record import Latency, OperatorTime, Record, Trace
from edge_sk.export.report.fronts import METRICS, Metric, front
from edge_sk.export.report.model import file_name, network_name
from edge_sk.export.report.settings import Setting, latency_in, noise_ms
from edge_sk.export.report.verdicts import parity_mark

# Okabe and Ito's colours for colour-blind readers, without black and yellow, which vanish on one of the backgrounds.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
SYMBOLS = {"fp32": "circle", "fp16": "diamond", "int8": "square", "palette6": "triangle-up"}
KIND_COLORS = {
    "convolution": "#0072B2",
    "elementwise": "#E69F00",
    "pooling": "#009E73",
    "data movement": "#CC79A7",
    "outside the delegate": "#D55E00",
}
MOST_IN_LEGEND = 16
NAMED_IN_HOVER = 3


def tradeoffs(records: Sequence[Record], settings: Sequence[Setting]) -> dict[str, dict[str, Any]]:
    """All figures of latency against a metric, keyed ``"setting index/metric key"``; none without points."""
    return {
        f"{index}/{metric.key}": figure
        for index, setting in enumerate(settings)
        for metric in METRICS
        if (figure := _tradeoff(records, setting, metric))
    }


def _tradeoff(records: Sequence[Record], setting: Setting, metric: Metric) -> dict[str, Any] | None:
    """Latency against a metric, with the Pareto front."""
    networks = list(dict.fromkeys(map(network_name, records)))
    on_front = front(records, setting, metric)
    points = {
        index: (one, value)
        for index, record in enumerate(records)
        if (one := latency_in(record, setting)) and (value := metric.value(record)) is not None
    }
    if not points:
        return None
    line = {
        "type": "scatter",
        "x": [points[index][0].p50_ms for index in on_front],
        "y": [points[index][1] for index in on_front],
        "mode": "lines",
        "line": {"dash": "dash", "width": 2, "color": "#8C8C8C"},
        "name": "Pareto front",
        "hoverinfo": "skip",
    }
    marks = [
        _mark(
            records[index],
            one,
            metric,
            value,
            color=COLORS[networks.index(network_name(records[index])) % len(COLORS)],
            on_front=index in on_front,
        )
        for index, (one, value) in points.items()
    ]
    return _figure(
        [line, *marks],
        xaxis={"title": {"text": f"p50 latency, ms ({setting.thread_text})"}, "rangemode": "tozero"},
        yaxis={
            "title": {"text": metric.title[0].upper() + metric.title[1:], "standoff": 12},
            "automargin": True,
            "rangemode": "normal" if metric.more_is_better else "tozero",
        },
        showlegend=len(points) <= MOST_IN_LEGEND,
    )


def _mark(record: Record, one: Latency, metric: Metric, value: float, *, color: str, on_front: bool) -> dict[str, Any]:
    noise = noise_ms(one)
    lines = [
        f"<b>{html.escape(file_name(record))}</b>{' (on the front)' if on_front else ''}",
        f"p50 {one.p50_ms:.2f} ms, noise {noise:.2f}; p90 {one.p90_ms:.2f}, least {one.min_ms:.2f}",
        f"{metric.title}: {value:.2f}",
        f"{record.params / 1e6:.2f} M parameters, {record.macs / 1e6:.1f} M MACs, {record.size_bytes / 1e6:.2f} MB",
        f"outputs: {html.escape(str(parity_mark(record)))}",
    ]
    return {
        "type": "scatter",
        "x": [one.p50_ms],
        "y": [value],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [noise],
            "arrayminus": [min(noise, one.p50_ms)],  # no time is negative
            "thickness": 1,
            "width": 3,
            "color": color,
        },
        "mode": "markers",
        "marker": {
            "size": 16 if on_front else 11,
            "symbol": SYMBOLS.get(record.precision, "circle") + ("" if on_front else "-open"),
            "color": color,
            "line": {"width": 2, "color": color},
        },
        "name": html.escape(f"{network_name(record)} {record.precision}"),
        "hovertext": ["<br>".join(lines)],
        "hoverinfo": "text",
    }


def operators(traced: Sequence[tuple[Record, Trace]]) -> dict[str, Any] | None:
    """Time by kind of operator, one stacked bar per file, the slowest on top; ``None`` without traces."""
    if not traced:
        return None
    ordered = sorted(traced, key=lambda pair: sum(one.p50_ms for one in pair[1].operators))
    names = [f"{html.escape(network_name(record))}<br>{record.precision}" for record, _ in ordered]
    kinds = dict.fromkeys((*KIND_COLORS, *sorted({one.kind for _, trace in traced for one in trace.operators})))
    bars = []
    for number, kind in enumerate(kinds):
        groups = [[one for one in trace.operators if one.kind == kind] for _, trace in ordered]
        if any(groups):
            bars.append(
                {
                    "type": "bar",
                    "y": names,
                    "x": [round(sum(one.p50_ms for one in group), 4) for group in groups],
                    "orientation": "h",
                    "name": html.escape(kind),
                    "marker": {"color": KIND_COLORS.get(kind, COLORS[number % len(COLORS)])},
                    "hovertext": [_bar_text(*pair, kind, group) for pair, group in zip(ordered, groups, strict=True)],
                    "hoverinfo": "text",
                }
            )
    return _figure(
        bars,
        barmode="stack",
        xaxis={"title": {"text": "ms in one forward, traced"}, "rangemode": "tozero"},
        yaxis={"automargin": True, "ticklabelstandoff": 6},
        height=150 + 52 * len(ordered),
        showlegend=True,
    )


def _bar_text(record: Record, trace: Trace, kind: str, group: Sequence[OperatorTime]) -> str:
    whole = sum(one.p50_ms for one in trace.operators) or 1.0
    taken = sum(one.p50_ms for one in group)
    slowest = sorted(group, key=lambda one: -one.p50_ms)[:NAMED_IN_HOVER]
    lines = [f"<b>{html.escape(file_name(record))}</b>", f"{html.escape(kind)}: {taken:.2f} ms, {taken / whole:.0%}"]
    lines += [f"{html.escape(one.name)} x{one.calls}: {one.p50_ms:.2f} ms" for one in slowest]
    return "<br>".join(lines)


def _figure(data: list[dict[str, Any]], **layout: Any) -> dict[str, Any]:
    common = {
        "height": 460,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 16, "t": 12, "b": 60},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "traceorder": "normal"},
        "hovermode": "closest",
        "dragmode": False,
    }
    return {"data": data, "layout": common | layout}
