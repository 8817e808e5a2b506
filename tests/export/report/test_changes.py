"""Two reports compared beyond their noise; the marks of a file."""

from __future__ import annotations

import pytest

from edge_sk.export.record import Leftover
from edge_sk.export.report import Failure, Report, compare
from edge_sk.export.report.latencies import difference_noise_ms, noise_ms
from edge_sk.export.report.marks import delegation_mark, parity_mark
from tests.export.report.samples import find, latency, trained


def test_noise_is_the_spread_of_the_rounds() -> None:
    assert noise_ms(latency(10.0, medians=(9.0, 10.0, 11.5))) == pytest.approx(2.5)
    assert noise_ms(latency(10.0, medians=(10.0, 10.0))) == pytest.approx(0.3)
    assert noise_ms(latency(10.0)) == pytest.approx(2.0)


def test_a_report_is_no_worse_than_itself(report: Report) -> None:
    assert compare(report, report.model_copy(deep=True)) == []


def test_noise_of_a_difference_leaves_out_what_met_both() -> None:
    slow, fast = latency(10.0, medians=(10.0, 12.0, 9.0)), latency(8.0, medians=(8.0, 9.5, 7.2))
    assert difference_noise_ms(slow, fast) == pytest.approx(0.7)  # 2.0, 2.5, 1.8
    assert difference_noise_ms(fast, slow) == pytest.approx(0.7)
    steady = latency(8.0, medians=(8.0, 10.0, 7.0))
    assert difference_noise_ms(slow, steady) == pytest.approx(0.3)
    for apart in (latency(8.0, medians=(8.0, 9.5, 7.2), date="2026-01-02"), latency(8.0, medians=(8.0, 10.3))):
        assert difference_noise_ms(slow, apart) == noise_ms(slow) + noise_ms(apart)


@pytest.mark.parametrize(
    ("p50", "verdict"), [(10.5, None), (11.3, "worse"), (8.7, "better")], ids=["noise", "slower", "faster"]
)
def test_latency_counts_beyond_the_noise_of_both(report: Report, p50: float, verdict: str | None) -> None:
    report.records = report.records[:1]
    report.records[0].latency = [latency(10.0, medians=(9.8, 10.4))]
    new = report.model_copy(deep=True)
    new.records[0].latency = [latency(p50, medians=(p50, p50 + 0.5))]
    found = compare(report, new)
    assert [one.verdict for one in found] == ([verdict] if verdict else [])
    if verdict:
        assert f"10.00 → {p50:.2f} ms" in found[0].what
        assert "noise 1.10 ms" in found[0].what


def test_latencies_of_different_places_are_not_compared(report: Report) -> None:
    report.records = report.records[:1]
    report.records[0].latency = [latency(10.0, where="one")]
    new = report.model_copy(deep=True)
    new.records[0].latency = [latency(99.0, where="another")]
    assert [one.verdict for one in compare(report, new)] == ["not comparable"]


def test_counts_size_marks_and_lost_files_are_compared(report: Report) -> None:
    new = report.model_copy(deep=True)
    bigger, weaker, split, *_ = [record for record in new.records if record.format == "pte"]
    bigger.macs += 1
    bigger.size_bytes = round(bigger.size_bytes * 1.02)
    assert weaker.parity is not None
    weaker.parity.sqnr_db = weaker.parity.threshold_sqnr_db - 1
    assert split.delegation is not None
    split.delegation.left = [Leftover(operator="mean", count=2, why="axes", remedy="keepdim")]
    lost = new.records.pop()
    new.failures.append(
        Failure(arch=lost.arch, weights=lost.weights, format=lost.format, precision=lost.precision, stage="export",
                reason="no such operator")
    )  # fmt: skip
    worse = [one.what for one in compare(report, new) if one.verdict == "worse"]
    assert len(worse) == 5
    for word in ("MACs", "size", "parity", "delegation", "no such operator"):
        assert any(word in what for what in worse), word
    assert {one.verdict for one in compare(new, report)} == {"better"}


def test_accuracy_is_compared_beyond_two_standard_errors(report: Report) -> None:
    old = trained(report, plain=0.70, sk=0.75)
    new = trained(old.model_copy(deep=True), plain=0.66, sk=0.749)
    found = compare(old, new)
    assert [one.what for one in found] == ["accuracy 70.00 → 66.00 % (noise 1.32)"]


def test_marks_give_reasons(report: Report) -> None:
    whole = find(report, "shufflenetv2_1.0")
    assert str(parity_mark(whole)) == "✓ equal"
    assert "64 images" in parity_mark(whole).reason
    assert delegation_mark(whole).word == "whole"
    assert whole.delegation is not None
    whole.delegation.left = [Leftover(operator="split_copy", count=13, why="no split", remedy="take slices")]
    whole.delegation.delegates = 15
    assert str(delegation_mark(whole)) == "~ 15 delegates, 13 left"
    assert "13x split_copy: no split (take slices)" in delegation_mark(whole).reason
    assert whole.parity is not None
    whole.parity.accepted = ["sqnr_db>=0"]
    assert str(parity_mark(whole)) == "~ accepted"
    assert "by --accept sqnr_db>=0" in parity_mark(whole).reason
    whole.parity.sqnr_db = None
    assert parity_mark(whole).level == "bad"
    whole.parity = None
    assert parity_mark(whole).level == "unknown"
