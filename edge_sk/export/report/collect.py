"""Export, prove and measure the files of a report; files that are there and unchanged are kept."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from edge_sk.errors import InputError
from edge_sk.export import to_mlpackage, to_pte
from edge_sk.export.executorch import latency
from edge_sk.export.network import Network
from edge_sk.export.record import Format, Precision, Record, Trace, read_record, record_of, write_record
from edge_sk.export.report.model import Failure, NetworkCost, Report
from edge_sk.manifest import manifest

TRACE_THREADS = 1

Artifact = tuple[Format, Precision]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to make of every network, and how to measure its ``.pte`` files."""

    artifacts: tuple[Artifact, ...]
    threads: tuple[int, ...]
    rounds: int
    """Fresh processes per thread count."""
    runs: int
    """Timed forwards per file and round."""
    argv: Sequence[str]
    """The command, for the records."""

    def steps(self, networks: int) -> int:
        """How often :func:`collect` will call ``step``."""
        traced = sum(file_format == "pte" for file_format, _ in self.artifacts)
        return networks * (1 + len(self.artifacts) + traced) + (len(self.threads) if traced else 0)


def collect(networks: Sequence[Network], output: Path, request: Request, step: Callable[[str], None]) -> Report:
    """Profile, export, verify and measure networks, and call ``step`` with a description before each step.

    Files and their records go to ``output``, those of a trained network to a folder of the run's name below it.
    A file is kept when its network, the library's code, the packages that made it, and the file itself are unchanged.
    The latencies of all files are measured together, taking turns, unless every file has its measurement already.

    Raises:
        InputError: Two networks would write the same files.
        OSError: The disk is full; what was finished stays.
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
        report.costs.append(NetworkCost.of(network))
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


def _origin(network: Network) -> str:
    """A digest of what decides the content of a network's files: the network, the code, the packages' versions."""
    described = {field.name: getattr(network, field.name) for field in dataclasses.fields(network)} | {"model": None}
    digest = hashlib.sha256(json.dumps([described, manifest()["versions"]], sort_keys=True).encode())
    for name, tensor in network.model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for source in sorted(Path(__file__).parents[2].rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _kept(folder: Path, artifact: Artifact, origin: str) -> Record | None:
    """The record of a file in the folder that was made from the same things and has not changed since."""
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
        # Operators outside the delegate are a result here, and the report names them.
        record = to_pte(network, folder, precision=precision, allow_fallback=True, argv=argv)
    else:
        record = to_mlpackage(network, folder, precision=precision, argv=argv)
    record.manifest["made_from"] = origin
    write_record(folder / record.file, record)
    return record


def _measure(programs: dict[Path, Record], threads: int, request: Request) -> Iterator[Failure]:
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
        # The latency of the same file failed before and was reported; a trace is not worth a second line.
        return
    context = {"threads": TRACE_THREADS, "where": here, "runtime": latency.RUNTIME, "date": manifest()["date"]}
    record.traces.append(Trace(operators=operators, **context))
    write_record(path, record)


def _failure(
    source: Network | Record, artifact: Artifact, stage: Literal["export", "latency"], error: InputError
) -> Failure:
    what = {"arch": source.arch, "weights": source.weights, "format": artifact[0], "precision": artifact[1]}
    return Failure.model_validate(what | {"stage": stage, "reason": str(error)})
