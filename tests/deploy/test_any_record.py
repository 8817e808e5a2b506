"""Whatever is in a record or report, it becomes a page or one short line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plotly.offline
import pytest
from hypothesis import HealthCheck, given, settings

from deploy import claims, sweeping
from deploy.benchmark import _read as read_rows
from deploy.collecting import join, read_records
from edge_sk.errors import InputError
from edge_sk.export.report import Report, compare, read_report, render_html, render_markdown
from edge_sk.export.report.answers import answers
from tests.export.report.samples import SAMPLE
from tests.mutations import mutated, outcome

NAMES = ("shufflenetv2_1.0", "sk_shufflenetv2_1.0")


def sample() -> dict[str, Any]:
    """A report of a network with and without selective kernels, with every part that a record can have."""
    content = json.loads(SAMPLE.read_text(encoding="utf-8"))
    kept = [r for r in content["records"] if r["arch"] in NAMES and r["precision"] in ("fp32", "fp16")]
    for record in kept:
        record["accuracy"] = {"top1": 0.5, "eager_top1": 0.5, "images": 100, "data": "x"}
        record["labels"] = None if record["format"] == "pte" else [str(i) for i in range(record["num_classes"])]
        record["traces"] = [trace | {"operators": trace["operators"][:2]} for trace in record["traces"][:1]]
    failure = {"arch": "a", "weights": "w", "format": "pte", "precision": "int8", "stage": "export", "reason": "r"}
    return content | {"records": kept, "costs": content["costs"][:1], "failures": [failure]}


VALID = sample()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any") / "x.json"


@pytest.fixture(autouse=True)
def no_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its megabytes are not what is tested."""
    monkeypatch.setattr(plotly.offline, "get_plotlyjs", str)


def show(report: Report, older: Report | None = None) -> None:
    """Everything that deploy/report.py makes of a report."""
    report.records = join(report.records)
    changes = compare(older, report) if older else None
    for text in (render_html(report, changes), render_markdown(report, changes), report.model_dump_json()):
        assert text.encode()
    assert "Infinity" not in render_html(report)
    assert answers(report)


some = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@some
@given(mutated(VALID))
def test_any_report_is_a_page_or_one_line(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")
    good = Report.model_validate(VALID)

    def use() -> None:
        report = read_report(file)
        if report.records:
            show(report)
            show(Report.model_validate(VALID), older=report)
            show(report, older=good)

    assert str(file) in (outcome(use)[1] or str(file))


@some
@given(mutated(VALID["records"][1]))
def test_any_record_is_a_page_or_one_line(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")

    def use() -> None:
        show(Report(records=[*Report.model_validate(VALID).records, *read_records([file])], manifest={}))

    assert str(file) in (outcome(use)[1] or str(file))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("params",), 0, "params"),
        (("macs",), 0, "macs"),
        (("num_classes",), 0, "num_classes"),
        (("params",), 10**400, "params"),
        (("params",), True, "params"),
        (("parity", "images"), 0, "parity.images"),
        (("parity", "sqnr_db"), float("nan"), "NaN is not a JSON number"),
        (("accuracy", "images"), 0, "accuracy.images"),
        (("latency", 0, "p50_ms"), 0.0, "latency.0.p50_ms"),
        (("latency", 0, "round_p50_ms"), [1e308, -1e308], "latency.0.round_p50_ms.0"),
        (("input", "shape"), [1, 3, 224], "input.shape"),
        (("input", "mean"), [0.5, 0.5], "input.mean and input.std have [2, 3] values for 3 channels"),
        (("input", "std"), [1.0, 0.0, 1.0], "input.std.1"),
        (("labels",), ["a"], "labels has 1 names for 1000 classes"),
        (("file",), "../../x.pte", "file"),
        (("manifest", "command"), "\ud800", "surrogates"),
    ],
)
def test_a_number_that_no_page_can_show_is_named(file: Path, path: tuple[Any, ...], value: Any, said: str) -> None:
    content = sample()["records"][0]
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(content), encoding="utf-8")
    assert said in outcome(lambda: read_records([file]))[1]


def test_a_manifest_of_another_program_is_shown_as_far_as_it_goes() -> None:
    for manifest in ({}, {"command": 1, "date": 3, "commit": [], "versions": 3, "host": [1]}, {"host": {"cpu": "x"}}):
        show(Report.model_validate(VALID | {"manifest": manifest}))


def test_links_that_lead_nowhere_are_one_line(tmp_path: Path) -> None:
    for name in ("loop", "net.pte.json"):
        (tmp_path / name).symlink_to(name)
        with pytest.raises((InputError, OSError)) as error:
            read_records([tmp_path / name])
        assert "\n" not in str(error.value)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert "holds no record" in outcome(lambda: read_records([tmp_path / "folder"]))[1]


ROW = {"file": "a.pte", "sha256": "0" * 64} | VALID["records"][0]["latency"][0]


@some
@given(mutated(ROW))
def test_any_line_of_a_benchmark_is_a_row_or_one_line(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content) + "\n", encoding="utf-8")
    assert "line 1 of" in (outcome(read_rows, file)[1] or "line 1 of")


@some
@given(mutated({"networks": {"a": {"size": 1.0}}, "precision": "fp16"}))
def test_any_record_of_a_sweep_is_continued_or_one_line(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")
    args = sweeping.command_line("x", "x", None).parse_args(["--resume", "--output", str(file.parent)])

    def table(content: dict[str, Any]) -> str:
        return "".join(f"{name} {row['size']:.1f}" for name, row in content["networks"].items())

    def use() -> None:
        sweeping.sweep({}, args, "x", facts={"precision": "fp16"}, describe=str, table=table, command=[])

    assert str(file) in (outcome(use)[1] or str(file))


def test_claims_are_not_made_of_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(claims.latency, "measure", lambda *args, **_: measured.append(args))
    for content in ({}, [], {"x": 1}, {name: {"export_seconds": 0} for name in claims.exports(tmp_path)}):
        (tmp_path / "made.json").write_text(json.dumps(content))
        assert claims.main(["--work", str(tmp_path), "--reuse", "--output", str(tmp_path / "latency.json")]) == 2
    assert not measured
