"""``report.json``: records of files, what their networks cost by counting, and what failed."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field

from edge_sk.export.network import UNTRAINED
from edge_sk.export.record import Count, Format, Part, Precision, Record, Size
from edge_sk.files import write_text
from edge_sk.reading import read_json, validated

MISSING = "there is no file {}; give a record or a report.json"


class NetworkCost(Part):
    """What a network costs by counting, in any file; edge_sk.profiling has the conventions."""

    arch: str
    weights: str = Field(description="As in a record")
    input_size: Size = Field(description="(N, C, H, W)")
    params: Count
    macs: Count = Field(description="Multiply-accumulates of convolutions and linear layers, batch norm folded")
    gate_macs: Count = Field(description="Those of them inside channel attention")
    activations: Count = Field(description="Elements that convolutions and linear layers write")
    elementwise: Count = Field(description="Elements that all other operators go over")
    largest_feature_map: Count = Field(description="Elements of the largest tensor")
    unsupported: dict[str, Count] = Field(default_factory=dict, description="Operators that were not counted")


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

    schema_version: Literal[1] = 1
    records: list[Record]
    costs: list[NetworkCost] = Field(default_factory=list)
    failures: list[Failure] = Field(default_factory=list)
    manifest: dict[str, Any] = Field(description="edge_sk.manifest.manifest() of the report itself")


def network_title(item: Record | NetworkCost | Failure) -> str:
    """Name a network for the pages: its architecture, and its weights if it is trained."""
    if item.weights == UNTRAINED:
        return item.arch
    # By default a run folder's name begins with the network's.
    return item.weights if item.weights.startswith(item.arch) else f"{item.arch} ({item.weights})"


def file_title(item: Record | Failure) -> str:
    """Name a file for the pages: network, precision and format."""
    return f"{network_title(item)} {item.precision} .{item.format}"


def identity(record: Record) -> tuple[Any, ...]:
    """What two records of the same file have in common, in one report or in two."""
    return (record.arch, record.weights, record.format, record.backend, record.precision, *record.input.shape)


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Write ``report.json``, whole or not at all."""
    write_text(path, report.model_dump_json(indent=1) + "\n")


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a ``report.json``; an ``InputError`` names the file and what is wrong with it."""
    return validated(Report, read_json(path, missing=MISSING.format(path)), f"report {path}")
