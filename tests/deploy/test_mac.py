"""What a Mac would tell, read from stand-ins; and that the scripts say where they can run."""

from __future__ import annotations

import platform
import types
from typing import Any

import pytest

from deploy.mac import measuring
from deploy.mac.check import main as check
from deploy.mac.compute_plan import main as compute_plan
from deploy.mac.latency import main as latency
from edge_sk.errors import InputError

Namespace = types.SimpleNamespace


class MLCPUComputeDevice: ...


class MLNeuralEngineComputeDevice: ...


class Plan:
    """As coremltools' MLComputePlan: constants have no usage, operators may have no cost."""

    def __init__(self) -> None:
        ops = [
            Namespace(operator_name="const", device=None, cost=None),
            Namespace(operator_name="ios16.conv", device=MLNeuralEngineComputeDevice(), cost=Namespace(weight=0.75)),
            Namespace(operator_name="ios16.relu", device=MLNeuralEngineComputeDevice(), cost=Namespace(weight=0.25)),
            Namespace(operator_name="ios16.classify", device=MLCPUComputeDevice(), cost=None),
        ]
        main = Namespace(block=Namespace(operations=ops))
        self.model_structure = Namespace(program=Namespace(functions={"main": main}))

    def get_compute_device_usage_for_mlprogram_operation(self, op: Any) -> Any:
        return op.device and Namespace(preferred_compute_device=op.device)

    def get_estimated_cost_for_mlprogram_operation(self, op: Any) -> Any:
        return op.cost


def test_a_plan_is_read_by_operator_and_counted_by_unit():
    plan = list(measuring.read_plan(Plan()))
    assert plan == [("conv", "Neural Engine", 0.75), ("relu", "Neural Engine", 0.25), ("classify", "CPU", 0.0)]
    assert measuring.units(plan) == {"Neural Engine": 2, "CPU": 1}


def test_latency_is_summarised_as_every_latency_in_a_record():
    measured = measuring.summarize([[5.0, 1.0, 2.0], [3.0, 4.0, 9.0]], [20.0, 40.0], where="a Mac", units="cpu")
    assert (measured.min_ms, measured.p50_ms, measured.p90_ms, measured.mean_ms) == (1.0, 3.5, 9.0, 4.0)
    assert (measured.runs, measured.rounds, measured.load_ms, measured.threads) == (6, 2, 30.0, 0)
    assert measured.round_p50_ms == [2.0, 4.0]
    assert "compute units cpu" in measured.runtime


@pytest.mark.skipif(platform.system() == "Darwin", reason="there it runs")
def test_without_a_mac_one_line_says_so(capsys):
    for script, arguments in (
        (check, ["a.mlpackage", "--arch", "sk_shufflenetv2_0.5"]),
        (compute_plan, ["a.mlpackage"]),
        (latency, ["a.mlpackage"]),
    ):
        assert script(arguments) == 2
        message = capsys.readouterr().err
        assert "needs Core ML, and this is Linux: run it on a Mac" in message
        assert message.count("\n") == 1


def test_measuring_nothing_is_refused(capsys):
    assert latency(["a.mlpackage", "--runs", "0"]) == 2
    assert "--runs 0 measures nothing" in capsys.readouterr().err


@pytest.mark.skipif(platform.system() == "Darwin", reason="there it runs")
def test_the_library_refuses_too():
    for call in (measuring.compute_plan, measuring.latency):
        with pytest.raises(InputError, match="run it on a Mac"):
            call("a.mlpackage")
