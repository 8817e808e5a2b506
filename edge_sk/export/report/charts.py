"""Plotly figures as plain data; the page draws them and gives them its colours, light or dark."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from edge_sk.errors import require
from edge_sk.export.record import Record, Trace
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


def tradeoff(records: Sequence[Record], setting: Setting, metric: Metric) -> dict[str, Any] | None:
    """Latency against a metric, with the Pareto front; ``None`` where no file has both.

    Args:
        records: Files to show.
        setting: Whose latency.
        metric: The other axis.
    """
    graph = _plotly()
    networks = list(dict.fromkeys(map(network_name, records)))
    figure = graph.Figure()
    on_front = front(records, setting, metric)
    points = {
        index: (one, value)
        for index, record in enumerate(records)
        if (one := latency_in(record, setting)) and (value := metric.value(record)) is not None
    }
    if not points:
        return None
    figure.add_scatter(
        x=[points[index][0].p50_ms for index in on_front],
        y=[points[index][1] for index in on_front],
        mode="lines",
        line={"dash": "dash", "width": 2, "color": "#8C8C8C"},
        name="Pareto front",
        hoverinfo="skip",
    )
    for index, (one, value) in points.items():
        record = records[index]
        color = COLORS[networks.index(network_name(record)) % len(COLORS)]
        figure.add_scatter(
            x=[one.p50_ms],
            y=[value],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [noise_ms(one)],
                "arrayminus": [min(noise_ms(one), one.p50_ms)],  # no time is negative
                "thickness": 1,
                "width": 3,
                "color": color,
            },
            mode="markers",
            marker={
                "size": 16 if index in on_front else 11,
                "symbol": SYMBOLS.get(record.precision, "circle") + ("" if index in on_front else "-open"),
                "color": color,
                "line": {"width": 2, "color": color},
            },
            name=html.escape(f"{network_name(record)} {record.precision}"),
            hovertext=[_point_text(record, setting, metric, value, index in on_front)],
            hoverinfo="text",
        )
    title = metric.title[0].upper() + metric.title[1:]
    return _finished(
        figure,
        xaxis={"title": {"text": f"p50 latency, ms ({setting.thread_text})"}, "rangemode": "tozero"},
        yaxis={
            "title": {"text": title, "standoff": 12},
            "automargin": True,
            "rangemode": "normal" if metric.more_is_better else "tozero",
        },
        showlegend=len(points) <= MOST_IN_LEGEND,
    )


def tradeoffs(records: Sequence[Record], settings: Sequence[Setting]) -> dict[str, dict[str, Any]]:
    """All figures of latency against a metric, keyed ``"setting index/metric key"``."""
    found = {}
    for index, setting in enumerate(settings):
        for metric in METRICS:
            if (figure := tradeoff(records, setting, metric)) is not None:
                found[f"{index}/{metric.key}"] = figure
    return found


def operators(traced: Sequence[tuple[Record, Trace]]) -> dict[str, Any] | None:
    """Time by kind of operator, one stacked bar per file, the slowest on top; ``None`` without traces."""
    if not traced:
        return None
    graph = _plotly()
    ordered = sorted(traced, key=lambda pair: sum(one.p50_ms for one in pair[1].operators))
    names = [f"{html.escape(network_name(record))}<br>{record.precision}" for record, _ in ordered]
    figure = graph.Figure()
    kinds = [*KIND_COLORS, *sorted({o.kind for _, trace in ordered for o in trace.operators} - KIND_COLORS.keys())]
    for number, kind in enumerate(kinds):
        inside = [[one for one in trace.operators if one.kind == kind] for _, trace in ordered]
        if not any(inside):
            continue
        figure.add_bar(
            y=names,
            x=[round(sum(one.p50_ms for one in group), 4) for group in inside],
            orientation="h",
            name=html.escape(kind),
            marker={"color": KIND_COLORS.get(kind, COLORS[number % len(COLORS)])},
            hovertext=[
                _bar_text(record, kind, group, trace) for (record, trace), group in zip(ordered, inside, strict=True)
            ],
            hoverinfo="text",
        )
    return _finished(
        figure,
        barmode="stack",
        xaxis={"title": {"text": "ms in one forward, traced"}, "rangemode": "tozero"},
        yaxis={"automargin": True, "ticklabelstandoff": 6},
        height=150 + 52 * len(ordered),
        showlegend=True,
    )


def _point_text(record: Record, setting: Setting, metric: Metric, value: float, on_front: bool) -> str:
    one = latency_in(record, setting)
    if one is None:
        return ""
    lines = [
        f"<b>{html.escape(file_name(record))}</b>" + (" (on the front)" if on_front else ""),
        f"p50 {one.p50_ms:.2f} ms, noise {noise_ms(one):.2f}; p90 {one.p90_ms:.2f}, least {one.min_ms:.2f}",
        f"{metric.title}: {value:.2f}",
        f"{record.params / 1e6:.2f} M parameters, {record.macs / 1e6:.1f} M MACs, {record.size_bytes / 1e6:.2f} MB",
        f"outputs: {html.escape(str(parity_mark(record)))}",
    ]
    return "<br>".join(lines)


def _bar_text(record: Record, kind: str, group: Sequence[Any], trace: Trace) -> str:
    whole = sum(one.p50_ms for one in trace.operators) or 1.0
    taken = sum(one.p50_ms for one in group)
    slowest = sorted(group, key=lambda one: -one.p50_ms)[:NAMED_IN_HOVER]
    lines = [f"<b>{html.escape(file_name(record))}</b>", f"{html.escape(kind)}: {taken:.2f} ms, {taken / whole:.0%}"]
    lines += [f"{html.escape(one.name)} x{one.calls}: {one.p50_ms:.2f} ms" for one in slowest]
    return "<br>".join(lines)


def _finished(figure: Any, **layout: Any) -> dict[str, Any]:
    """The figure as plain data, without plotly's default colours."""
    layout.setdefault("height", 460)
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 16, "t": 12, "b": 60},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "traceorder": "normal"},
        hovermode="closest",
        dragmode=False,
        **layout,
    )
    return figure.to_plotly_json()


def _plotly() -> Any:
    return require("plotly.graph_objects", extra="deploy", needed_for="the report's page")
