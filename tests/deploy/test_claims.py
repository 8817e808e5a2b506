from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import edge_sk
from deploy import claims
from edge_sk.textbook import TextbookSelectiveKernel, textbook


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
    for file, against, _ in (*claims.CLAIMS, claims.EXPORT_CLAIM):
        assert {file, against} <= made


def test_the_committed_claims_follow_from_the_committed_measurements() -> None:
    record = json.loads(claims.RESULT.read_text(encoding="utf-8"))
    assert record["claims"] == claims.claims(record["files"])
    export = record["export"]
    assert (export["ratio"], export["holds"]) == tuple(
        claims.export_claim(record["files"])[key] for key in ("ratio", "holds")
    )
    for stem in (export["file"], export["against"]):
        rounds = record["files"][stem]["round_export_seconds"]
        assert len(rounds) >= 3
        assert record["files"][stem]["export_seconds"] == statistics.median(rounds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds 0 measures nothing"),
        (["--runs", "-1"], "--runs -1 measures nothing"),
        (["--threads", "1", "0"], "--threads 0 is not a number of threads"),
        (["--output", "FOLDER"], "is a folder; name a .json file"),
        (["--work", "/proc/claims"], "cannot write into --output /proc/claims"),
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


def test_a_claim_holds_up_to_its_limit() -> None:
    file, against, at_most = claims.CLAIMS[0]

    def measured(ms: float) -> dict[str, dict[str, dict[str, float]]]:
        return {"latency": {"1": {"p50_ms": ms, "min_ms": ms}}}

    others = {name: measured(1.0) for claim in claims.CLAIMS for name in claim[:2]}
    (held, *_) = claims.claims(others | {file: measured(at_most), against: measured(1.0)})
    (broken, *_) = claims.claims(others | {file: measured(at_most + 0.01), against: measured(1.0)})
    assert (held["holds"], broken["holds"]) == (True, False)
    assert held["ratio_p50"] == at_most
