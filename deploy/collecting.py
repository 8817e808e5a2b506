"""Collect what a report shows: export, verify and measure networks, and join records that were made elsewhere.

Files that exist and are up to date are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import edge_sk
from edge_sk.errors import InputError
from edge_sk.export import to_mlpackage, to_pte
from edge_sk.export.executorch import latency
from edge_sk.export.network import Network
from edge_sk.export.record import (
    Format,
    Precision,
    Record,
    Trace,
    newest,
    read_record,
    record_of,
    write_record,
)
from edge_sk.export.report.model import MISSING, Failure, NetworkCost, Report, identity
from edge_sk.manifest import manifest
from edge_sk.profiling import profile
from edge_sk.reading import read_json, validated

TRACE_THREADS = 1

Artifact = tuple[Format, Precision]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Which files to make of every network, and how to measure the ``.pte`` files."""

    artifacts: tuple[Artifact, ...]
    threads: tuple[int, ...]
    rounds: int
    """Fresh processes per thread count."""
    runs: int
    """Timed forwards per file and round."""
    argv: Sequence[str]
    """The command, for the records."""

    def steps(self, networks: int) -> int:
        """Return how often :func:`collect` calls ``step``."""
        traced = sum(file_format == "pte" for file_format, _ in self.artifacts)
        return networks * (1 + len(self.artifacts) + traced) + (len(self.threads) if traced else 0)


def collect(networks: Sequence[Network], output: Path, request: Request, step: Callable[[str], None]) -> Report:
    """Count, export, verify and measure networks; call ``step`` with a description before each step.

    Files and their records go to ``output``, those of a trained network to a folder of the run's name below it.
    A file is kept if its network, the library's code, the versions of packages, and the file itself are unchanged.
    The latencies of all files are measured together, taking turns, unless every file has its measurement already.

    Raises:
        InputError: Two networks would write the same files.
        OSError: The disk is full; finished files stay.
    """
    folders = [output / network.weights if network.trained else output for network in networks]
    places = [(folder, network.stem) for folder, network in zip(folders, networks, strict=True)]
    for index, (folder, stem) in enumerate(places):
        if (folder, stem) in places[:index]:
            raise InputError(
                f"two networks would write {stem} into {folder}; give each once, and run folders with different names"
            )
    report = Report(records=[], manifest=manifest(request.argv))
    made: dict[Path, Record] = {}
    for network, folder in zip(networks, folders, strict=True):
        step(f"profile {network.arch}")
        report.costs.append(_cost(network))
        origin = _origin(network)
        for artifact in request.artifacts:
            step(f"export {network.arch} {artifact[1]} .{artifact[0]}")
            try:
                record = _kept(folder, artifact, origin) or _export(network, folder, artifact, origin, request.argv)
            except InputError as error:
                report.failures.append(_failure(network, artifact, "export", error))
            else:
                made[folder / record.file] = record
    programs = {path: record for path, record in made.items() if record.format == "pte"}
    for threads in request.threads if programs else ():
        step(f"latency of {len(programs)} files, {threads} thread{'s' if threads > 1 else ''}")
        report.failures += _measure(programs, threads, request)
    for path, record in programs.items():
        step(f"trace {path.name}")
        _trace(path, record)
    report.records = list(made.values())
    return report


def _cost(network: Network) -> NetworkCost:
    cost = profile(network.model, (1, *network.input_size))
    same = ("params", "macs", "gate_macs", "activations", "elementwise", "unsupported")
    return NetworkCost(
        arch=network.arch,
        weights=network.weights,
        input_size=list(cost.input_size),
        largest_feature_map=cost.largest_feature_map.elements,
        **{name: getattr(cost, name) for name in same},
    )


def _origin(network: Network) -> str:
    """Hash everything that determines a network's files: the network, the library's code, the versions of packages."""
    described = {field.name: getattr(network, field.name) for field in dataclasses.fields(network)} | {"model": None}
    digest = hashlib.sha256(json.dumps([described, manifest()["versions"]], sort_keys=True).encode())
    for name, tensor in network.model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for source in sorted(Path(edge_sk.__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _kept(folder: Path, artifact: Artifact, origin: str) -> Record | None:
    """Return the record of an unchanged file that was made from the same things, if the folder has one."""
    for path in sorted(folder.glob(f"*.{artifact[0]}.json")):
        # A file that is damaged or has no valid record is made again.
        with contextlib.suppress(InputError, FileNotFoundError):
            record = read_record(path)
            if (record.precision, record.manifest.get("made_from")) == (artifact[1], origin):
                return record_of(folder / record.file)
    return None


def _export(network: Network, folder: Path, artifact: Artifact, origin: str, argv: Sequence[str]) -> Record:
    file_format, precision = artifact
    if file_format == "pte":
        # The report shows operators outside the delegate: they are no reason to stop.
        record = to_pte(network, folder, precision=precision, allow_fallback=True, replace=True, argv=argv)
    else:
        record = to_mlpackage(network, folder, precision=precision, replace=True, argv=argv)
    record.manifest["made_from"] = origin
    write_record(folder / record.file, record)
    return record


def _measure(programs: dict[Path, Record], threads: int, request: Request) -> Iterator[Failure]:
    """Add the latencies of all programs to their records; yield the programs that do not run."""
    wanted = (threads, latency.this_host(), request.rounds)
    runs = request.rounds * request.runs
    if all(
        any((known.threads, known.where, known.rounds) == wanted and known.runs >= runs for known in record.latency)
        for record in programs.values()
    ):
        return
    options: dict[str, Any] = {"threads": threads, "rounds": request.rounds, "runs": request.runs}
    try:
        measured = dict(zip(programs, latency.measure(list(programs), **options), strict=True))
    except InputError:
        # One bad file must not cost the others their measurement: find it.
        measured = {}
        for path, record in programs.items():
            try:
                measured[path] = latency.measure([path], **options)[0]
            except InputError as error:
                yield _failure(record, (record.format, record.precision), "latency", error)
    for path, measurement in measured.items():
        programs[path].add_latency(measurement)
        write_record(path, programs[path])


def _trace(path: Path, record: Record) -> None:
    here = latency.this_host()
    if any((trace.threads, trace.where) == (TRACE_THREADS, here) for trace in record.traces):
        return
    try:
        operators = latency.operator_times(path, threads=TRACE_THREADS)
    except InputError:
        # The file's latency failed too, and the report names it already.
        return
    context = {"threads": TRACE_THREADS, "where": here, "runtime": latency.RUNTIME, "date": manifest()["date"]}
    record.traces.append(Trace(operators=operators, **context))
    write_record(path, record)


def _failure(
    source: Network | Record, artifact: Artifact, stage: Literal["export", "latency"], error: InputError
) -> Failure:
    what = {"arch": source.arch, "weights": source.weights, "format": artifact[0], "precision": artifact[1]}
    return Failure.model_validate(what | {"stage": stage, "reason": str(error)})


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
                "edge-sk export writes one beside each file"
            )
        for file in files:
            content = read_json(file, missing=MISSING.format(file))
            if isinstance(content, dict) and "records" in content:
                records += validated(Report, content, f"report {file}").records
            else:
                records.append(validated(Record, content, f"record {file}"))
    return records


def join(records: Sequence[Record]) -> list[Record]:
    """Merge the records of each file that was measured in several places.

    Of the measurements with the same threads, place and runtime, keep the newest.
    """
    joined: dict[tuple[Any, ...], Record] = {}
    for record in records:
        # Run folders of one name can lie in several places.
        key = (*identity(record), record.size_bytes, record.sha256)
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
