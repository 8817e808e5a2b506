"""What only a Mac can tell about a package: the unit that runs each operator, and the latency.

Nothing here has been run where this project is tested: there is no Mac. What reads Core ML's results is tested with
stand-ins for them.
"""

from __future__ import annotations

import asyncio
import collections
import platform
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_sk.errors import InputError
from edge_sk.export.coreml import coremltools
from edge_sk.export.coreml.mil import MilProgram
from edge_sk.export.record import Latency
from edge_sk.manifest import manifest

COMPUTE_UNITS = {
    "all": "ALL",
    "cpu": "CPU_ONLY",
    "cpu+gpu": "CPU_AND_GPU",
    "cpu+neural-engine": "CPU_AND_NE",
}
"""Names of the command line, and coremltools' for the same."""

_UNIT_OF = {
    "MLCPUComputeDevice": "CPU",
    "MLGPUComputeDevice": "GPU",
    "MLNeuralEngineComputeDevice": "Neural Engine",
}


def require_macos(what: str) -> None:
    """Refuse where there is no Core ML.

    Raises:
        InputError: Not macOS.
    """
    if platform.system() != "Darwin":
        raise InputError(f"{what} needs Core ML, and this is {platform.system()}: run it on a Mac")


def this_mac() -> str:
    """The chip and the system."""
    return f"{manifest()['host']['cpu']}, macOS {platform.mac_ver()[0]}"


def compute_plan(package: str | Path, units: str = "all") -> list[tuple[str, str, float]]:
    """Which unit Core ML plans for each operator.

    Args:
        package: An ``.mlpackage``.
        units: A key of :data:`COMPUTE_UNITS`: what Core ML may use.

    Returns:
        Per operator: its MIL name, the unit, its share of the estimated cost.

    Raises:
        InputError: Not macOS. Needs macOS 14.4.
    """
    require_macos("a compute plan")
    ct = coremltools()
    from coremltools.models.compute_plan import MLComputePlan

    allowed = ct.ComputeUnit[COMPUTE_UNITS[units]]
    model = ct.models.MLModel(str(package), compute_units=allowed)
    return list(read_plan(MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=allowed)))


def read_plan(plan: Any) -> Iterator[tuple[str, str, float]]:
    """The operators of a ``MLComputePlan``'s main function; constants have no unit and are left out."""
    for op in plan.model_structure.program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
        if usage is None:
            continue
        device = type(usage.preferred_compute_device).__name__
        cost = plan.get_estimated_cost_for_mlprogram_operation(op)
        yield op.operator_name.split(".")[-1], _UNIT_OF.get(device, device), cost.weight if cost else 0.0


def units(plan: list[tuple[str, str, float]]) -> dict[str, int]:
    """How many operators each unit gets, the most first."""
    return dict(collections.Counter(unit for _, unit, _ in plan).most_common())


def latency(
    package: str | Path, units: str = "all", *, iphone: bool = False, rounds: int = 3, runs: int = 50, warmup: int = 5
) -> Latency:
    """Measure a package with coremltools' ``MLModelBenchmarker``.

    Args:
        package: An ``.mlpackage``.
        units: A key of :data:`COMPUTE_UNITS`: what Core ML may use.
        iphone: On the one connected iPhone; coremltools builds and drives an app on it, which needs Xcode.
        rounds: How often the model is loaded anew.
        runs: Timed predictions per round.
        warmup: Untimed predictions before.

    Raises:
        InputError: Not macOS, or not exactly one iPhone is connected.
    """
    require_macos("Core ML's latency")
    ct = coremltools()
    from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker
    from PIL import Image

    model = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit[COMPUTE_UNITS[units]])
    image = MilProgram.load(package).image
    shape = (image.height, image.width, 3) if image.channels == 3 else (image.height, image.width)
    # coremltools 9.0's own generator of inputs knows arrays only.
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    loads: list[float] = []
    predictions: list[list[float]] = []

    async def measure() -> str:
        device = await _iphone() if iphone else None
        for _ in range(rounds):
            benchmarker = MLModelBenchmarker(model, device)
            loads.extend((await benchmarker.benchmark_load()).samples)
            await benchmarker.benchmark_predict(inputs={image.name: noise}, iterations=warmup)
            timed = await benchmarker.benchmark_predict(inputs={image.name: noise}, iterations=runs)
            predictions.append(timed.samples)
        return this_mac() if device is None else f"{device.name}, iOS {device.os_version}"

    return summarize(predictions, loads, where=asyncio.run(measure()), units=units)


async def _iphone() -> Any:
    from coremltools.models.ml_program.experimental.remote_device import Device, DeviceType

    phones: Any = Device.get_connected_devices(DeviceType.IPHONE)
    if len(phones) != 1:
        raise InputError(f"{len(phones)} iPhones are connected; connect one, unlocked and in developer mode")
    return await phones[0].prepare_for_model_debugging()


def summarize(predictions: list[list[float]], loads: list[float], *, where: str, units: str) -> Latency:
    """Milliseconds of each round's predictions, and of each load, as a record's entry."""
    return Latency.of(
        predictions,
        threads=0,
        load_ms=round(statistics.median(loads), 2),
        peak_memory_mb=None,
        where=where,
        runtime=f"Core ML, compute units {units} (coremltools MLModelBenchmarker)",
        date=manifest()["date"],
    )
