"""What the committed records of deploy/results must show."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sk.export import parity
from edge_sk.export.report import read_report

RESULTS = Path(__file__).parents[2] / "deploy" / "results"
TRAINED = ("shufflenetv2_1.0", "sk_shufflenetv2_1.0@act=relu", "sk_mobilenetv2_1.0@sk_units=all,act=relu6")


@pytest.mark.parametrize("arch", TRAINED)
def test_the_files_of_trained_networks_recognise_what_the_networks_do(arch: str) -> None:
    records = {one.precision: one for one in read_report(RESULTS / "digits.json").records if one.arch == arch}
    fp32, int8 = (records[precision] for precision in ("fp32", "int8"))
    for record in (fp32, int8):
        assert record.backend == "xnnpack"
        assert record.delegation.delegates == 1
        assert record.accuracy.images == record.parity.images == 360
    assert fp32.parity.top1_agreement == 1.0
    assert fp32.parity.relative is not None
    assert fp32.parity.relative <= 1e-4
    assert fp32.accuracy.top1 == fp32.accuracy.eager_top1 > 0.95
    assert int8.accuracy.eager_top1 == fp32.accuracy.top1
    assert int8.accuracy.top1 >= fp32.accuracy.top1 - 0.005
    page = " ".join((RESULTS.parents[1] / "docs" / "networks.md").read_text(encoding="utf-8").split())
    assert int8.parity.top1_agreement is not None
    assert f"{round(360 * (1 - int8.parity.top1_agreement))} ({arch})" in page


def test_fp16_files_of_trained_networks_are_well_within_the_thresholds() -> None:
    """Where sums are kept in fp16, the less exact of the two ways to compute."""
    records = read_report(RESULTS / "fp16.json").records
    assert len(records) == 3
    limits = parity.threshold("pte", "fp16")
    for record in records:
        proof = record.parity
        assert proof.sqnr_db is not None
        assert proof.relative is not None
        assert (record.precision, proof.arithmetic, proof.images) == ("fp16", "fp16", 360)
        assert proof.top1_agreement is not None
        assert proof.top1_agreement > 0.99
        assert proof.sqnr_db >= limits.sqnr_db + 10
        assert 2 * proof.relative <= (limits.relative or 0.0)


def test_int8_costs_sk_more_than_the_plain_network() -> None:
    records = [one for one in read_report(RESULTS / "digits.json").records if one.precision == "int8"]
    decibels = {one.arch: one.parity.sqnr_db or 0.0 for one in records}
    assert set(decibels) == set(TRAINED)
    lost = decibels["shufflenetv2_1.0"] - decibels["sk_shufflenetv2_1.0@act=relu"]
    assert f"keeps {lost:.0f} dB more of SQNR than SK does" in (RESULTS / "NOTES.md").read_text(encoding="utf-8")
