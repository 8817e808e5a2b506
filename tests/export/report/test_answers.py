"""The questions that the report answers: smallest, fastest, does SK pay, which files nothing else beats."""

from __future__ import annotations

import random
from typing import Any

import pytest

from edge_sk.export.record import Accuracy
from edge_sk.export.report import Report
from edge_sk.export.report.answers import answers, not_measured
from edge_sk.export.report.differences import pairs, plain_name
from edge_sk.export.report.latencies import METRICS, Setting, front, settings
from tests.export.report.samples import find, latency, trained, variant


def answer(report: Report, word: str) -> Any:
    return next(one for one in answers(report) if word in one.question)


def test_the_smallest_and_the_fastest_are(report: Report) -> None:
    least = min(report.records, key=lambda r: r.size_bytes)
    assert answer(report, "smallest").answer.startswith(f"{least.arch} {least.precision} .{least.format}")
    timed = [r for r in report.records if r.latency]
    best = min(timed, key=lambda r: next(one.p50_ms for one in r.latency if one.threads == 1))
    assert answer(report, "fastest").answer.startswith(f"{best.arch} {best.precision}")
    assert "not on a phone" in answer(report, "fastest").because


def test_the_fastest_in_fp32_is_named_once(report: Report) -> None:
    fp32, int8, other = (find(report, *name) for name in (
        ("shufflenetv2_1.0",), ("shufflenetv2_1.0", "int8"), ("sk_shufflenetv2_1.0",)))  # fmt: skip
    report.records = [fp32, int8, other]
    for record, ms in ((fp32, 10.0), (int8, 5.0), (other, 20.0)):
        record.latency = [latency(ms)]
    assert "Fastest in fp32: shufflenetv2_1.0, 10.00 ms." in answer(report, "fastest").because
    int8.latency = [latency(15.0)]
    assert answer(report, "fastest").answer.startswith("shufflenetv2_1.0 fp32")
    assert "Fastest in fp32" not in answer(report, "fastest").because


def test_files_within_the_noise_of_the_fastest_are_named_with_it(report: Report) -> None:
    first, second, third = report.records[:3]
    first.latency = [latency(10.0, medians=(9.9, 10.1))]
    second.latency = [latency(10.2, medians=(10.2, 10.3))]
    third.latency = [latency(12.0, medians=(12.0, 12.1))]
    report.records = [first, second, third]
    told = answer(report, "fastest")
    assert "Equally fast within the noise: " in told.because
    assert f"{second.arch} {second.precision}" in told.because.split("Equally fast")[1]
    assert f"{third.arch} {third.precision} .{third.format}" not in told.because.split("Equally fast")[1]


def test_a_front_of_cost_says_why_and_denies_no_accuracy(report: Report) -> None:
    one = report.records[0]
    one.accuracy = Accuracy(top1=0.9, eager_top1=0.9, images=360, data="digits")
    report.records = [one, variant(one, accuracy=None, arch="without")]
    because = answer(report, "front").because
    assert "cost only, because fewer than two files have both a latency and an accuracy" in because
    assert "no accuracy was measured" not in because
    report.records[1].accuracy = one.accuracy
    assert "more accurate" in answer(report, "front").because


def test_an_unfinished_training_is_said(report: Report) -> None:
    assert "end of its training" not in " ".join(not_measured(report))
    record = find(report, "shufflenetv2_1.0")
    record.training = "not finished: 1 of 3 epochs"
    (said,) = [one for one in not_measured(report) if "training" in one and "shufflenetv2_1.0" in one]
    assert said == "shufflenetv2_1.0 at the end of its training, which is not finished: 1 of 3 epochs."


def test_what_was_not_measured_is_said(report: Report) -> None:
    said = " ".join(not_measured(report))
    assert "Accuracy of 16 of 16 files" in said
    assert "phone" in said
    assert "8 .mlpackage files" in said
    for record in report.records:
        record.latency = []
    assert answer(report, "fastest").answer == "Not measured"
    assert answer(report, "front").answer == "Not measured"
    assert "Latency, load time and memory of 8 .pte files" in " ".join(not_measured(report))


def test_only_phone_latencies_are_called_a_phone_s(report: Report) -> None:
    for record in report.records:
        record.latency = [latency(5.0, where="Pixel 9")]
    assert "on Pixel 9" in answer(report, "fastest").because
    assert not any("Anything on a phone" in one for one in not_measured(report))


@pytest.mark.parametrize(
    ("arch", "plain"),
    [
        ("sk_shufflenetv2_1.0", "shufflenetv2_1.0"),
        ("sk_shufflenetv2_1.0@reduction=8", "shufflenetv2_1.0"),
        ("sknet50", "resnext50"),
        ("senet29", "resnext29_8x64d"),
        ("sknet29", "resnext29_16x32d"),
        ("shufflenetv2_1.0", None),
        ("timm:mobilenetv4_conv_small", None),
    ],
)
def test_the_plain_form_of_a_name(arch: str, plain: str | None) -> None:
    assert plain_name(arch) == plain


def test_the_plain_forms_of_the_zoo_are_in_the_zoo() -> None:
    import edge_sk

    names = edge_sk.list_models()
    for name in names:
        if name.startswith(("sk", "se")):
            assert plain_name(name) in names, name


def test_pairs_differ_in_nothing_but_the_network(report: Report) -> None:
    found = pairs(report.records, settings(report.records)[0])
    assert len(found) == 8
    for pair in found:
        assert pair.plain.arch == "shufflenetv2_1.0"
        assert (pair.plain.format, pair.plain.precision) == (pair.changed.format, pair.changed.precision)
    sk = next(p for p in found if p.changed.arch.startswith("sk_") and p.changed.precision == "fp32")
    assert sk.macs == pytest.approx(sk.changed.macs / sk.plain.macs - 1)
    assert sk.params == pytest.approx(0.079, abs=0.001)


def test_sk_pays_only_beyond_the_noise_and_on_the_front(report: Report) -> None:
    assert "gain was not measured" in answer(report, "SK").answer
    assert answer(trained(report, plain=0.70, sk=0.75), "SK").answer.startswith("Yes")
    assert "within the noise" in answer(trained(report, plain=0.70, sk=0.705), "SK").answer
    assert "within the noise" in answer(trained(report, plain=0.70, sk=0.75, images=64), "SK").answer
    better = trained(report, plain=0.70, sk=0.75)
    other = variant(better.records[0], arch="other", accuracy=Accuracy(top1=0.8, eager_top1=0.8, images=64, data="x"))
    better.records.append(other)
    assert "another network" in answer(better, "SK").answer


def test_accuracies_on_different_images_are_not_compared(report: Report) -> None:
    mixed = trained(report, plain=0.70, sk=0.75)
    assert mixed.records[1].accuracy is not None
    mixed.records[1].accuracy.data = "y"
    assert pairs(mixed.records, None)[0].accuracy is None


def test_the_front_is_what_no_other_file_beats(report: Report) -> None:
    chance = random.Random(0)
    template = report.records[0]
    for metric in METRICS[1:2]:
        records = [
            variant(template, macs=chance.randrange(1, 8) * 10**6, latency=[latency(chance.randrange(1, 8))])
            for _ in range(60)
        ]
        setting = Setting.of(records[0].latency[0])
        found = front(records, setting, metric)
        points = [(r.latency[0].p50_ms, r.macs) for r in records]
        for index, (x, y) in enumerate(points):
            beaten = any((a < x and b <= y) or (a <= x and b < y) for a, b in points)
            assert (index in found) != beaten
        assert [points[i] for i in found] == sorted(points[i] for i in found)


def test_more_accuracy_is_better(report: Report) -> None:
    setting = Setting.of(latency(1.0))
    records = [
        variant(
            report.records[0],
            accuracy=Accuracy(top1=top1, eager_top1=top1, images=9, data="x"),
            latency=[latency(ms)],
        )
        for top1, ms in ((0.5, 1.0), (0.9, 2.0), (0.8, 3.0))
    ]
    assert front(records, setting, METRICS[0]) == [0, 1]
