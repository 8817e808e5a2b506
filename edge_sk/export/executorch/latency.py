"""Host latency of ``.pte`` files: percentiles, load time, memory, and where the time goes, operator by operator."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError
from edge_sk.export.executorch import executorch
from edge_sk.export.record import Latency, OperatorTime
from edge_sk.manifest import manifest
from edge_sk.stderr import capture_stderr

RUNTIME = "executorch Python runtime"

# In order: the first that matches. XNNPACK calls a 1x1 convolution "Fully Connected" and a concatenation "Copy".
_KINDS = (
    ("outside the delegate", r"native_call"),
    ("convolution", r"convolution|fully connected|gemm"),
    ("data movement", r"transpose|copy|slice|reshape|convert|pad|concat"),
    ("pooling", r"pool|mean|sum|reduce"),
    ("elementwise", r""),
)


def measure(
    files: Sequence[str | Path], *, threads: int, rounds: int = 3, runs: int = 50, warmup: int = 5
) -> list[Latency]:
    """Measure files against each other.

    Every round is a fresh process in which the files take turns, so that a change of the machine's speed affects all of
    them. Load time and memory come from processes with one file each.

    Args:
        files: ``.pte`` files.
        threads: Threads of the runtime.
        rounds: Fresh processes.
        runs: Timed forwards per file and round.
        warmup: Untimed forwards before.

    Returns:
        One measurement per file.

    Raises:
        InputError: A file cannot be loaded.
    """
    paths = [str(file) for file in files]
    times: list[list[list[float]]] = []  # by round and file
    loads: list[list[dict[str, Any]]] = []
    for _ in range(rounds):
        times.append(_run_worker(task="forwards", threads=threads, paths=paths, runs=runs, warmup=warmup))
        loads.append([_run_worker(task="loading", threads=threads, path=path, runs=warmup) for path in paths])
    date = manifest()["date"]
    found = []
    for file_times, file_loads in zip(zip(*times, strict=True), zip(*loads, strict=True), strict=True):
        memory = [load["peak_memory_mb"] for load in file_loads]
        found.append(
            Latency.of(
                file_times,
                threads=threads,
                load_ms=round(statistics.median(load["load_ms"] for load in file_loads), 2),
                peak_memory_mb=None if None in memory else round(max(memory), 1),
                where=this_host(),
                runtime=RUNTIME,
                date=date,
            )
        )
    return found


def ratios(
    files: Sequence[str | Path], *, threads: int, rounds: int = 3, runs: int = 50, warmup: int = 5
) -> list[float]:
    """Latency of each file as a share of the first's: the median over rounds, in which they take turns, of the ratio.

    Arguments and errors are those of :func:`measure`.
    """
    paths, found = [str(file) for file in files], list[list[float]]()
    for _ in range(rounds):
        times = _run_worker(task="forwards", threads=threads, paths=paths, runs=runs, warmup=warmup)
        medians = [statistics.median(one) for one in times]
        found.append([one / medians[0] for one in medians])
    return [statistics.median(one) for one in zip(*found, strict=True)]


def this_host() -> str:
    """Where a latency measured here was measured: the processor, and that it is no phone's."""
    host = manifest()["host"]
    return f"host latency, not a phone's: {host['cpu']}, {host['cores']} cores"


def operator_times(file: str | Path, *, threads: int = 1, runs: int = 30, warmup: int = 5) -> list[OperatorTime]:
    """Where a forward's time goes, from an ETDump; the slowest kind of operator first.

    Raises:
        InputError: The file cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        dump = str(Path(folder) / "trace.etdp")
        _run_worker(task="operators", threads=threads, path=str(file), runs=runs, warmup=warmup, dump=dump)
        with capture_stderr():
            table = executorch("devtools").Inspector(etdump_path=dump).to_dataframe()
    # A call of a delegate or of an operator contains events that are listed too.
    calls = table.event_name.isin(("DELEGATE_CALL", "OPERATOR_CALL", "Method::execute"))
    events = table[(table.event_block_name == "Execute") & ~calls]
    times = events["p50 (ms)"].groupby(events.event_name.str.replace(r" #\d+$", "", regex=True)).agg(["sum", "size"])
    whole = times["sum"].sum() or 1.0
    return [
        OperatorTime(
            name=name,
            kind=kind_of(name),
            calls=int(row["size"]),
            p50_ms=round(row["sum"], 4),
            share=round(row["sum"] / whole, 4),
        )
        for name, row in times.sort_values("sum", ascending=False).iterrows()
    ]


def kind_of(name: str) -> str:
    """The kind of an operator, by its name in the trace."""
    return next(kind for kind, pattern in _KINDS if re.search(pattern, name.lower()))


def _run_worker(**request: Any) -> Any:
    command = [sys.executable, "-m", "edge_sk.export.executorch.latency_worker"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        why = [f"exit code {done.returncode}", *done.stderr.strip().splitlines()][-1]
        files = request.get("path") or ", ".join(request["paths"])
        # A worker that knows which file and why says so in a line of its own.
        raise InputError(why.removeprefix("error: ") if why.startswith("error: ") else f"cannot run {files}: {why}")
    return json.loads(done.stdout.splitlines()[-1])
