"""The report for people: one HTML file that needs no other, and Markdown that fits a pull request's comment.

No network, no other file: nothing in the HTML runs but its own two scripts.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import html
import itertools
import re
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
from edge_sk.markdown import markdown_table

# The browser itself refuses whatever is not named here.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
# GitHub takes 65,536 characters in a comment.
LIMIT = 60_000


def render_html(report: Report, changes: Sequence[Change] | None = None) -> str:
    """The whole page.

    Args:
        report: What to show.
        changes: What :func:`~edge_sk.export.report.compare.compare` found, if compared.

    Raises:
        InputError: Plotly or Jinja is not installed.
    """
    records = report.records
    shown = _shown(report, changes)
    figures = charts.tradeoffs(records, shown["settings"])
    traced = [(record, record.traces[0]) for record in records if record.traces]
    plotly = _script(require("plotly.offline", extra="deploy", needed_for="the report's page").get_plotlyjs())
    page = _script(_asset("page.js"))
    return _template("page.html.jinja").render(
        shown,
        metrics=[one for one in METRICS if any(key.endswith(f"/{one.key}") for key in figures)],
        pairs=pairs(records, shown["setting"]),
        traced=traced,
        measured=[_measured(records, setting) for setting in shown["settings"]],
        css=_asset("page.css"),
        plotly=plotly,
        script=page,
        policy=f"{POLICY} script-src {_hash(plotly)} {_hash(page)}",
        data={"tradeoffs": figures, "operators": charts.operators(traced)},
        download=base64.b64encode(report.model_dump_json(indent=1).encode()).decode(),
    )


def render_markdown(report: Report, changes: Sequence[Change] | None = None) -> str:
    """The report in as many rows as fit a comment of a pull request.

    Args:
        report: What to show.
        changes: What :func:`~edge_sk.export.report.compare.compare` found, if compared.

    Raises:
        InputError: Jinja is not installed.
    """
    template = _template("page.md.jinja", finalize=_plain)
    shown = _shown(report, changes)
    head, rule, *rows = _table(report, shown)

    def page(rows: Sequence[str]) -> str:
        return template.render(shown, table="\n".join([head, rule, *rows]), left_out=len(report.records) - len(rows))

    text = page(rows)
    if len(text) > LIMIT:
        lengths = itertools.accumulate(len(row) + 1 for row in rows)
        text = page(rows[: bisect.bisect(list(lengths), LIMIT - len(page([])))])
    return text if len(text) <= LIMIT else text[: LIMIT - 40] + "\n\n… cut; report.json has it all.\n"


def _shown(report: Report, changes: Sequence[Change] | None) -> dict[str, Any]:
    """What both pages show."""
    known = settings(report.records)
    setting = next(iter(known), None)
    metric = default_metric(report.records, setting)
    return {
        "report": report,
        "answers": answers(report),
        "changes": changes,
        "worse": sum(change.verdict == "worse" for change in changes or ()),
        "settings": known,
        "setting": setting,
        "places": list(dict.fromkeys(one.where for one in known)),
        "metric": metric,
        "on_front": front(report.records, setting, metric),
        "not_measured": not_measured(report),
    }


def _measured(records: Sequence[Record], setting: Setting) -> dict[str, Any]:
    """How latency was measured in a setting."""
    taken = [one for record in records if (one := latency_in(record, setting))]
    return {
        "setting": setting,
        "files": len(taken),
        "rounds": sorted({one.rounds for one in taken}),
        "runs": sorted({one.runs for one in taken}),
        "dates": sorted({one.date[:10] for one in taken}),
    }


def _table(report: Report, shown: dict[str, Any]) -> list[str]:
    """The lines of the table of files in Markdown."""
    places, accuracies = shown["places"], any(record.accuracy for record in report.records)
    columns = ["file", "params M", "MACs M", "size MB"]
    for one in shown["settings"]:
        place = f" [{places.index(one.where) + 1}]" if len(places) > 1 else ""
        columns.append(f"p50 ms, {one.thread_text}{place}")
    columns += ["accuracy %"] * accuracies
    align = "l" + "r" * (len(columns) - 1) + "lll"
    rows = []
    for index, record in enumerate(report.records):
        cells = [_code(file_name(record)), f"{record.params / 1e6:.3f}", f"{record.macs / 1e6:.1f}"]
        cells.append(f"{record.size_bytes / 1e6:.2f}")
        for setting in shown["settings"]:
            one = latency_in(record, setting)
            cells.append(f"{one.p50_ms:.2f} ± {noise_ms(one):.2f}" if one else "not measured")
        if accuracies:
            cells.append(f"{100 * record.accuracy.top1:.2f}" if record.accuracy else "not measured")
        cells += [f"{mark.symbol} {_plain(mark.word)}" for mark in (parity_mark(record), delegation_mark(record))]
        rows.append([*cells, "●" if index in shown["on_front"] else ""])
    return markdown_table([*columns, "same output", "delegated", "front"], rows, align).splitlines()


def _template(name: str, **options: Any) -> Any:
    jinja = require("jinja2", extra="deploy", needed_for="the report's page")
    environment = jinja.Environment(
        loader=jinja.FunctionLoader(_asset), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, undefined=jinja.StrictUndefined, **options,
    )  # fmt: skip
    environment.globals.update(
        file_name=file_name, network_name=network_name, latency_in=latency_in, noise_ms=noise_ms,
        parity_mark=parity_mark, delegation_mark=delegation_mark,
    )  # fmt: skip
    environment.filters["code"] = _code
    return environment.get_template(name)


def _plain(content: object) -> Any:
    """Words that Markdown and HTML leave alone, for names may hold anything; markup stays."""
    markup = require("markupsafe", extra="deploy", needed_for="the report's page").Markup
    if isinstance(content, markup):
        return content
    escaped = html.escape(" ".join(str(content).split()), quote=False)
    # A reference to the character is shown, and never read as markup or as a mention.
    return markup(re.sub(r"[\\|*_`\[\]!~@]|#(?=\d)", lambda found: f"&#{ord(found[0])};", escaped))


def _code(content: str) -> Any:
    """A span of code in Markdown."""
    markup = require("markupsafe", extra="deploy", needed_for="the report's page").Markup
    return markup("`" + " ".join(content.split()).replace("`", "'") + "`")


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
