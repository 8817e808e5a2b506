"""The pages for people: HTML that needs no other file, Markdown that fits a comment."""

from __future__ import annotations

import html
import re

import pytest

from edge_sk.errors import InputError
from edge_sk.export.report import Failure, Report, charts, compare, render_html, render_markdown
from edge_sk.export.report.latencies import latency_in, settings
from tests.export.report.samples import SAMPLE, trained, variant

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`|%{x}{{7*7}}"


def test_the_page_needs_no_other_file(report: Report) -> None:
    page = render_html(report)
    outside = re.findall(r'<(?:script|link|img|iframe|object)\b[^>]*?(?:src|href)\s*=\s*"?([^">\s]+)', _own(page))
    assert outside == []
    assert "default-src 'none'" in html.unescape(page[:2000])
    assert page.count("<script") - _plotly_count("<script") == 3


def _own(page: str) -> str:
    """The page without plotly's code."""
    from plotly.offline import get_plotlyjs

    return page.replace(get_plotlyjs(), "")


def _plotly_count(text: str) -> int:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().count(text)


def test_hostile_names_are_escaped_everywhere(report: Report) -> None:
    for record in report.records[:2]:
        record.arch = HOSTILE
        record.notes = [HOSTILE]
        record.labels = [HOSTILE]
        assert record.parity is not None
        record.parity.data = HOSTILE
    report.failures = [
        Failure(arch=HOSTILE, weights=HOSTILE, format="pte", precision="fp32", stage="export", reason=HOSTILE)
    ]
    own = _own(render_html(report))
    assert "<script>alert" not in own
    assert "<img" not in own
    assert own.lower().count("</script") == 3
    text = render_markdown(report)
    outside_code = re.sub(r"`[^`\n]*`", "", text)
    assert "<img" not in outside_code
    assert "<script" not in outside_code
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_markdown_fits_a_comment(report: Report) -> None:
    many = report.model_copy(update={"records": report.records * 100})
    text = render_markdown(many)
    assert len(text) <= 65_536
    assert "more files; report.json has them all" in text
    short = render_markdown(report)
    assert sum(line.startswith("| `") for line in short.splitlines()) == 16
    assert "not a phone" in short


def test_the_committed_page_is_what_its_report_renders_to(report: Report) -> None:
    assert SAMPLE.with_name("report.md").read_text(encoding="utf-8") == render_markdown(report)


def _files(page: str) -> tuple[str, list[str]]:
    """Head and rows of the table of files."""
    head, body = page.split('<table id="table">')[1].split("</table>")[0].split("<tbody>")
    return head, body.split("<tr ")[1:]


def test_accuracy_has_a_column_where_a_file_has_one(report: Report) -> None:
    some = trained(report.model_copy(deep=True), plain=0.7, sk=0.71)
    some.records.append(variant(some.records[0], accuracy=None, arch="without"))
    for each, there in ((report, False), (some, True)):
        head, rows = _files(_own(render_html(each)))
        assert {len(re.findall("<t[hd][ >]", row)) for row in rows} == {head.count("<th ")}
        header, rule, *rows = [line for line in render_markdown(each).splitlines() if line.startswith("|")]
        assert {line.count("|") for line in (rule, *rows)} == {header.count("|")}
        assert (">Accuracy <" in head) is ("accuracy %" in header) is there
    assert "71.00" in render_markdown(some)


def test_changes_are_shown_on_both_pages(report: Report) -> None:
    new = report.model_copy(deep=True)
    new.records[0].macs += 10**6
    changes = compare(report, new)
    for text in (render_markdown(new, changes), _own(render_html(new, changes))):
        assert "1 regression beyond the noise" in text
        assert "MACs" in text
    assert "No regression beyond the noise" in render_markdown(report, [])
    assert "No regression beyond the noise" in _own(render_html(report, []))


def test_every_point_and_bar_is_a_measurement(report: Report) -> None:
    known = settings(report.records)
    data = charts.tradeoffs(report.records, known)
    assert data["fronts"][0]["macs"]
    assert not data["fronts"][0]["accuracy"]
    points = {
        (file["latencies"][0]["p50_ms"], file["values"]["macs"]) for file in data["files"] if file["latencies"][0]
    }
    assert points == {
        (latency.p50_ms, record.macs / 1e6) for record in report.records if (latency := latency_in(record, known[0]))
    }
    traced = [(record, record.traces[0]) for record in report.records if record.traces]
    drawn = [[operator["p50_ms"] for operator in file["operators"]] for file in charts.operators(traced)]
    assert drawn == [[operator.p50_ms for operator in trace.operators] for _, trace in traced]


def test_pages_without_any_latency_are_whole(report: Report) -> None:
    for record in report.records:
        record.latency, record.traces = [], []
    assert "No latency was measured" in _own(render_html(report))
    assert "Not measured" in render_markdown(report)


def test_a_missing_plotly_is_named(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("plotly", "plotly.offline", "plotly.graph_objects"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r'pip install "edge-sk\[deploy\]"'):
        render_html(report)
