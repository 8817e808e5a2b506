"""Compare exported networks: their cost, whether their files can be trusted, where and how that was measured."""

from edge_sk.export.report.differences import Change, compare
from edge_sk.export.report.model import Failure, NetworkCost, Report, read_report, write_report
from edge_sk.export.report.pages import render_html, render_markdown

__all__ = [
    "Change",
    "Failure",
    "NetworkCost",
    "Report",
    "compare",
    "read_report",
    "render_html",
    "render_markdown",
    "write_report",
]
