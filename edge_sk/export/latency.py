"""Host latency of ``.pte`` files: percentiles, load time, memory, and where the time goes, operator by operator."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError
from edge_sk.export.executorch_tools import executorch
from edge_sk.export.quiet import quiet
from edge_sk.export.record import Latency, OperatorTime
from edge_sk.manifest import manifest

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

    Every round is a fresh process in which the files take turns, so that a change of the machine's speed meets all of
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
    times: list[list[list[float]]] = [[] for _ in paths]
    loads: list[list[dict[str, Any]]] = [[] for _ in paths]
    for _ in range(rounds):
        answer = _ask(task="forwards", threads=threads, paths=paths, runs=runs, warmup=warmup)
        for taken, more in zip(times, answer, strict=True):
            taken.append(more)
        for load, path in zip(loads, paths, strict=True):
            load.append(_ask(task="loading", threads=threads, path=path, runs=warmup))
    date = manifest()["date"]
    return [
        Latency.of(taken, threads=threads, **_loading(load), where=this_host(), runtime=RUNTIME, date=date)
        for taken, load in zip(times, loads, strict=True)
    ]


def this_host() -> str:
    """Where a latency measured here was measured: the processor, and that it is no phone's."""
    host = manifest()["host"]
    return f"host latency, not a phone's: {host['cpu']}, {host['cores']} cores"


def _loading(loads: list[dict[str, Any]]) -> dict[str, float | None]:
    memory = [load["peak_memory_mb"] for load in loads]
    return {
        "load_ms": round(statistics.median(load["load_ms"] for load in loads), 2),
        "peak_memory_mb": None if None in memory else round(max(memory), 1),
    }


def operator_times(file: str | Path, *, threads: int = 1, runs: int = 30, warmup: int = 5) -> list[OperatorTime]:
    """Where a forward's time goes, from an ETDump; the slowest kind of operator first.

    Raises:
        InputError: The file cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        dump = str(Path(folder) / "trace.etdp")
        _ask(task="operators", threads=threads, path=str(file), runs=runs, warmup=warmup, dump=dump)
        with quiet():
            table = executorch("devtools").Inspector(etdump_path=dump).to_dataframe()
    totals: dict[str, list[float]] = defaultdict(list)
    inside = table[table.event_block_name == "Execute"]
    for event, p50 in zip(inside.event_name, inside["p50 (ms)"], strict=True):
        # A call of a delegate or of an operator contains events that are listed too.
        if event not in ("DELEGATE_CALL", "OPERATOR_CALL", "Method::execute"):
            totals[re.sub(r" #\d+$", "", event)].append(float(p50))
    whole = sum(map(sum, totals.values())) or 1.0
    found = [
        OperatorTime(
            name=name,
            kind=kind_of(name),
            calls=len(p50s),
            p50_ms=round(sum(p50s), 4),
            share=round(sum(p50s) / whole, 4),
        )
        for name, p50s in totals.items()
    ]
    return sorted(found, key=lambda one: -one.p50_ms)


def kind_of(name: str) -> str:
    """The kind of an operator, by its name in the trace."""
    return next(kind for kind, pattern in _KINDS if re.search(pattern, name.lower()))


def _ask(**request: Any) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "edge_sk.export.latency_worker"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        files = request.get("path") or ", ".join(request.get("paths", []))
        why = lines[-1] if lines else f"exit code {done.returncode}"
        # A worker that knows which file and why says so in a line of its own.
        raise InputError(why.removeprefix("error: ") if why.startswith("error: ") else f"cannot run {files}: {why}")
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None
