"""Make and measure the files of a report: export with proof, latency, traces; what is there already is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from edge_sk.errors import InputError
from edge_sk.export import latency, to_mlpackage, to_pte
from edge_sk.export.network import UNTRAINED, Network
from edge_sk.export.record import Format, Precision, Record, Trace, record_of, write_record
from edge_sk.export.report.model import Failure, NetworkCost, Report
from edge_sk.files import write_text
from edge_sk.manifest import manifest

BUILDS = "artifacts.json"
"""In the output folder: what each file there was made from."""

TRACE_THREADS = 1

Artifact = tuple[Format, Precision]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to make of every network.

    Args:
        artifacts: Format and precision of each file.
        threads: Thread counts to measure ``.pte`` files with.
        rounds: Fresh processes per thread count.
        runs: Timed forwards per file and round.
        argv: The command, for the records.
    """

    artifacts: tuple[Artifact, ...]
    threads: tuple[int, ...]
    rounds: int
    runs: int
    argv: Sequence[str]

    def steps(self, networks: int) -> int:
        """How often :func:`collect` will call ``step``."""
        traced = sum(file_format == "pte" for file_format, _ in self.artifacts)
        return networks * (1 + len(self.artifacts) + traced) + (len(self.threads) if traced else 0)


def collect(networks: Sequence[Network], output: Path, request: Request, step: Callable[[str], None]) -> Report:
    """Profile, export, verify and measure networks; the files and their records go to ``output``.

    A file is kept when its weights, the code and the packages that made it, and the file itself are unchanged. The
    latencies of all files are measured together, taking turns, unless every file has its measurement already.

    Args:
        networks: At least one; no two with the same architecture and weights.
        output: Folder; files of a trained network go to a folder of the run's name below it.
        request: What to make.
        step: Called with a description before each step.

    Raises:
        InputError: Two networks would write the same files.
        OSError: The disk is full; what was finished stays.
    """
    folders = [output if network.weights == UNTRAINED else output / network.weights for network in networks]
    places = [(folder, network.stem) for folder, network in zip(folders, networks, strict=True)]
    if twice := next((place for index, place in enumerate(places) if place in places[:index]), None):
        raise InputError(
            f"two networks would write {twice[1]} into {twice[0]}; give each once, and run folders with different names"
        )
    report = Report(records=[], manifest=manifest(request.argv))
    made: dict[Path, Record] = {}
    for network, folder in zip(networks, folders, strict=True):
        step(f"profile {network.arch}")
        report.costs.append(NetworkCost.of(network))
        weights = _weights_digest(network)
        for artifact in request.artifacts:
            step(f"export {network.arch} {artifact[1]} .{artifact[0]}")
            made_from = _inputs_digest(network, weights, artifact)
            try:
                record = _kept(output, made_from) or _export(network, folder, artifact, request.argv)
            except InputError as error:
                report.failures.append(_failure(network, artifact, "export", error))
                continue
            made[folder / record.file] = record
            _remember(output, folder / record.file, made_from)
    programs = {path: record for path, record in made.items() if record.format == "pte"}
    if programs:
        for threads in request.threads:
            step(f"latency of {len(programs)} files, {threads} thread{'s' if threads > 1 else ''}")
            report.failures += _measure(programs, threads, request)
    for path, record in programs.items():
        step(f"trace {path.name}")
        _trace(path, record)
    report.records = list(made.values())
    return report


def _export(network: Network, folder: Path, artifact: Artifact, argv: Sequence[str]) -> Record:
    file_format, precision = artifact
    if file_format == "mlpackage":
        return to_mlpackage(network, folder, precision=precision, argv=argv)
    # What stays outside the delegate is a result here, and the report names it.
    return to_pte(network, folder, precision=precision, allow_fallback=True, argv=argv)


def _measure(programs: dict[Path, Record], threads: int, request: Request) -> Iterator[Failure]:
    """Add the latency of every program to its record, and yield those that cannot be measured."""
    here = latency.this_host()
    if all(
        any(
            (one.threads, one.where, one.rounds) == (threads, here, request.rounds)
            and one.runs >= request.rounds * request.runs
            for one in record.latency
        )
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
    for path, one in measured.items():
        programs[path].add_latency(one)
        write_record(path, programs[path])


def _trace(path: Path, record: Record) -> None:
    here = latency.this_host()
    if any((one.threads, one.where) == (TRACE_THREADS, here) for one in record.traces):
        return
    # A file that cannot be traced could not be measured before, and was reported then.
    with contextlib.suppress(InputError):
        operators = latency.operator_times(path, threads=TRACE_THREADS)
        traced = Trace(
            threads=TRACE_THREADS, operators=operators, where=here, runtime=latency.RUNTIME, date=manifest()["date"]
        )
        record.traces = [*(old for old in record.traces if old.where != here), traced]
        write_record(path, record)


def _failure(
    network: Network | Record, artifact: Artifact, stage: Literal["export", "latency"], error: InputError
) -> Failure:
    return Failure(
        arch=network.arch,
        weights=network.weights,
        format=artifact[0],
        precision=artifact[1],
        stage=stage,
        reason=str(error),
    )


def _builds(output: Path) -> dict[str, str]:
    # A damaged list costs time, not correctness: everything is made again.
    with contextlib.suppress(FileNotFoundError, ValueError):
        content = json.loads((output / BUILDS).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _kept(output: Path, made_from: str) -> Record | None:
    """The record of a file that was made from the same inputs and has not changed since."""
    for name, inputs in _builds(output).items():
        if inputs == made_from:
            with contextlib.suppress(InputError, OSError):
                return record_of(output / name)
    return None


def _remember(output: Path, file: Path, made_from: str) -> None:
    builds = _builds(output) | {str(file.relative_to(output)): made_from}
    write_text(output / BUILDS, json.dumps(builds, indent=1) + "\n")


def _weights_digest(network: Network) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _inputs_digest(network: Network, weights: str, artifact: Artifact) -> str:
    """A digest of all that decides what is in a file and its record: network, code and packages."""
    described = {
        "network": {f.name: getattr(network, f.name) for f in dataclasses.fields(network) if f.name != "model"},
        "weights": weights,
        "artifact": artifact,
        "versions": manifest()["versions"],
        "code": [file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parents[2].rglob("*.py"))],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
