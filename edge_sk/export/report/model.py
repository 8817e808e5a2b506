"""What a report holds, as JSON: the records, what the networks cost on paper, and what failed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_sk.errors import InputError
from edge_sk.export.network import UNTRAINED, Network
from edge_sk.export.record import Format, Precision, Record, newest
from edge_sk.files import write_text
from edge_sk.profiling import profile

SCHEMA_VERSION = 1

Model = TypeVar("Model", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class NetworkCost(_Part):
    """What a network costs by counting, whatever file it is in; see edge_sk.profiling for the conventions."""

    arch: str
    weights: str = Field(description="As in a record")
    input_size: list[int] = Field(description="(N, C, H, W)")
    params: int
    macs: int = Field(description="Multiply-accumulates of convolutions and linear layers, batch norm folded")
    gate_macs: int = Field(description="Those of them inside channel attention")
    activations: int = Field(description="Elements that convolutions and linear layers write")
    elementwise: int = Field(description="Elements that all other operators go over")
    largest_feature_map: int = Field(description="Elements of the largest tensor")
    unsupported: dict[str, int] = Field(default_factory=dict, description="Operators that no one counted")

    @classmethod
    def of(cls, network: Network) -> NetworkCost:
        """Count a network at its input size."""
        cost = profile(network.model, (1, *network.input_size))
        counted = ("params", "macs", "gate_macs", "activations", "elementwise", "unsupported")
        return cls(
            arch=network.arch,
            weights=network.weights,
            input_size=list(cost.input_size),
            largest_feature_map=cost.largest_feature_map.elements,
            **{name: getattr(cost, name) for name in counted},
        )


class Failure(_Part):
    """A file that was wanted and that there is not, or that could not be measured."""

    arch: str
    weights: str
    format: Format
    precision: Precision
    stage: Literal["export", "latency"]
    reason: str


class Report(_Part):
    """Everything that the report's pages show."""

    schema_version: Literal[1] = SCHEMA_VERSION
    records: list[Record]
    costs: list[NetworkCost] = Field(default_factory=list)
    failures: list[Failure] = Field(default_factory=list)
    manifest: dict[str, Any] = Field(description="edge_sk.manifest.manifest() of the report itself")


def network_name(one: Record | NetworkCost | Failure) -> str:
    """How pages call a network: its architecture, and its weights where it is trained."""
    if one.weights == UNTRAINED:
        return one.arch
    # A run folder is named after its network unless the user chose otherwise: once is enough.
    return one.weights if one.weights.startswith(one.arch) else f"{one.arch} ({one.weights})"


def file_name(one: Record | Failure) -> str:
    """How pages call a file: network, precision and format."""
    return f"{network_name(one)} {one.precision} .{one.format}"


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Write ``report.json``, whole or not at all."""
    write_text(path, report.model_dump_json(indent=1) + "\n")


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read and validate a ``report.json``.

    Raises:
        InputError: No such file, not JSON, or not a report; the first wrong field is named.
    """
    return _validate(Report, _read_json(Path(path)), path, "report; deploy/report.py writes report.json")


def read_records(paths: Sequence[str | os.PathLike[str]]) -> list[Record]:
    """Read records from their files, from reports, and from folders of either.

    Raises:
        InputError: A path is none of these, or a folder holds none.
    """
    return [record for path in map(Path, paths) for file in _files_of(path) for record in _records_of(file)]


def join(records: Sequence[Record]) -> list[Record]:
    """One record per file: those of the same file, measured in several places, become one.

    Measurements with the same threads, place and runtime are one measurement; the newest stays.
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
    """What makes two records speak of the same file, in this report or in an older one."""
    return (record.arch, record.weights, record.format, record.backend, record.precision, *record.input.shape)


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.pte.json")) + sorted(path.glob("*.mlpackage.json"))
    if not found:
        raise InputError(
            f"--records {path} holds no record, which ends in .pte.json or .mlpackage.json; "
            "deploy/export.py writes one beside each file"
        )
    return found


def _records_of(path: Path) -> list[Record]:
    content = _read_json(path)
    if isinstance(content, dict) and "records" in content:
        return _validate(Report, content, path, "report").records
    return [_validate(Record, content, path, "record; give files that deploy/export.py or deploy/report.py wrote")]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; give a record or a report.json") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the report.json in it") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None


def _validate(kind: type[Model], content: Any, path: str | os.PathLike[str], what: str) -> Model:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: {place}: {first['msg']}; it is not a valid {what}") from None
