from __future__ import annotations

import html
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edge_sk.errors import InputError
from edge_sk.export.record import Accuracy, Latency, Leftover, Record, read_record
from edge_sk.export.report import (
    Failure,
    Report,
    charts,
    compare,
    read_report,
    render_html,
    render_markdown,
    schema,
    write_report,
)
from edge_sk.export.report.answers import answers, not_measured
from edge_sk.export.report.fronts import METRICS, front
from edge_sk.export.report.model import join, read_records
from edge_sk.export.report.pairs import pairs, plain_name
from edge_sk.export.report.settings import Setting, latency_in, noise_ms, settings
from edge_sk.export.report.verdicts import delegation_mark, parity_mark

ROOT = Path(__file__).parents[2]
# What the exporter wrote for four networks; only the times are of a busy machine.
SAMPLE = Path(__file__).parents[2] / "docs" / "report" / "report.json"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`|%{x}{{7*7}}"


@pytest.fixture
def report() -> Report:
    return read_report(SAMPLE)


def latency(
    p50: float, *, medians: tuple[float, ...] = (), threads: int = 1, where: str = "phone", **more: Any
) -> Latency:
    values: dict[str, Any] = {
        "threads": threads, "p50_ms": p50, "p90_ms": p50 * 1.2, "min_ms": p50 * 0.9, "mean_ms": p50,
        "round_p50_ms": list(medians), "runs": 150, "rounds": 3, "load_ms": 5.0, "peak_memory_mb": None,
        "where": where, "runtime": "test", "date": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Latency(**values | more)


def variant(record: Record, **changes: Any) -> Record:
    return record.model_copy(deep=True, update=changes)


def find(report: Report, arch: str, precision: str = "fp32", form: str = "pte") -> Record:
    return next(r for r in report.records if (r.arch, r.precision, r.format) == (arch, precision, form))


def answer(report: Report, word: str) -> Any:
    return next(one for one in answers(report) if word in one.question)


# The answers


def test_the_smallest_and_the_fastest_are(report: Report) -> None:
    least = min(report.records, key=lambda r: r.size_bytes)
    assert answer(report, "smallest").answer.startswith(f"{least.arch} {least.precision} .{least.format}")
    timed = [r for r in report.records if r.latency]
    best = min(timed, key=lambda r: next(one.p50_ms for one in r.latency if one.threads == 1))
    assert answer(report, "fastest").answer.startswith(f"{best.arch} {best.precision}")
    assert "not on a phone" in answer(report, "fastest").because


def test_files_within_the_noise_of_the_fastest_are_named_with_it(report: Report) -> None:
    first, second, third = report.records[:3]
    first.latency = [latency(10.0, medians=(9.9, 10.1))]
    second.latency = [latency(10.2, medians=(10.2, 10.3))]
    third.latency = [latency(12.0, medians=(12.0, 12.1))]
    report.records = [first, second, third]
    told = answer(report, "fastest")
    assert "Not told apart" in told.because
    assert f"{second.arch} {second.precision}" in told.because.split("Not told apart")[1]
    assert f"{third.arch} {third.precision} .{third.format}" not in told.because.split("Not told apart")[1]


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


# Does SK pay


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
    found = plain_name(arch)
    assert (found and found[0]) == plain


def test_the_plain_forms_of_the_zoo_are_in_the_zoo() -> None:
    import edge_sk

    names = edge_sk.list_models()
    for name in names:
        if name.startswith(("sk", "se")):
            found = plain_name(name)
            assert found is not None
            assert found[0] in names, name


def test_pairs_differ_in_nothing_but_the_network(report: Report) -> None:
    found = pairs(report.records, settings(report.records)[0])
    assert len(found) == 8
    for pair in found:
        assert pair.plain.arch == "shufflenetv2_1.0"
        assert (pair.plain.format, pair.plain.precision) == (pair.changed.format, pair.changed.precision)
    sk = next(p for p in found if p.changed.arch.startswith("sk_") and p.changed.precision == "fp32")
    assert sk.macs == pytest.approx(sk.changed.macs / sk.plain.macs - 1)
    assert sk.params == pytest.approx(0.079, abs=0.001)


def trained(report: Report, *, plain: float, sk: float, images: int = 10_000) -> Report:
    records = [find(report, "shufflenetv2_1.0"), find(report, "sk_shufflenetv2_1.0")]
    for record, top1 in zip(records, (plain, sk), strict=True):
        record.weights, record.accuracy = "run", Accuracy(top1=top1, eager_top1=top1, images=images, data="x")
    report.records = records
    return report


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


# The front


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


# Noise and comparison


def test_noise_is_the_spread_of_the_rounds() -> None:
    assert noise_ms(latency(10.0, medians=(9.0, 10.0, 11.5))) == pytest.approx(2.5)
    assert noise_ms(latency(10.0, medians=(10.0, 10.0))) == pytest.approx(0.3)
    assert noise_ms(latency(10.0)) == pytest.approx(2.0)


def test_a_report_is_no_worse_than_itself(report: Report) -> None:
    assert compare(report, report.model_copy(deep=True)) == []


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


# Marks


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
    whole.parity.sqnr_db = None
    assert parity_mark(whole).level == "bad"
    whole.parity = None
    assert parity_mark(whole).level == "unknown"


# Joining


def test_measurements_from_elsewhere_join_their_file(report: Report) -> None:
    mac = variant(find(report, "shufflenetv2_1.0", "fp16", "mlpackage"))
    mac.latency = [latency(0.4, where="MacBook", threads=0)]
    assert mac.program is not None
    mac.program.compute_units = {"MacBook": {"Neural Engine": 90, "CPU": 2}}
    joined = join([*report.records, mac])
    assert len(joined) == len(report.records)
    assert latency_in(find(Report(records=joined, manifest={}), "shufflenetv2_1.0", "fp16", "mlpackage"),
                      Setting("MacBook", "test", 0)) is not None  # fmt: skip
    assert any("90 on Neural Engine" in delegation_mark(record).reason for record in joined)
    newer = variant(mac, latency=[latency(0.3, where="MacBook", threads=0, date="2026-02-01T00:00:00+00:00")])
    again = join([newer, *joined])
    assert [one.p50_ms for record in again for one in record.latency if one.where == "MacBook"] == [0.3]
    assert len(join([*report.records, variant(mac, size_bytes=1)])) == len(report.records) + 1


def test_records_are_read_from_files_folders_and_reports(report: Report, tmp_path: Path) -> None:
    record = report.records[0]
    (tmp_path / "a.pte.json").write_text(record.model_dump_json())
    assert read_records([tmp_path, tmp_path / "a.pte.json"]) == [record, record]
    assert len(read_records([SAMPLE])) == 16
    write_report(tmp_path / "again.json", report)
    assert read_report(tmp_path / "again.json") == report


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file .*; give a record or a report.json"),
        ("{", "is not JSON"),
        ("{}", "arch: Field required; it is not a valid record"),
        ('{"records": [], "surprise": 1}', "manifest: Field required; it is not a valid report"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_records([path])


def test_a_folder_without_records_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no record, which ends in \.pte\.json"):
        read_records([tmp_path])


# The pages


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
    figures = charts.tradeoffs(report.records, known)
    assert "0/macs" in figures
    assert "0/accuracy" not in figures
    points = {(t["x"][0], t["y"][0]) for t in figures["0/macs"]["data"] if t["mode"] == "markers"}
    assert points == {
        (one.p50_ms, record.macs / 1e6) for record in report.records if (one := latency_in(record, known[0]))
    }
    traced = [(record, record.traces[0]) for record in report.records if record.traces]
    bars = charts.operators(traced)
    assert bars is not None
    drawn = sum(sum(trace["x"]) for trace in bars["data"])
    assert drawn == pytest.approx(sum(o.p50_ms for _, trace in traced for o in trace.operators), rel=1e-3)


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


# The schema


def test_the_documented_schema_is_the_schema() -> None:
    assert (ROOT / "docs" / "record.md").read_text(encoding="utf-8") == schema.describe(), (
        "run: python -m edge_sk.export.report.schema > docs/record.md"
    )


def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    content = json.loads(SAMPLE.read_text())
    content["records"][0]["latency"] = [{"threads": 1}]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"records\.0\.latency\.0\.p50_ms: Field required"):
        read_report(path)
    content["records"][0]["latency"], content["records"][0]["speed"] = [], 1
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"records\.0\.speed: Extra inputs are not permitted"):
        read_report(path)


def test_the_committed_example_is_a_report() -> None:
    example = read_report(ROOT / "docs" / "report" / "report.json")
    archs = {record.arch for record in example.records}
    assert archs == {
        "shufflenetv2_1.0", "se_shufflenetv2_1.0", "sk_shufflenetv2_1.0", "timm:mobilenetv4_conv_small",
    }  # fmt: skip
    assert all(record.latency for record in example.records if record.format == "pte")


# Collecting


def fake_exports(monkeypatch: pytest.MonkeyPatch, report: Report, calls: list[str]) -> None:
    """Exports and measurements that write sample records at once."""
    from edge_sk.export import latency as timing
    from edge_sk.export.record import write_record
    from edge_sk.export.report import collect

    def export(form: str) -> Callable[..., Record]:
        def write(network: Any, folder: Path, *, precision: str, **_: Any) -> Record:
            calls.append(f"export {precision} .{form}")
            record = variant(find(report, "shufflenetv2_1.0", precision, form), latency=[], traces=[])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / record.file).write_text(f"{form} {precision}")
            write_record(folder / record.file, record)
            return record

        return write

    def measure(files: list[Path], *, threads: int, rounds: int, runs: int) -> list[Latency]:
        calls.append(f"measure {len(files)} files, {threads}")
        more = {"where": timing.this_host(), "rounds": rounds, "runs": rounds * runs}
        return [latency(3.0, threads=threads, **more) for _ in files]

    monkeypatch.setattr(collect, "to_pte", export("pte"))
    monkeypatch.setattr(collect, "to_mlpackage", export("mlpackage"))
    monkeypatch.setattr(timing, "measure", measure)
    monkeypatch.setattr(timing, "operator_times", lambda *_, **__: calls.append("trace") or [])


def test_what_is_made_and_unchanged_is_kept(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from edge_sk.export.network import from_arch
    from edge_sk.export.report.collect import Artifact, Request, collect

    calls: list[str] = []
    fake_exports(monkeypatch, report, calls)
    network = dataclasses.replace(from_arch("shufflenetv2_0.5"), input_size=(3, 32, 32))
    artifacts: tuple[Artifact, ...] = (("pte", "fp32"), ("pte", "int8"), ("mlpackage", "fp16"))
    request = Request(artifacts=artifacts, threads=(1, 2), rounds=2, runs=5, argv=["x"])
    steps: list[str] = []

    def run(**changes: Any) -> list[str]:
        calls.clear()
        steps.clear()
        collected = collect([network], tmp_path, dataclasses.replace(request, **changes), steps.append)
        assert len(collected.records) == len(artifacts)
        return calls[:]

    everything = ["export fp32 .pte", "export int8 .pte", "export fp16 .mlpackage"]
    everything += ["measure 2 files, 1", "measure 2 files, 2", "trace", "trace"]
    assert run() == everything
    assert len(steps) == request.steps(1)
    assert run() == []
    assert run(threads=(1, 2, 4)) == ["measure 2 files, 4"]
    assert run(rounds=3) == ["measure 2 files, 1", "measure 2 files, 2"]

    file = tmp_path / report.records[0].file
    assert read_record(f"{file}.json").latency
    file.write_text("damaged")
    assert run() == ["export fp32 .pte", "measure 2 files, 1", "measure 2 files, 2", "trace"]
    Path(f"{file}.json").unlink()
    assert run()[0] == "export fp32 .pte"
    (tmp_path / "artifacts.json").write_text("{")
    assert run() == everything

    with torch.no_grad():
        next(network.model.parameters()).add_(1)
    assert run() == everything


def test_one_failing_file_costs_only_itself(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_sk.export import latency as timing
    from edge_sk.export.network import from_arch
    from edge_sk.export.report import collect

    calls: list[str] = []
    fake_exports(monkeypatch, report, calls)
    working = timing.measure

    def refuse(*_: Any, **__: Any) -> Record:
        raise InputError("cannot be converted")

    def measure(files: list[Path], **options: Any) -> list[Latency]:
        if any("int8" in file.name for file in files):
            raise InputError("cannot run it")
        return working(files, **options)

    monkeypatch.setattr(collect, "to_mlpackage", refuse)
    monkeypatch.setattr(timing, "measure", measure)
    request = collect.Request(
        artifacts=(("pte", "fp32"), ("pte", "int8"), ("mlpackage", "fp16")), threads=(1,), rounds=1, runs=1, argv=["x"]
    )
    collected = collect.collect([from_arch("shufflenetv2_0.5")], tmp_path, request, lambda _: None)
    assert [(one.precision, one.stage, one.reason) for one in collected.failures] == [
        ("fp16", "export", "cannot be converted"),
        ("int8", "latency", "cannot run it"),
    ]
    assert [len(record.latency) for record in collected.records] == [1, 0]


def test_two_networks_in_one_place_are_refused(tmp_path: Path) -> None:
    from edge_sk.export.network import from_arch
    from edge_sk.export.report.collect import Request, collect

    network = from_arch("shufflenetv2_0.5")
    request = Request(artifacts=(), threads=(1,), rounds=1, runs=1, argv=["x"])
    with pytest.raises(InputError, match=r"two networks would write shufflenetv2_0\.5"):
        collect([network, network], tmp_path, request, lambda _: None)


def test_an_untrained_network_is_settled_and_a_trained_one_is_left() -> None:
    import dataclasses

    from edge_sk.export.network import from_arch
    from edge_sk.export.report.settle import settle

    network = dataclasses.replace(from_arch("se_shufflenetv2_0.5"), input_size=(3, 64, 64))
    images = next(iter(network.images(split="test", limit=16)))[0]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (network.mean, network.std))

    def varying(model: torch.nn.Module) -> float:
        """How much of the logits depends on the image."""
        with torch.no_grad():
            logits = model((images - mean) / std)
        return ((logits - logits.mean(0)).square().mean() / logits.square().mean()).sqrt().item()

    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    settled = settle(network)
    assert varying(network.model) < 0.01 < 0.03 < varying(settled.model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.model.state_dict().items())
    again = settle(network).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in settled.model.state_dict().items())
    trained = dataclasses.replace(network, weights="a-run")
    assert settle(trained) is trained
