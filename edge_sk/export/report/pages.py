"""Render the pages of a report from templates: one self-contained HTML file, and Markdown for a pull request."""

from __future__ import annotations

import base64
import bisect
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from edge_sk.errors import require
from edge_sk.export.report import charts
from edge_sk.export.report.answers import answers, not_measured
from edge_sk.export.report.differences import Change, pairs
from edge_sk.export.report.latencies import METRICS, default_metric, front, latency_in, noise_ms, settings
from edge_sk.export.report.marks import delegation_mark, parity_mark
from edge_sk.export.report.model import Report, file_title, network_title
from edge_sk.markdown import cell, code, escape

# GitHub takes 65,536 characters in a comment.
LIMIT = 60_000


def render_html(report: Report, changes: Sequence[Change] | None = None) -> str:
    """Return the report as one HTML file; ``changes`` come from :func:`edge_sk.export.report.compare`.

    The page loads nothing, and only its own two scripts may run in it.

    Raises:
        InputError: Plotly is not installed.
    """
    plotly = require("plotly.offline", extra="deploy", needed_for="the report's page").get_plotlyjs()
    # Browsers turn line ends into line feeds before they hash a script.
    scripts = [text.replace("\r\n", "\n").replace("\r", "\n") for text in (plotly, _asset("page.js"))]
    facts = _facts(report, changes)
    traced = [(record, record.traces[0]) for record in report.records if record.traces]
    data = charts.tradeoffs(report.records, facts["settings"])
    return _template("page.html.jinja", autoescape=True).render(
        facts,
        pairs=pairs(report.records, facts["setting"]),
        traced=traced,
        metrics=[metric for metric in METRICS if any(fronts[metric.key] for fronts in data["fronts"])],
        data={**data, "operators": charts.operators(traced)},
        css=Markup(_asset("page.css")),
        scripts=[Markup(script) for script in scripts],
        digests=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
        download=base64.b64encode(report.model_dump_json(indent=1).encode()).decode(),
    )


def render_markdown(report: Report, changes: Sequence[Change] | None = None) -> str:
    """Return the report as Markdown, with as many files as fit into a comment on GitHub; ``changes`` as in the page."""
    facts = _facts(report, changes)
    template = _template("page.md.jinja", finalize=lambda text: text if isinstance(text, Markup) else escape(text))

    def page(shown: int) -> str:
        return template.render(facts, shown=shown)

    files = range(1, len(report.records) + 1)
    text = page(bisect.bisect_left(files, True, key=lambda shown: len(page(shown)) > LIMIT))
    return text if len(text) <= LIMIT else text[: LIMIT - 40] + "\n\n… cut; report.json has it all.\n"


def _facts(report: Report, changes: Sequence[Change] | None) -> dict[str, Any]:
    """Return what both templates show."""
    known = settings(report.records)
    setting = known[0] if known else None
    metric = default_metric(report.records, setting)
    return {
        "report": report,
        "changes": changes,
        "regressions": sum(change.verdict == "worse" for change in changes or ()),
        "answers": answers(report),
        "not_measured": not_measured(report),
        "settings": known,
        "setting": setting,
        "places": list(dict.fromkeys(setting.where for setting in known)),
        "accuracies": any(record.accuracy for record in report.records),
        "metric": metric,
        "on_front": front(report.records, setting, metric),
    }


def _template(name: str, **escaping: Any) -> jinja2.Template:
    layout: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    loader = jinja2.FunctionLoader(_asset)
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **layout, **escaping)
    filters = (file_title, network_title, latency_in, noise_ms, parity_mark, delegation_mark, cell, code)
    environment.filters |= {function.__name__: function for function in filters}
    return environment.get_template(name)


def _asset(name: str) -> str:
    return resources.files("edge_sk.export.report").joinpath(name).read_text(encoding="utf-8")
