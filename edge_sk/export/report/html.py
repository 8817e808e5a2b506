"""The report as one HTML file: no network, no other file, nothing in it runs but its own two scripts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from edge_sk.errors import require
from edge_sk.export.record import Record
from edge_sk.export.report import charts
from edge_sk.export.report.answers import answers, not_measured
from edge_sk.export.report.compare import Change
from edge_sk.export.report.fronts import METRICS, default_metric, front
from edge_sk.export.report.model import Report, file_name, network_name
from edge_sk.export.report.pairs import pairs
from edge_sk.export.report.settings import Setting, latency_in, noise_ms, settings
from edge_sk.export.report.verdicts import delegation_mark, parity_mark

# The browser itself refuses whatever is not named here.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:;"


def render_html(report: Report, changes: Sequence[Change] | None = None) -> str:
    """The whole page.

    Args:
        report: What to show.
        changes: What :func:`~edge_sk.export.report.compare.compare` found, if compared.

    Raises:
        InputError: Plotly or Jinja is not installed.
    """
    records = report.records
    known = settings(records)
    metric = default_metric(records, known[0] if known else None)
    traced = [(record, record.traces[0]) for record in records if record.traces]
    figures = charts.tradeoffs(records, known)
    data = {"tradeoffs": figures, "operators": charts.operators(traced)}
    plotly = _script(require("plotly.offline", extra="deploy", needed_for="the report's page").get_plotlyjs())
    page = _script(_asset("page.js"))
    jinja = require("jinja2", extra="deploy", needed_for="the report's page")
    environment = jinja.Environment(
        loader=jinja.FunctionLoader(_asset), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja.StrictUndefined,
    )  # fmt: skip
    environment.globals.update(
        file_name=file_name, network_name=network_name, latency_in=latency_in, noise_ms=noise_ms,
        parity_mark=parity_mark, delegation_mark=delegation_mark, breakable=_breakable,
    )  # fmt: skip
    return environment.get_template("page.html.jinja").render(
        report=report,
        answers=answers(report),
        changes=changes,
        settings=known,
        places=list(dict.fromkeys(one.where for one in known)),
        metric=metric,
        metrics=[one for one in METRICS if any(key.endswith(f"/{one.key}") for key in figures)],
        on_front=front(records, known[0] if known else None, metric),
        pairs=pairs(records, known[0] if known else None),
        traced=traced,
        measured=_measured(records, known),
        not_measured=not_measured(report),
        css=_asset("page.css"),
        plotly=plotly,
        script=page,
        policy=f"{POLICY} script-src {_hash(plotly)} {_hash(page)}",
        data=_embed(data),
        download=base64.b64encode(report.model_dump_json(indent=1).encode()).decode(),
    )


def _breakable(name: str) -> Any:
    """A name that may wrap behind its underscores."""
    markup = require("markupsafe", extra="deploy", needed_for="the report's page")
    return markup.Markup("_<wbr>").join(markup.escape(part) for part in name.split("_"))


def _measured(records: Sequence[Record], known: Sequence[Setting]) -> list[dict[str, Any]]:
    """How latency was measured, one entry per setting."""
    found = []
    for setting in known:
        taken = [one for record in records if (one := latency_in(record, setting))]
        found.append(
            {
                "setting": setting,
                "files": len(taken),
                "rounds": sorted({one.rounds for one in taken}),
                "runs": sorted({one.runs for one in taken}),
                "dates": sorted({one.date[:10] for one in taken}),
            }
        )
    return found


def _asset(name: str) -> str:
    return resources.files("edge_sk.export.report").joinpath(name).read_text(encoding="utf-8")


def _script(text: str) -> str:
    """Code as a browser's parser will hand it to the hash: with a line feed at each line end."""
    code = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in code.lower():
        raise ValueError("a script holds its own end tag")
    return code


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _embed(data: Any) -> str:
    """JSON that cannot end the element it is in: names may hold ``</script>`` or ``<!--``."""
    return json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
