"""The process that measures: ``python -m edge_sk.export.latency_worker`` with a request as JSON on stdin.

A process of its own, because the number of threads must be set before anything is loaded, and because memory can only
be read for a whole process.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError, script
from edge_sk.export.executorch_tools import executorch

# Forwards between changes to the next file; the first of them finds the caches full of another network's weights.
BLOCK = 10


def _memory_kb(key: str) -> int | None:
    try:
        match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(match[1]) if match else None


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _load(path: str) -> tuple[Any, Any]:
    """Program and method of a file; the method does not keep the program alive."""
    try:
        program = executorch("runtime").Runtime.get().load_program(path)
        return program, program.load_method("forward")
    except RuntimeError as error:
        raise InputError(
            f"cannot load {path}: {error}; it is damaged or no ExecuTorch program: copy or export it again"
        ) from error


def _inputs(method: Any) -> list[Any]:
    import torch

    meta = method.metadata.input_tensor_meta(0)
    # ScalarType 5 is Half (PyTorch's c10/core/ScalarType.h).
    image = torch.rand(meta.sizes(), generator=torch.Generator().manual_seed(0))
    return [image.half() if meta.dtype() == 5 else image]


def loading(path: str, runs: int) -> dict[str, Any]:
    """Load a file and run it alone: time to load, growth of the resident memory."""
    executorch("runtime").Runtime.get()  # importing and starting the runtime is not loading a file
    _forget_peak()
    before = _memory_kb("VmRSS")
    started = time.perf_counter()
    _program, method = _load(path)
    load_ms = 1e3 * (time.perf_counter() - started)
    inputs = _inputs(method)
    for _ in range(runs):
        method.execute(inputs)
    peak = _memory_kb("VmHWM")
    grown = None if peak is None or before is None else (peak - before) / 1024
    return {"load_ms": load_ms, "peak_memory_mb": grown}


def forwards(paths: list[str], warmup: int, runs: int) -> list[list[float]]:
    """Milliseconds of each forward of each file, the files taking turns."""
    loaded = [(program, method, _inputs(method)) for program, method in map(_load, paths)]
    for _, method, inputs in loaded:
        for _ in range(warmup):
            method.execute(inputs)
    times: list[list[float]] = [[] for _ in paths]
    for done in range(0, runs, BLOCK):
        for (_, method, inputs), taken in zip(loaded, times, strict=True):
            method.execute(inputs)
            for _ in range(min(BLOCK, runs - done)):
                started = time.perf_counter()
                method.execute(inputs)
                taken.append(1e3 * (time.perf_counter() - started))
    return times


def operators(path: str, warmup: int, runs: int, dump: str) -> None:
    """Write an ETDump of ``runs`` forwards after a warm-up in a program of its own."""
    forwards([path], warmup, BLOCK)
    runtime = executorch("runtime").Runtime.get()
    program = runtime.load_program(path, enable_etdump=True, debug_buffer_size=0)
    method = program.load_method("forward")
    inputs = _inputs(method)
    for _ in range(runs):
        method.execute(inputs)
    program.write_etdump_result_to_file(dump, dump + ".debug")


@script
def main(_: Sequence[str] | None = None) -> int:
    """Answer one request."""
    request: dict[str, Any] = json.load(sys.stdin)
    threads = request.pop("threads")
    portable = executorch("extension.pybindings.portable_lib")
    portable._unsafe_reset_threadpool(threads)
    task = {"loading": loading, "forwards": forwards, "operators": operators}[request.pop("task")]
    answer = task(**request)
    used = portable._threadpool_get_thread_count()
    if used != threads:
        print(f"asked for {threads} threads, the runtime uses {used}", file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
