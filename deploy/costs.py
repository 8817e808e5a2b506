"""Measure on this host what a network's units cost beyond the plain convolutions in their places."""

from __future__ import annotations

import copy
import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_sk import running
from edge_sk.attention import gated_units
from edge_sk.costs import Costs, Outcome
from edge_sk.errors import InputError
from edge_sk.export.executorch import latency
from edge_sk.export.executorch.pte import lower, lower_module
from edge_sk.export.network import Network
from edge_sk.export.prepare import reference
from edge_sk.export.record import Latency, Precision
from edge_sk.files import artifact_path, atomic_write
from edge_sk.merging import host_kernel, merged
from edge_sk.rewriting import reparameterize
from edge_sk.selective_kernel import SelectiveKernel


def plain(unit: SelectiveKernel) -> nn.Module:
    """A unit's branch of the host's kernel: as fast as the plain convolution."""
    size, pairs = host_kernel(unit), zip(unit.branches, unit.kernels, strict=True)
    return copy.deepcopy(next(branch for branch, kernel in pairs if kernel.extents == size))


def evenly(unit: SelectiveKernel) -> nn.Module:
    """A merged unit, whatever its weights."""
    return merged(unit, torch.full((len(unit.kernels), unit.out_channels), 1 / len(unit.kernels)))


RUNS = 200  # of a file in a round
FORMS: dict[str, Callable[[SelectiveKernel], nn.Module]] = {"plain": plain, "select": copy.deepcopy, "merge": evenly}


def replaced(model: nn.Module, make: Callable[[SelectiveKernel], nn.Module]) -> nn.Module:
    """A copy with every unit replaced."""
    twin = running.copied(model)
    for name, unit in gated_units(twin).items():
        twin.set_submodule(name, make(unit))
    return twin


def measure_costs(network: Network, *, precision: Precision, threads: int, work: Path) -> Costs:
    """Measure on this host what each unit takes beyond its plain convolution; files are kept in ``work``.

    How the cost is shared among units comes from traces of the operators of units exported by themselves. How much it
    is together comes from whole files that take turns: of the plain network, of this one, and of this one merged.
    """
    whole = {form: replaced(network.model, make) for form, make in FORMS.items()}
    latencies = measure_together(write_files(network, whole, precision=precision, work=work), threads=threads)
    micros = 1e3 * latencies["plain"].p50_ms
    traced = _traced(network, precision=precision, threads=threads, work=work)
    units: dict[str, dict[Outcome, float]] = {name: {} for name in traced}
    outcomes: tuple[Outcome, ...] = ("select", "merge")
    for outcome in outcomes:
        together = micros * max(ratios(latencies)[outcome] - 1, 0.0)
        beyond = {name: max(times[outcome] - times["plain"], 0.0) for name, times in traced.items()}
        total = sum(beyond.values())
        for name in traced:
            # What the trace cannot tell apart is shared alike.
            units[name][outcome] = round(together * (beyond[name] / total if total else 1 / len(beyond)), 3)
    for name, unit in gated_units(network.model).items():
        convolution = evenly(unit)
        if isinstance(convolution, nn.Conv2d):  # the host's kernel costs nothing beyond the plain convolution
            units[name]["cut" if convolution.kernel_size != host_kernel(unit) else "merge"] = 0.0
    where = latencies["plain"].where
    return Costs(plain=round(micros, 3), units=units, where=where, threads=threads, precision=precision)


def write_files(
    network: Network, models: Mapping[str, nn.Module], *, precision: Precision, work: Path
) -> dict[str, Path]:
    """Models exported as ``network`` is; files that ``work`` has are not made again."""
    files = {name: artifact_path(work, f"{name}-{precision}", ".pte") for name in models}
    for name, file in files.items():
        if not file.exists():
            print(f"  lowering the network: {name}", flush=True)
            _write(lower(dataclasses.replace(network, model=models[name]), precision=precision).program, file)
    return files


def measure_together(files: Mapping[str, Path], *, threads: int) -> dict[str, Latency]:
    """Host latency of files that take turns; many runs, because budgets are a few per cent wide."""
    return dict(zip(files, latency.measure(list(files.values()), threads=threads, runs=RUNS), strict=True))


def ratios(latencies: Mapping[str, Latency]) -> dict[str, float]:
    """Latency as a share of the plain network's: median over rounds, in which the files took turns, of the ratio."""
    base = latencies["plain"].round_p50_ms
    return {
        name: round(statistics.median(a / b for a, b in zip(one.round_p50_ms, base, strict=True)), 4)
        for name, one in latencies.items()
    }


def _traced(network: Network, *, precision: Precision, threads: int, work: Path) -> dict[str, dict[str, float]]:
    """Microseconds of the operators of every unit by itself, in each of its forms."""
    shapes: dict[str, tuple[int, ...]] = {}
    units = gated_units(network.model)
    with running.evaluating(network.model), ExitStack() as hooks:
        for name, unit in units.items():
            hooks.callback(unit.register_forward_pre_hook(functools.partial(_note_shape, shapes, name)).remove)
        reference(network)(network.example())
    known: dict[tuple[str, tuple[int, ...]], dict[str, float]] = {}
    for name, unit in units.items():
        if name not in shapes:
            raise InputError(f"{network.arch}: the unit {name} does not run")
        kind = repr(unit), shapes[name]
        if kind in known:
            continue  # units of one kind cost the same
        stem, known[kind] = f"unit{len(known)}", {}
        print(f"  measuring the unit {name}", flush=True)
        for form, make in FORMS.items():
            file = artifact_path(work, f"{stem}-{form}-{precision}", ".pte")
            if not file.exists():
                _write_unit(make(unit), shapes[name], file, precision)
            operators = latency.operator_times(file, threads=threads)
            known[kind][form] = sum(1e3 * operator.p50_ms for operator in operators)
    return {name: known[repr(unit), shapes[name]] for name, unit in units.items()}


def _note_shape(shapes: dict[str, tuple[int, ...]], name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    shapes[name] = tuple(args[0].shape)


def _write_unit(unit: nn.Module, shape: tuple[int, ...], file: Path, precision: Precision) -> None:
    image: Tensor = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    rewritten = reparameterize(unit, image)
    _write(lower_module(rewritten, image, lambda: [image], name=file.stem, precision=precision)[0], file)


def _write(program: Any, file: Path) -> None:
    with atomic_write(file) as temporary:
        temporary.write_bytes(bytes(program.buffer))
