"""The measuring script: what it writes, how it resumes, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deploy.benchmark import main
from edge_sk.export.executorch import latency
from edge_sk.export.record import Latency, read_record, record_path


@pytest.fixture
def folder(small_pte: Path, tmp_path: Path) -> Path:
    """Two files, one of them with a record."""
    shutil.copy(small_pte, tmp_path / "a.pte")
    content = record_path(small_pte).read_text()
    record_path(tmp_path / "a.pte").write_text(content)
    shutil.copy(small_pte, tmp_path / "b.pte")
    with (tmp_path / "b.pte").open("ab") as file:
        file.write(b"\0")  # another content, still the same program
    return tmp_path


def _measurement(threads: int, p50: float = 1.0) -> Latency:
    return Latency(
        threads=threads, p50_ms=p50, p90_ms=2.0, min_ms=0.5, mean_ms=1.1, runs=10, rounds=1, load_ms=3.0,
        peak_memory_mb=4.0, where="host latency", runtime="test", date="2026-01-01",
    )  # fmt: skip


def test_measures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "latency.jsonl"
    flags = ["--rounds", "1", "--runs", "12", "--operators", "--output", str(output)]
    (folder / "some.mlpackage").mkdir()
    assert main([str(folder), "--threads", "2", *flags]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["file"], row["threads"], row["runs"]) for row in rows] == [("a.pte", 2, 12), ("b.pte", 2, 12)]
    for row in rows:
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p90_ms"]
        assert row["load_ms"] > 0
        assert row["where"].startswith("host latency, not a phone's")
        assert sum(operator["share"] for operator in row["operators"]) == pytest.approx(1, abs=1e-2)
        calls = dict.fromkeys(("convolution", "pooling"), 0)
        for operator in row["operators"]:
            if operator["kind"] in calls:
                calls[operator["kind"]] += operator["calls"]
        assert calls == {"convolution": 7, "pooling": 2}  # 2 + 2 branches + 2 gate + classifier; gate and head
    assert [one.threads for one in read_record(record_path(folder / "a.pte")).latency] == [2]
    said = capsys.readouterr()
    assert "a.pte  2 threads: p50" in said.out
    assert said.err.endswith("not measured, as that takes a Mac (deploy/mac/latency.py): some.mlpackage\n")


def test_resumes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, list[str]]] = []

    def measure(files: list[Path], *, threads: int, **_: int) -> list[Latency]:
        asked.append((threads, [file.name for file in files]))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [_measurement(threads, p50=float(len(asked))) for _ in files]

    monkeypatch.setattr(latency, "measure", measure)
    output = folder / "latency.jsonl"
    command = [str(folder), "--threads", "1", "2", "--output", str(output)]
    assert main(command) == 130
    assert main([*command, "--resume"]) == 0
    assert asked == [(1, ["a.pte", "b.pte"]), (2, ["a.pte", "b.pte"]), (2, ["a.pte", "b.pte"])]
    (folder / "b.pte").write_bytes((folder / "b.pte").read_bytes() + b"\0")
    assert main([*command, "--resume"]) == 0
    assert asked[3:] == [(1, ["b.pte"]), (2, ["b.pte"])]
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 6  # two contents of b.pte
    assert [one.threads for one in read_record(record_path(folder / "a.pte")).latency] == [1, 2]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Convolution (NHWC, F32) DWConv", "convolution"),
        ("Fully Connected (NC, F32) GEMM", "convolution"),
        ("Copy (NC, X32)", "data movement"),
        ("Slice (ND, X32)", "data movement"),
        ("Convert (NC, F32, QS8)", "data movement"),
        ("Mean (ND) Reduce2", "pooling"),
        ("Max Pooling (NHWC, F32)", "pooling"),
        ("Multiply (ND)", "elementwise"),
        ("native_call_mean.out", "outside the delegate"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert latency.kind_of(name) == kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pte"], "missing.pte is neither a .pte file nor a folder with one"),
        (["FOLDER/empty"], "empty is neither a .pte file nor a folder with one"),
        (["FOLDER", "--threads", "0"], "--threads 0 is not a number of threads"),
        (["FOLDER", "--runs", "0"], "--runs 0 measures nothing"),
        (["FOLDER", "--resume"], "--resume continues an --output file"),
        (["FOLDER", "--resume", "--output", "FOLDER/bad.jsonl"], "line 2 of .*bad.jsonl is not a measurement"),
        (
            ["FOLDER/cut.pte"],
            "cannot load .*cut.pte: .* it is damaged or no ExecuTorch program: copy or export it again",
        ),
        (["FOLDER/b.pte", "FOLDER/cut.pte"], "error: cannot load [^,]*cut.pte: "),
        (["FOLDER/cut/a.pte"], "a.pte is not the file that a.pte.json describes: it is damaged, or another one"),
        (["FOLDER/some.mlpackage"], "some.mlpackage runs on Apple's systems only: .* deploy/mac/latency.py"),
    ],
)
def test_bad_input(arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    (folder / "empty").mkdir()
    good = {"sha256": "x", "file": "x.pte"} | _measurement(1, p50=1.0).model_dump()
    (folder / "bad.jsonl").write_text(f"{json.dumps(good)}\n{{\n")
    (folder / "some.mlpackage").mkdir()
    for name in ("cut.pte", "cut/a.pte"):
        if any(name in argument for argument in arguments):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes((folder / "a.pte").read_bytes()[:500])
            if name != "cut.pte":
                shutil.copy(record_path(folder / "a.pte"), record_path(folder / name))
    assert main([argument.replace("FOLDER", str(folder)) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert re.search(message, captured.err)
