from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

import edge_sk
from deploy.report import main
from edge_sk.export.report import Report, read_report, render_html
from edge_sk.export.report.latencies import METRICS, front, latency_in, settings
from tests.export.test_network import save_run

SAMPLE = Path(__file__).parents[2] / "docs" / "report" / "report.json"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>%{x}<b>bold</b>"

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


# The command


def test_reports_on_records_made_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--records", str(SAMPLE), "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.md", "report.json"}
    assert read_report(tmp_path / "report.json").records == read_report(SAMPLE).records
    said = capsys.readouterr()
    assert "Which file is smallest?" in said.out
    assert said.err == ""


def test_a_regression_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = read_report(SAMPLE)
    for one in (one for record in old.records for one in record.latency):
        one.round_p50_ms = [0.95 * one.p50_ms, one.p50_ms, 1.05 * one.p50_ms]  # whatever the committed ones' noise
    slow = old.model_copy(deep=True)
    for one in (one for record in slow.records for one in record.latency):
        one.p50_ms *= 3
        one.round_p50_ms = [3 * ms for ms in one.round_p50_ms]
    (tmp_path / "slow.json").write_text(slow.model_dump_json())
    (tmp_path / "old.json").write_text(old.model_dump_json())
    output = tmp_path / "out"
    options = ["--output", str(output), "--against"]
    assert main(["--records", str(tmp_path / "slow.json"), *options, str(tmp_path / "old.json")]) == 1
    assert "regression: shufflenetv2_1.0 fp32 .pte: latency, 1 thread" in capsys.readouterr().err
    assert "beyond the noise" in (output / "report.md").read_text()
    assert main(["--records", str(tmp_path / "old.json"), *options, str(tmp_path / "slow.json")]) == 0
    assert main(["--records", str(tmp_path / "old.json"), *options, str(tmp_path / "old.json")]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to report on; give --arch, --checkpoint or --records"),
        (["--arch", "shufflenetv2_1"], "unknown"),
        (["--checkpoint", "nowhere"], "nowhere does not exist"),
        (["--records", "nowhere.json"], "there is no file nowhere.json"),
        (["--records", str(SAMPLE), "--against", "nowhere.json"], "there is no file nowhere.json"),
        (["--records", str(SAMPLE), "--threads", "0"], "--threads 0 is not a number of threads"),
        (["--records", str(SAMPLE), "--rounds", "0"], "--rounds 0 measures nothing"),
        (["--arch", "shufflenetv2_0.5", "--input-size", "0"], "--input-size 0 is no image"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_taken_on_demand_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import deploy.report

    state = edge_sk.create_model("shufflenetv2_0.5", num_classes=3).state_dict()
    command = ["--checkpoint", str(save_run(tmp_path / "run", state, "digits", epochs=1)), "--output"]
    assert main([*command, str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "run is not finished (1 of 2 epochs); continue it" in said
    assert "--unfinished" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(deploy.report, "_collect", lambda *_: Report(records=[], manifest={}))
    main([*command, str(tmp_path / "out"), "--unfinished"])
    assert "warning: the training of run is not finished: 1 of 2 epochs\n" in capsys.readouterr().err


def test_an_old_report_survives_a_failing_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import deploy.report

    (tmp_path / "report.html").write_text("old")

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(deploy.report.reports, "render_html", full)
    assert main(["--records", str(SAMPLE), "--output", str(tmp_path)]) == 1
    assert (tmp_path / "report.html").read_text() == "old"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_from_a_name_to_a_page_and_on_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--arch", "shufflenetv2_0.5", "--input-size", "64", "--threads", "1", "--rounds", "1", "--runs", "10"]
    assert main([*command, "--output", str(tmp_path)]) == 0
    assert "[1/8] profile shufflenetv2_0.5" in capsys.readouterr().err
    first = read_report(tmp_path / "report.json")
    assert [(r.format, r.precision) for r in first.records] == [
        ("pte", "fp32"), ("pte", "int8"), ("mlpackage", "fp16"), ("mlpackage", "int8"),
    ]  # fmt: skip
    for record in first.records:
        assert record.parity is not None
        assert len(record.latency) == len(record.traces) == (record.format == "pte")
        assert record.input.shape == [1, 3, 64, 64]
        assert record.macs == first.costs[0].macs
    assert main([*command, "--output", str(tmp_path), "--against", str(tmp_path / "report.json")]) == 0
    assert read_report(tmp_path / "report.json").records == first.records


# The page, in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def sample_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_html(read_report(SAMPLE)), encoding="utf-8")
    return path


class Opened:
    """A page that fails the test if its console has a complaint or it asks for anything."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "request", lambda request: request.url == path.as_uri() or self.complaints.append(f"asked: {request.url}")
        )
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#tradeoff .main-svg")

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: Any, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert self.complaints == []

    @staticmethod
    def names(page: Any) -> list[str]:
        """Network and precision of the visible rows."""
        return page.eval_on_selector_all(
            "#table tbody tr:not([hidden])", "rows => rows.map(r => r.cells[0].innerText + ' ' + r.cells[1].innerText)"
        )


def column(page: Any, title: str) -> list[str]:
    titles = page.eval_on_selector_all("#table thead th", "heads => heads.map(h => h.innerText)")
    index = next(i for i, one in enumerate(titles) if one.startswith(title))
    return page.eval_on_selector_all("#table tbody tr", f"rows => rows.map(r => r.cells[{index}].dataset.value)")


@needs_browser
def test_opens_without_complaints_and_draws_both_charts(browser: Any, sample_page: Path) -> None:
    with Opened(browser, sample_page) as page:
        assert len(Opened.names(page)) == 16
        assert page.locator("#tradeoff .scatterlayer .trace").count() == 9
        assert page.locator("#operator-chart .barlayer .trace").count() >= 3
        assert page.locator("h1").count() == 1


@needs_browser
def test_every_point_and_bar_that_is_drawn_is_a_measurement(browser: Any, sample_page: Path) -> None:
    records = read_report(SAMPLE).records
    with Opened(browser, sample_page) as page:
        traces = page.evaluate("document.getElementById('tradeoff').data.map(({mode, x, y}) => ({mode, x, y}))")
        bars = page.evaluate("document.getElementById('operator-chart').data.map(({x}) => Array.from(x))")
    setting = settings(records)[0]
    timed = [(latency, record) for record in records if (latency := latency_in(record, setting))]
    points = [(trace["x"][0], trace["y"][0]) for trace in traces if trace["mode"] == "markers"]
    assert points == [(latency.p50_ms, record.macs / 1e6) for latency, record in timed]
    on_front = [timed[index] for index in front([record for _, record in timed], setting, METRICS[1])]
    (line,) = [trace for trace in traces if trace["mode"] == "lines"]
    assert [*zip(line["x"], line["y"], strict=True)] == [(ms.p50_ms, record.macs / 1e6) for ms, record in on_front]
    drawn = [sum(parts) for parts in zip(*bars, strict=True)]
    assert drawn == pytest.approx(
        sorted(sum(operator.p50_ms for operator in record.traces[0].operators) for record in records if record.traces)
    )


@needs_browser
def test_sorts_by_keyboard_with_the_unmeasured_last(browser: Any, sample_page: Path) -> None:
    with Opened(browser, sample_page) as page:
        button = page.get_by_role("button", name="Size MB")
        button.focus()
        page.keyboard.press("Enter")
        sizes = [float(value) for value in column(page, "Size")]
        assert sizes == sorted(sizes)
        assert page.locator("#table th[aria-sort=ascending]").inner_text().startswith("Size")
        page.keyboard.press("Space")
        assert [float(value) for value in column(page, "Size")] == sorted(sizes, reverse=True)
        assert "16 of 16 files, sorted by Size MB" in page.locator("#shown").inner_text()
        for order in (False, True):
            page.get_by_role("button", name=re.compile("^p50, 1 thread ")).click()
            values = column(page, "p50, 1 thread")
            measured = [float(value) for value in values[:8]]
            assert measured == sorted(measured, reverse=order)
            assert values[8:] == [""] * 8
        assert page.locator("#table th[aria-sort]").count() == 1


@needs_browser
def test_filters_by_words_and_choice(browser: Any, sample_page: Path) -> None:
    with Opened(browser, sample_page) as page:
        page.get_by_label("Find").fill("SK_ pte")
        assert Opened.names(page) == ["sk_shufflenetv2_1.0 fp32", "sk_shufflenetv2_1.0 int8"]
        page.get_by_label("Precision").select_option("int8")
        assert Opened.names(page) == ["sk_shufflenetv2_1.0 int8"]
        assert page.locator("#shown").inner_text().startswith("1 of 16 files")
        page.get_by_label("Find").fill("no such thing")
        assert Opened.names(page) == []
        page.get_by_role("button", name="Show all").click()
        expect(page.locator("#shown")).to_contain_text("16 of 16")
        page.get_by_label("Format").select_option("mlpackage")
        assert len(Opened.names(page)) == 8


@needs_browser
def test_hover_tells_and_another_axis_can_be_chosen(browser: Any, sample_page: Path) -> None:
    with Opened(browser, sample_page) as page:
        page.locator("#tradeoff").scroll_into_view_if_needed()
        point = page.locator("#tradeoff .scatterlayer .point").first.bounding_box()
        page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
        text = page.locator("#tradeoff .hoverlayer").text_content()
        assert "p50" in text
        assert "MACs" in text
        page.get_by_role("combobox", name=re.compile("^Against")).select_option("size")
        page.get_by_role("combobox", name=re.compile("^Latency with")).select_option("1")
        expect(page.locator("#tradeoff .ytitle")).to_contain_text("File size")
        assert "2 threads" in page.locator("#tradeoff .xtitle").text_content()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser: Any, sample_page: Path, scheme: Any) -> None:
    with Opened(browser, sample_page, color_scheme=scheme) as page:
        paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (paper > 0.5) == (scheme == "light")
        for selector in ("body", "small", ".card h3", ".absent", ".mark.good", ".mark.partial", "a", "#shown"):
            ink = luminance(page.eval_on_selector(selector, "e => getComputedStyle(e).color"))
            light, dark = max(ink, paper), min(ink, paper)
            # WCAG 2.2, 1.4.3: 4.5 to 1; the cards' background is a little darker than the page's.
            assert (light + 0.05) / (dark + 0.05) > 4.8, selector
        tick = luminance(page.eval_on_selector("#tradeoff .xtick text", "e => getComputedStyle(e).fill"))
        assert abs(tick - paper) > 0.5


def luminance(color: str) -> float:
    """WCAG's relative luminance of ``rgb(r, g, b)``."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@needs_browser
def test_fits_a_phone(browser: Any, sample_page: Path) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    with Opened(browser, sample_page, **phone) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("#table").bounding_box()["width"] > 360
        assert page.locator("#tradeoff").bounding_box()["width"] <= 360


@needs_browser
def test_prints_without_controls_on_white(browser: Any, sample_page: Path) -> None:
    with Opened(browser, sample_page, color_scheme="dark") as page:
        assert page.pdf().startswith(b"%PDF-")
        page.emulate_media(media="print")
        assert not page.locator("#filters").is_visible()
        assert page.locator("#table").is_visible()
        expect(page.locator("#tradeoff .xtick text").first).to_have_css("fill", "rgb(0, 0, 0)")
        assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) == pytest.approx(1)


@needs_browser
def test_every_control_has_a_name_and_a_place_in_the_order(browser: Any, sample_page: Path) -> None:
    with Opened(browser, sample_page) as page:
        unnamed = page.eval_on_selector_all(
            "input, select", "all => all.filter(e => !e.labels.length).map(e => e.outerHTML)"
        )
        assert unnamed == []
        regions = page.eval_on_selector_all(
            "[role=region], [role=img]",
            """all => all.filter(e => !e.getAttribute('aria-label') &&
                !document.getElementById(e.getAttribute('aria-labelledby'))).length""",
        )
        assert regions == 0
        levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(e => Number(e.tagName[1]))")
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the table"
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        assert {"find", "precision", "format", "metric", "setting", "Show all"} <= reached
        assert any(one.startswith("Size") for one in reached)


@needs_browser
def test_hostile_names_are_shown_and_not_run(browser: Any, tmp_path: Path) -> None:
    report: Report = read_report(SAMPLE)
    for record in report.records:
        record.arch = HOSTILE + record.arch
        record.notes.append(HOSTILE)
    path = tmp_path / "report.html"
    path.write_text(render_html(report), encoding="utf-8")
    with Opened(browser, path) as page:
        assert Opened.names(page)[0].startswith(HOSTILE)
        point = page.locator("#tradeoff .scatterlayer .point").first
        point.scroll_into_view_if_needed()
        box = point.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert "<b>bold</b>" in page.locator("#tradeoff .hoverlayer").text_content()
        assert page.evaluate("window.hacked") is None
        assert page.locator("img").count() == 0


@needs_browser
def test_the_download_is_the_report(browser: Any, sample_page: Path, tmp_path: Path) -> None:
    with Opened(browser, sample_page, accept_downloads=True) as page:
        with page.expect_download() as waiting:
            page.get_by_role("link", name="Download report.json").click()
        waiting.value.save_as(tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == read_report(SAMPLE)
    json.loads((tmp_path / "report.json").read_text())
