"""The report as Markdown for a pull request."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from edge_sk.export.record import Record
from edge_sk.export.report.answers import answers, not_measured
from edge_sk.export.report.compare import Change
from edge_sk.export.report.fronts import default_metric, front
from edge_sk.export.report.model import Report, file_name
from edge_sk.export.report.settings import latency_in, noise_ms, settings
from edge_sk.export.report.verdicts import delegation_mark, parity_mark

# GitHub takes 65,536 characters in a comment.
LIMIT = 60_000
ABSENT = "not measured"


def render_markdown(report: Report, changes: Sequence[Change] | None = None) -> str:
    """The report in as many rows as fit a comment of a pull request.

    Args:
        report: What to show.
        changes: What :func:`~edge_sk.export.report.compare.compare` found, if compared.
    """
    head = ["## FLOP and latency report", ""]
    if changes is not None:
        head += _changes(changes)
    head += [f"- **{one.question}** {_text(one.answer)}. {_text(one.because)}" for one in answers(report)]
    tail = ["", f"Not measured: {' '.join(map(_text, not_measured(report)))}", ""]
    if report.failures:
        tail += ["Could not be made or measured:", ""]
        tail += [f"- {_code(file_name(one))} ({one.stage}): {_text(one.reason)}" for one in report.failures]
        tail.append("")
    tail += [_provenance(report), ""]
    header, rows = _table(report)
    used = sum(len(line) + 1 for line in [*head, *header, *tail])
    shown = []
    for row in rows:
        used += len(row) + 1
        if used > LIMIT - 100:
            shown += ["", f"… and {len(rows) - len(shown)} more files; report.json has them all."]
            break
        shown.append(row)
    whole = "\n".join([*head, "", *header, *shown, *tail])
    return whole if len(whole) <= LIMIT else whole[: LIMIT - 40] + "\n\n… cut; report.json has it all.\n"


def _changes(changes: Sequence[Change]) -> list[str]:
    worse = sum(change.verdict == "worse" for change in changes)
    title = (
        f"**{worse} regression{'s' if worse != 1 else ''} beyond the noise**"
        if worse
        else ("No regression beyond the noise")
    )
    lines = [f"{title} against the older report.", ""]
    lines += [f"- {change.verdict}: {_code(change.file)} {_text(change.what)}" for change in changes]
    return [*lines, ""] if changes else lines


def _table(report: Report) -> tuple[list[str], list[str]]:
    records = report.records
    known = settings(records)
    metric = default_metric(records, known[0] if known else None)
    on_front = set(front(records, known[0] if known else None, metric))
    places = list(dict.fromkeys(one.where for one in known))
    columns = ["file", "params M", "MACs M", "size MB"]
    columns += [
        f"p50 ms, {one.thread_text}" + (f" [{places.index(one.where) + 1}]" if len(places) > 1 else "") for one in known
    ]
    accuracies = any(record.accuracy for record in records)
    columns += [*(["accuracy %"] if accuracies else []), "same output", "delegated", "front"]
    header = [_row(columns), _row(["---", *["--:"] * (len(columns) - 4), "---", "---", "---"])]
    rows = []
    for index, record in enumerate(records):
        cells = [_code(file_name(record)), f"{record.params / 1e6:.3f}", f"{record.macs / 1e6:.1f}"]
        cells.append(f"{record.size_bytes / 1e6:.2f}")
        for setting in known:
            one = latency_in(record, setting)
            cells.append(f"{one.p50_ms:.2f} ± {noise_ms(one):.2f}" if one else ABSENT)
        if accuracies:
            cells.append(_accuracy(record))
        cells += [f"{mark.symbol} {_text(mark.word)}" for mark in (parity_mark(record), delegation_mark(record))]
        cells.append("●" if index in on_front else "")
        rows.append(_row(cells))
    if places:
        rows += ["", *(f"[{n}] {_text(place)}. " if len(places) > 1 else f"p50: {_text(place)}." for n, place in
                       enumerate(places, 1))]  # fmt: skip
    return header, rows


def _accuracy(record: Record) -> str:
    return f"{100 * record.accuracy.top1:.2f}" if record.accuracy else ABSENT


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _provenance(report: Report) -> str:
    made = report.manifest
    versions = ", ".join(f"{name} {version}" for name, version in (made.get("versions") or {}).items())
    return f"<sub>{_text(made.get('date'))}, commit {_text(made.get('commit') or 'unknown')}, {_text(versions)}</sub>"


def _text(content: object) -> str:
    """Words that Markdown and HTML leave alone: names may hold anything."""
    escaped = html.escape(" ".join(str(content).split()), quote=False)
    # A reference to the character is shown, and never read as markup or as a mention.
    return re.sub(r"[\\|*_`\[\]!~@]|#(?=\d)", lambda found: f"&#{ord(found[0])};", escaped)


def _code(content: str) -> str:
    plain = " ".join(content.split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"
