"""Merging for a budget: how costs are shared among units, when it merges further, what it writes and refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edge_sk
from deploy import costs, merging
from deploy.costs import measure_costs
from deploy.export import main
from deploy.merging import parse_wish
from deploy.unit_costs import main as measure
from edge_sk.attention import gated_units
from edge_sk.costs import Costs, read_costs
from edge_sk.errors import InputError
from edge_sk.export import network as networks
from edge_sk.export.executorch import latency, pte
from edge_sk.export.network import Network
from edge_sk.export.record import Latency, OperatorTime
from edge_sk.training.run import load_run
from recipes.train import main as train

pytest.importorskip("executorch")


@pytest.fixture
def linear_network(small_network: Network) -> Network:
    """Two units of linear branches, of different cost, in a network that has seen the digits."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        edge_sk.SelectiveKernel(8, 8, groups=8, act_layer=None),
        nn.ReLU(),
        edge_sk.SelectiveKernel(8, 8, groups=8, act_layer=None, stride=2, kernels="3+3"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    with torch.no_grad():
        model.train()(torch.rand(64, 3, 32, 32))
    return dataclasses.replace(small_network, model=model.eval(), arch="linear_1.0", knows_data=True)


def measured(ms: float) -> Latency:
    return Latency.of(
        [[ms] * 3] * 3, threads=1, load_ms=1.0, peak_memory_mb=None, where="here", runtime="none", date="today"
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Milliseconds by what a file's name ends in; a later entry counts. These files are empty."""
    times = {"": 1.3, "plain-fp32": 1.0, "merge-fp32": 1.06}
    traces = {"unit0-select": 0.4, "unit0-merge": 0.2, "unit0-plain": 0.1, "unit1-select": 0.2, "unit1-plain": 0.1}

    def of(table: dict[str, float], file: Path) -> float:
        return next(ms for end, ms in reversed(table.items()) if end in file.stem)

    def measure(files: list[Path], **_: Any) -> list[Latency]:
        return [measured(of(times, file)) for file in files]

    def operator_times(file: Path, **_: Any) -> list[OperatorTime]:
        ms = of({"": 0.1} | traces, file)
        return [OperatorTime(name="conv", kind="convolution", calls=1, p50_ms=ms, share=1.0)]

    nothing = types.SimpleNamespace(buffer=b"")
    monkeypatch.setattr(costs, "lower", lambda *_, **__: pte.Lowered(nothing, None, None))
    monkeypatch.setattr(costs, "lower_module", lambda *_, **__: (nothing, None))
    monkeypatch.setattr(costs, "reparameterize", lambda module, example: module)
    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(latency, "operator_times", operator_times)
    return times


def test_whole_files_say_how_much_and_traces_say_which_unit(
    linear_network: Network, clock: dict[str, float], tmp_path: Path
) -> None:
    table = measure_costs(linear_network, precision="fp32", threads=1, work=tmp_path)
    # 300 of 1000 microseconds, shared 0.3 to 0.1; merged 60, all of it the first unit's: the second is a plain kernel.
    assert table.plain == pytest.approx(1000)
    assert table.units["3"] == pytest.approx({"select": 225, "merge": 60, "cut": 0})
    assert table.units["5"] == pytest.approx({"select": 75, "merge": 0})
    assert table.threads == 1
    assert table.precision == "fp32"


def test_exports_within_a_budget(
    linear_network: Network,
    clock: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(networks, "from_arch", lambda name, **_: linear_network)
    clock |= {"step1": 1.2, "step2": 1.06, "step3": 1.0}
    clock["step1"] = 1.24  # slower than the costs said: it has to go on
    command = ["--arch", "linear_1.0", "--output", str(tmp_path), "--merge", "budget=1.23"]
    assert main(command) == 0
    out = capsys.readouterr().out
    name = "linear_1.0-merged-budget-1.23"
    record = json.loads((tmp_path / f"{name}.merge.json").read_text())
    chosen = record["path"][record["chosen"]]
    assert "merging further" in out
    assert record["ratios"]["1"]["merged"] <= 1.23
    assert record["ratios"]["1"]["sk"] == 1.3
    assert record["chosen"] == 2
    assert chosen["select"] < 2
    assert record["path"][0]["test_top1"] == record["accuracy"]["sk"] is not None
    assert record["accuracy"]["merged"] == chosen["test_top1"]
    assert "undone only from the checkpoint" in out
    assert (tmp_path / f"{name}.merge.png").read_bytes().startswith(b"\x89PNG")
    # The file was run against the merged network, and computes the same.
    exported = json.loads((tmp_path / f"{name}_xnnpack_fp32.pte.json").read_text())
    assert exported["parity"]["relative"] < 1e-4
    assert exported["accuracy"]["eager_top1"] == pytest.approx(chosen["test_top1"] / 100)
    program = (tmp_path / f"{name}_xnnpack_fp32.pte").read_bytes()
    images, _ = next(linear_network.images(split="test", limit=4))
    with torch.no_grad():
        unmerged = linear_network.model((images - 0.5) / 0.25)
    assert not torch.allclose(pte.run_pte(program, images), unmerged, atol=1e-5)
    # Costs that were written can be given, and are then not measured.
    monkeypatch.setattr(merging, "measure_costs", lambda *_, **__: pytest.fail("measured"))
    costs = ["keep=0", f"costs={tmp_path / f'{name}.costs.json'}"]
    monkeypatch.setattr("deploy.export._export", lambda *_: pytest.fail("exported"))
    clock |= {"step": 1.0}
    with pytest.raises(pytest.fail.Exception, match="exported"):
        main([*command[:-1], *costs])
    assert json.loads((tmp_path / "linear_1.0-merged-keep-0.merge.json").read_text())["path"][-1]["select"] == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["1.1"], "--merge '1.1' is not NAME=VALUE, for instance budget=1.10"),
        (["budjet=1.1"], "--merge 'budjet=1.1' is not NAME=VALUE.*; names: .*budget"),
        (["budget=fast"], "--merge: budget: .*number"),
        (["budget=1.1", "keep=3"], "--merge: merging stops at one of"),
        (["threads=2"], "--merge: merging stops at one of"),
        (["budget=1.1", "colour=red"], "colour"),
        (["keep=-1"], r"--merge: keep: .* greater than or equal to 0 \(got '-1'\)"),
        (
            ["keep=1", "costs=nowhere.json"],
            "no costs at nowhere.json; the repository's deploy/unit_costs.py measures them",
        ),
        (["keep=1", "finetune=2"], "give --checkpoint"),
        (["tolerance=0.3"], "give a trained run"),
        (["budget=0.9"], "budget=0.9 cannot be met: the smallest ratio that can is 1.000"),
    ],
)
def test_bad_input(
    given: list[str],
    message: str,
    linear_network: Network,
    clock: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unknown = dataclasses.replace(linear_network, knows_data=False)
    monkeypatch.setattr(networks, "from_arch", lambda name, **_: unknown)
    table = Costs(plain=1.0, units={"3": {"select": 1, "merge": 0.5, "cut": 0}, "5": {"select": 1, "merge": 0}})
    monkeypatch.setattr(merging, "measure_costs", lambda *_, **__: table)
    assert main(["--arch", "linear_1.0", "--output", str(tmp_path), "--merge", *given]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert re.search(message, captured.err)
    assert list(tmp_path.iterdir()) == []


def test_an_mlpackage_holds_the_merged_network(
    linear_network: Network, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("coremltools")
    monkeypatch.setattr(networks, "from_arch", lambda name, **_: linear_network)
    command = ["--arch", "linear_1.0", "--output", str(tmp_path), "--formats", "mlpackage", "--merge", "keep=0"]
    assert main(command) == 0
    merge_record = json.loads((tmp_path / "linear_1.0-merged-keep-0.merge.json").read_text())
    record = json.loads((tmp_path / "linear_1.0-merged-keep-0_coreml_fp16.mlpackage.json").read_text())
    assert record["arch"] == "linear_1.0 merged keep=0"
    assert record["accuracy"]["eager_top1"] == pytest.approx(merge_record["accuracy"]["merged"] / 100)
    # The second unit's branches are of the host's size, the first one's make a 5x5; nothing selects.
    assert record["program"]["operators"].get("sigmoid", 0) == 0
    assert record["parity"]["top1_agreement"] == 1


def test_a_merged_network_is_trained_on_by_its_runs_recipe(
    clock: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    quick = [
        "data.batch_size=500",
        "data.input_size=32",
        "schedule.epochs=1",
        "schedule.warmup_epochs=0",
        "optim.lr=0.05",
    ]
    assert train(["--arch", "sk_shufflenetv2_0.5", "--output", str(run), "--device", "cpu", "--set", *quick]) == 0
    monkeypatch.setattr(merging, "IMAGES", 16)
    rates = []
    first_step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, *args: rates.append(self.param_groups[0]["lr"]) or first_step(self, *args),
    )
    table = Costs(plain=100.0, units={name: {"select": 1.0, "merge": 0.5} for name in gated_units(load_run(run).model)})
    (tmp_path / "costs.json").write_text(table.model_dump_json())
    results = []
    for epochs in (0, 2):
        wish = parse_wish(["keep=10", f"costs={tmp_path / 'costs.json'}", f"finetune={epochs}"])
        network = networks.from_run(run)
        output = tmp_path / str(epochs)
        results.append(
            merging.merge_network(network, wish, precision="fp32", checkpoint=str(run), output=output, argv=["test"])
        )
        (file,) = output.glob("*.merge.json")
        accuracy = json.loads(file.read_text())["accuracy"]
        assert accuracy["merged"] == merging.test_top1(network, results[-1].model)
    before, after = (result.model for result in results)
    assert [*map(type, before.modules())] == [*map(type, after.modules())]
    assert len(gated_units(after)) == 10
    assert not after.training
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert rates[0] == max(rates) == pytest.approx(0.005)  # a tenth, at once


def test_measured_costs_are_a_file_for_a_budget(
    linear_network: Network, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(networks, "from_arch", lambda name, **_: linear_network)
    file = tmp_path / "costs.json"
    assert measure(["--arch", "linear_1.0", "--output", str(file)]) == 0
    table = read_costs(file, ["3", "5"], "select", "merge")
    assert table.ratio({"3": "select", "5": "select"}) == pytest.approx(1.3)
    _, report = edge_sk.merge(linear_network.model, torch.rand(4, 3, 32, 32), budget=1.1, costs=file)
    assert report.steps[-1].ratio is not None
    assert report.steps[-1].ratio <= 1.1


def test_no_units(clock: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--arch", "shufflenetv2_0.5", "--output", str(tmp_path), "--merge", "keep=1"]) == 2
    assert "the network has no selective kernels that select" in capsys.readouterr().err


def test_a_wish_is_a_goal() -> None:
    wish = parse_wish(["tolerance=0.3", "threads=2"])
    assert (wish.tolerance, wish.budget, wish.keep, wish.threads) == (0.3, None, None, 2)
    with pytest.raises(InputError):
        parse_wish(["threads=0", "keep=1"])
