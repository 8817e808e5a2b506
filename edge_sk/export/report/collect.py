"""Make and measure the files of a report: export with proof, latency, traces; what is there already is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import edge_sk
from edge_sk.errors import InputError
from edge_sk.export import latency, to_mlpackage, to_pte
from edge_sk.export.network import UNTRAINED, Network
from edge_sk.export.record import Format, Precision, Record, Trace, read_record, record_path, write_record
from edge_sk.export.report.model import Failure, NetworkCost
from edge_sk.files import file_digest, write_text
from edge_sk.manifest import manifest

STATE = "artifacts.json"
TRACE_THREADS = 1

# The code that decides what is in a file and in its record; a change of it makes older files stale.
_MAKERS = ("*.py", "models/*.py", "grafting/*.py", "profiling/*.py", "rewriting/*.py", "export/*.py")

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
        traced = sum(form == "pte" for form, _ in self.artifacts)
        return networks * (1 + len(self.artifacts) + traced) + (len(self.threads) if traced else 0)


@dataclasses.dataclass
class Collected:
    """What was made, and what could not be."""

    records: list[Record] = dataclasses.field(default_factory=list)
    costs: list[NetworkCost] = dataclasses.field(default_factory=list)
    failures: list[Failure] = dataclasses.field(default_factory=list)


def collect(networks: Sequence[Network], output: Path, request: Request, step: Callable[[str], None]) -> Collected:
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
    for index, place in enumerate(places):
        if place in places[:index]:
            raise InputError(
                f"two networks would write {networks[index].stem} into {place[0]}; give each once, and run folders "
                "with different names"
            )
    collected = Collected()
    made: dict[Path, Record] = {}
    state = _State(output / STATE)
    for network, folder in zip(networks, folders, strict=True):
        step(f"profile {network.arch}")
        collected.costs.append(NetworkCost.of(network))
        weights = _weights_digest(network)
        for form, precision in request.artifacts:
            step(f"export {network.arch} {precision} .{form}")
            try:
                path, record = _export(network, weights, folder, form, precision, state, request)
            except InputError as error:
                collected.failures.append(_failure(network, form, precision, "export", error))
            else:
                made[path] = record
    programs = {path: record for path, record in made.items() if record.format == "pte"}
    if programs:
        for threads in request.threads:
            step(f"latency of {len(programs)} files, {threads} thread{'s' if threads > 1 else ''}")
            collected.failures += _measure(programs, threads, request)
    for path, record in programs.items():
        step(f"trace {path.name}")
        _trace(path, record)
    collected.records = list(made.values())
    return collected


def _export(
    network: Network,
    weights: str,
    folder: Path,
    form: Format,
    precision: Precision,
    state: _State,
    request: Request,
) -> tuple[Path, Record]:
    """The file's record: the one that is there if nothing changed, otherwise a new one."""
    key = f"{network.weights}/{network.stem}/{precision}.{form}"
    inputs = _inputs_digest(network, weights, form, precision)
    kept = state.get(key)
    if kept is not None:
        path = folder / kept["file"]
        if kept["inputs"] == inputs and path.exists() and kept["sha256"] == file_digest(path):
            try:
                return path, read_record(record_path(path))
            except InputError:
                # Damaged or gone: the file without its record proves nothing.
                pass
    if form == "pte":
        # What stays outside the delegate is a result here, and the report names it.
        record = to_pte(network, folder, precision=precision, allow_fallback=True, argv=request.argv)
    else:
        record = to_mlpackage(network, folder, precision=precision, argv=request.argv)
    path = folder / record.file
    state.set(key, {"file": record.file, "inputs": inputs, "sha256": file_digest(path)})
    return path, record


def _measure(programs: dict[Path, Record], threads: int, request: Request) -> Iterator[Failure]:
    here = latency.this_host()

    def has_measurement(record: Record) -> bool:
        return any(
            (one.threads, one.where, one.rounds) == (threads, here, request.rounds)
            and one.runs >= request.rounds * request.runs
            for one in record.latency
        )

    if all(map(has_measurement, programs.values())):
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
                yield _failure(record, record.format, record.precision, "latency", error)
    for path, one in measured.items():
        record = programs[path]
        record.add_latency(one)
        write_record(path, record)


def _trace(path: Path, record: Record) -> None:
    here = latency.this_host()
    if any((one.threads, one.where) == (TRACE_THREADS, here) for one in record.traces):
        return
    try:
        operators = latency.operator_times(path, threads=TRACE_THREADS)
    except InputError:
        # The latency of the same file failed before and was reported; a trace is not worth a second line.
        return
    traced = Trace(
        threads=TRACE_THREADS, operators=operators, where=here, runtime=latency.RUNTIME, date=manifest()["date"]
    )
    record.traces = [*(old for old in record.traces if old.where != here), traced]
    write_record(path, record)


def _failure(network: Network | Record, form: Format, precision: Precision, stage: Any, error: InputError) -> Failure:
    return Failure(
        arch=network.arch, weights=network.weights, format=form, precision=precision, stage=stage, reason=str(error)
    )


class _State:
    """Which inputs each file was made from, so that an interrupted report goes on where it stopped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
            # A damaged state costs time, not correctness: everything is made again.
            content = {}
        self._content: dict[str, dict[str, str]] = content if isinstance(content, dict) else {}

    def get(self, key: str) -> dict[str, str] | None:
        kept = self._content.get(key)
        return kept if isinstance(kept, dict) and kept.keys() == {"file", "inputs", "sha256"} else None

    def set(self, key: str, value: dict[str, str]) -> None:
        self._content[key] = value
        write_text(self._path, json.dumps(self._content, indent=1) + "\n")


def _weights_digest(network: Network) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _inputs_digest(network: Network, weights: str, form: Format, precision: Precision) -> str:
    package = Path(edge_sk.__file__).parent
    sources = sorted(file for pattern in _MAKERS for file in package.glob(pattern))
    described = {
        "network": {f.name: getattr(network, f.name) for f in dataclasses.fields(network) if f.name != "model"},
        "weights": weights,
        "artifact": [form, precision],
        "versions": manifest()["versions"],
        "code": [hashlib.sha256(file.read_bytes()).hexdigest() for file in sources],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
