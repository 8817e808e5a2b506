"""``report.json``: records of files, what their networks cost by counting, and what failed; reading and joining."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edge_sk.errors import InputError
from edge_sk.export.network import UNTRAINED, Network
from edge_sk.export.record import Format, Part, Precision, Record, newest, read_json, validated
from edge_sk.files import write_text
from edge_sk.profiling import profile

SCHEMA_VERSION = 1
MISSING = "there is no file {}; give a record or a report.json"


class NetworkCost(Part):
    """What a network costs by counting, in any file; edge_sk.profiling has the conventions."""

    arch: str
    weights: str = Field(description="As in a record")
    input_size: list[int] = Field(description="(N, C, H, W)")
    params: int
    macs: int = Field(description="Multiply-accumulates of convolutions and linear layers, batch norm folded")
    gate_macs: int = Field(description="Those of them inside channel attention")
    activations: int = Field(description="Elements that convolutions and linear layers write")
    elementwise: int = Field(description="Elements that all other operators go over")
    largest_feature_map: int = Field(description="Elements of the largest tensor")
    unsupported: dict[str, int] = Field(default_factory=dict, description="Operators that were not counted")

    @classmethod
    def of(cls, network: Network) -> NetworkCost:
        """Count a network at its input size."""
        cost = profile(network.model, (1, *network.input_size))
        same = ("params", "macs", "gate_macs", "activations", "elementwise", "unsupported")
        return cls(
            arch=network.arch,
            weights=network.weights,
            input_size=list(cost.input_size),
            largest_feature_map=cost.largest_feature_map.elements,
            **{name: getattr(cost, name) for name in same},
        )


class Failure(Part):
    """A file that could not be made or measured."""

    arch: str
    weights: str
    format: Format
    precision: Precision
    stage: Literal["export", "latency"]
    reason: str


class Report(Part):
    """Everything that the pages of a report show."""

    schema_version: Literal[1] = SCHEMA_VERSION
    records: list[Record]
    costs: list[NetworkCost] = Field(default_factory=list)
    failures: list[Failure] = Field(default_factory=list)
    manifest: dict[str, Any] = Field(description="edge_sk.manifest.manifest() of the report itself")


def network_title(item: Record | NetworkCost | Failure) -> str:
    """How pages call a network: its architecture, and its weights if it is trained."""
    if item.weights == UNTRAINED:
        return item.arch
    # By default a run folder is named after its network: one of the two names is enough.
    return item.weights if item.weights.startswith(item.arch) else f"{item.arch} ({item.weights})"


def file_title(item: Record | Failure) -> str:
    """How pages call a file: network, precision and format."""
    return f"{network_title(item)} {item.precision} .{item.format}"


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Write ``report.json``, whole or not at all."""
    write_text(path, report.model_dump_json(indent=1) + "\n")


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read and validate a ``report.json``.

    Raises:
        InputError: No such file, not JSON, or not a report; the first wrong field is named.
    """
    content = read_json(path, missing=MISSING.format(path))
    return validated(Report, content, path, "report; deploy/report.py writes report.json")


def read_records(paths: Sequence[str | os.PathLike[str]]) -> list[Record]:
    """Read records from their files, from reports, and from folders of records.

    Raises:
        InputError: A path is none of these, or a folder holds none.
    """
    records: list[Record] = []
    for given in map(Path, paths):
        files = [*sorted(given.glob("*.pte.json")), *sorted(given.glob("*.mlpackage.json"))] or [given]
        if files == [given] and given.is_dir():
            raise InputError(
                f"--records {given} holds no record, which ends in .pte.json or .mlpackage.json; "
                "deploy/export.py writes one beside each file"
            )
        for file in files:
            content = read_json(file, missing=MISSING.format(file))
            if isinstance(content, dict) and "records" in content:
                records += validated(Report, content, file, "report").records
            else:
                what = "record; give files that deploy/export.py or deploy/report.py wrote"
                records.append(validated(Record, content, file, what))
    return records


def join(records: Sequence[Record]) -> list[Record]:
    """Merge the records of each file that was measured in several places.

    Of the measurements with the same threads, place and runtime, the newest stays.
    """
    joined: dict[tuple[Any, ...], Record] = {}
    for record in records:
        key = (*identity(record), record.size_bytes)
        if key not in joined:
            joined[key] = record.model_copy(deep=True)
            continue
        first = joined[key]
        first.add_latency(*record.latency)
        first.traces = newest([*first.traces, *record.traces])
        first.parity = first.parity or record.parity
        first.accuracy = first.accuracy or record.accuracy
        if first.program is not None and record.program is not None and record.program.compute_units:
            first.program.compute_units = (first.program.compute_units or {}) | record.program.compute_units
        first.notes += [note for note in record.notes if note not in first.notes]
    return list(joined.values())


def identity(record: Record) -> tuple[Any, ...]:
    """What two records of the same file have in common, in this report or in an older one."""
    return (record.arch, record.weights, record.format, record.backend, record.precision, *record.input.shape)
