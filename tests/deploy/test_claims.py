from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import edge_sk
from deploy import claims
from recipes.textbook import TextbookSelectiveKernel, textbook


def test_the_textbook_form_computes_the_same(lived_in: Callable[[nn.Module], nn.Module], digits: Tensor) -> None:
    model = lived_in(edge_sk.create_model("sk_shufflenetv2_0.5", num_classes=10)).eval()
    units = sum(isinstance(module, edge_sk.SelectiveKernel) for module in model.modules())
    with torch.no_grad():
        expected = model(digits[:4])
        textbook(model)
        assert sum(isinstance(module, TextbookSelectiveKernel) for module in model.modules()) == units > 0
        assert not any(isinstance(module, edge_sk.SelectiveKernel) for module in model.modules())
        assert_close(model(digits[:4]), expected, rtol=1e-4, atol=1e-5)


def test_every_claim_is_about_files_that_are_made(tmp_path: Path) -> None:
    made = claims.exports(tmp_path).keys()
    for file, against, _ in (*claims.CLAIMS, *claims.EXPORT_CLAIMS):
        assert {file, against} <= made


def test_what_sk_costs_is_told_against_the_plain_network_in_the_same_export_and_first() -> None:
    compared = [(file, against) for file, against, _ in claims.CLAIMS]
    selective = [f"{arch}_xnnpack_{precision}" for arch, precision in claims.OURS if arch.startswith("sk_")]
    assert compared[: len(selective)] == [(file, file.removeprefix("sk_")) for file in selective]
    for arch, precision in claims.OURS:
        assert (arch.removeprefix("sk_"), precision) in claims.OURS
    for file, against in compared:
        assert ("int8" in file) == ("int8" in against)
        if file.startswith("sk_") and against.startswith("stock-"):
            assert (file.removeprefix("sk_"), against) in compared  # what the export alone is worth


def test_the_committed_claims_follow_from_the_committed_measurements() -> None:
    record = json.loads(claims.RESULT.read_text(encoding="utf-8"))
    assert record["claims"] == claims.claims(record["files"])
    assert record["exports"] == claims.export_claims(record["files"])
    for stem in {stem for one in record["exports"] for stem in (one["file"], one["against"])}:
        rounds = record["files"][stem]["round_export_seconds"]
        assert len(rounds) >= 3
        assert record["files"][stem]["export_seconds"] == statistics.median(rounds)
    for one in record["claims"]:
        assert one["rounds"][0] <= one["rounds"][1]


def test_the_documents_show_the_committed_record() -> None:
    record = json.loads(claims.RESULT.read_text(encoding="utf-8"))
    root = claims.RESULT.parents[2]
    page, notes = (
        " ".join(p.read_text("utf-8").split()) for p in (root / "docs/networks.md", root / "deploy/results/NOTES.md")
    )
    assert " ".join(claims.ratio_table(record).split()) in page
    assert " ".join(claims.operator_table(record).split()) in notes
    host = record["manifest"]["host"]
    assert f"({host['cpu']}, {host['cores']} cores; " in page
    # The sentences below the table.
    ratio = {(one["file"], one["against"], one["threads"]): one["ratio"] for one in record["claims"]}
    assert all(value > 1 for (file, against, _), value in ratio.items() if against == file.removeprefix("sk_"))
    for threads in (1, 2):
        plain, selective = (
            ratio[f"{arch}_xnnpack_fp32", "stock-shufflenet_v2_x1_0", threads]
            for arch in ("shufflenetv2_1.0", "sk_shufflenetv2_1.0")
        )
        assert plain < selective < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds 0 measures nothing"),
        (["--runs", "-1"], "--runs -1 measures nothing"),
        (["--threads", "1", "0"], "--threads 0 is not a number of threads"),
        (["--output", "FOLDER"], "is a folder; name a .json file"),
        (["--work", "/proc/claims"], "cannot write into /proc/claims"),
    ],
)
def test_bad_input_is_refused_before_the_work(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(claims, "export_all", lambda _: pytest.fail("the work began"))
    given = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    assert claims.main(["--work", str(tmp_path / "work"), "--output", str(tmp_path / "claims.json"), *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.slow
def test_exports_measures_writes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work, output = tmp_path / "work", tmp_path / "latency.json"
    file, against, _ = claims.CLAIMS[0]
    makers = claims.exports(work)
    monkeypatch.setattr(claims, "exports", lambda _: {stem: makers[stem] for stem in (file, against)})
    monkeypatch.setattr(claims, "EXPORT_CLAIMS", [(file, against, 0.5)])
    monkeypatch.setattr(claims, "EXPORT_ROUNDS", 1)
    command = ["--work", str(work), "--threads", "1", "--rounds", "1", "--runs", "5", "--output", str(output)]
    assert claims.main(command) == 0
    record = json.loads(output.read_text(encoding="utf-8"))
    assert [(one["file"], one["against"], one["threads"]) for one in record["claims"]] == [(file, against, 1)]
    assert [one["file"] for one in record["exports"]] == [file]
    assert {one["delegates"] for one in record["files"].values()} == {1}
    printed = capsys.readouterr().out
    assert claims.ratio_table(record) in printed
    assert claims.operator_table(record) in printed
    assert "seconds to export: " in printed


def measured(*rounds: float) -> dict[str, Any]:
    """What is known of a file that ran on one thread, in milliseconds."""
    one = {"p50_ms": statistics.median(rounds), "min_ms": min(rounds), "round_p50_ms": list(rounds)}
    return {"latency": {"1": one}, "operators_ms": {"convolution": 0.75}}


def test_a_goal_is_reached_up_to_its_limit() -> None:
    file, against, goal = next(claim for claim in claims.CLAIMS if claim[2] is not None)
    assert goal is not None
    (reached,) = claims.claims({file: measured(goal), against: measured(1.0)})
    (missed,) = claims.claims({file: measured(goal + 0.01), against: measured(1.0)})
    assert (reached["holds"], missed["holds"]) == (True, False)
    assert reached["ratio"] == goal


def test_the_tables_show_ratios_their_rounds_and_what_is_missing() -> None:
    file, against, _ = claims.CLAIMS[0]
    made = {file: measured(1.0, 1.5, 3.0), against: measured(1.0, 1.0, 2.0)}
    record = {"claims": claims.claims(made), "files": made}
    header, rule, row, *others = claims.ratio_table(record).splitlines()
    assert header == "| file | against | 1 thread |"
    assert rule == "|---|---|---:|"
    assert row == "| sk_shufflenetv2_1.0 fp32 | shufflenetv2_1.0 fp32 | 1.50 (1.00 to 1.50) |"
    assert len(others) == len(claims.CLAIMS) - 1
    assert all(other.endswith("| not measured |") for other in others)
    assert claims.operator_table(record).splitlines()[2] == "| sk_shufflenetv2_1.0 fp32 | 0.75 | 0.75 | 1.50 |"
