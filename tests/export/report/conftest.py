"""The sample report."""

from __future__ import annotations

import pytest

from edge_sk.export.report import Report, read_report
from tests.export.report.samples import SAMPLE


@pytest.fixture
def report() -> Report:
    return read_report(SAMPLE)
