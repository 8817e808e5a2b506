"""The process that measures: ``python -m edge_sk.export.executorch.latency_worker`` with a request as JSON on stdin.

A process of its own, because the number of threads must be set before anything is loaded, and because memory can only
be read for a whole process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import re
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edge_sk.errors import InputError, script
from edge_sk.export.executorch import executorch

# Forwards between changes to the next file; the first of them finds the caches full of another network's weights.
BLOCK = 10


def _memory_mb(key: str) -> float | None:
    """A value of Linux's ``/proc/self/status``; ``None`` on other systems."""
    with contextlib.suppress(OSError):
        if match := re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(match[1]) / 1024
    return None


class _File:
    """A loaded file and an image for it; the method does not keep the program alive."""

    def __init__(self, path: str, **options: Any) -> None:
        try:
            self.program = executorch("runtime").Runtime.get().load_program(path, **options)
            self.method = self.program.load_method("forward")
        except RuntimeError as error:
            raise InputError(
                f"cannot load {path}: {error}; it is damaged or no ExecuTorch program: copy or export it again"
            ) from error

    @functools.cached_property
    def inputs(self) -> list[Any]:
        meta = self.method.metadata.input_tensor_meta(0)
        image = torch.rand(meta.sizes(), generator=torch.Generator().manual_seed(0))
        # ScalarType 5 is Half (PyTorch's c10/core/ScalarType.h).
        return [image.half() if meta.dtype() == 5 else image]

    def run(self, times: int = 1) -> None:
        for _ in range(times):
            self.method.execute(self.inputs)


def loading(path: str, runs: int) -> dict[str, Any]:
    """Load a file and run it alone: time to load, growth of the resident memory."""
    executorch("runtime").Runtime.get()  # importing and starting the runtime is not loading a file
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the memory
    before = _memory_mb("VmRSS")
    started = time.perf_counter()
    file = _File(path)
    load_ms = 1e3 * (time.perf_counter() - started)
    file.run(runs)
    peak = _memory_mb("VmHWM")
    return {"load_ms": load_ms, "peak_memory_mb": None if peak is None or before is None else peak - before}


def forwards(paths: list[str], warmup: int, runs: int) -> list[list[float]]:
    """Milliseconds of each forward of each file, the files taking turns."""
    files = [_File(path) for path in paths]
    for file in files:
        file.run(warmup)
    times: list[list[float]] = [[] for _ in files]
    for done in range(0, runs, BLOCK):
        for file, taken in zip(files, times, strict=True):
            file.run()
            for _ in range(min(BLOCK, runs - done)):
                started = time.perf_counter()
                file.run()
                taken.append(1e3 * (time.perf_counter() - started))
    return times


def operators(path: str, warmup: int, runs: int, dump: str) -> None:
    """Write an ETDump of ``runs`` forwards after a warm-up in a program of its own."""
    forwards([path], warmup, BLOCK)
    file = _File(path, enable_etdump=True, debug_buffer_size=0)
    file.run(runs)
    file.program.write_etdump_result_to_file(dump, dump + ".debug")


def _leave_out_the_exporter() -> None:
    """Import the runtime without the exporter, of which it needs a class of warnings: 1.5 seconds, not 5.6."""
    package, found = types.ModuleType("executorch.exir"), importlib.util.find_spec("executorch")
    package.__path__ = [f"{path}/exir" for path in (found and found.submodule_search_locations) or ()]
    sys.modules.setdefault(package.__name__, package)


@script
def main(_: Sequence[str] | None = None) -> int:
    """Answer one request."""
    request: dict[str, Any] = json.load(sys.stdin)
    threads = request.pop("threads")
    _leave_out_the_exporter()
    portable = executorch("extension.pybindings.portable_lib")
    portable._unsafe_reset_threadpool(threads)
    task = {"loading": loading, "forwards": forwards, "operators": operators}[request.pop("task")]
    result = task(**request)
    used = portable._threadpool_get_thread_count()
    if used != threads:
        print(f"asked for {threads} threads, the runtime uses {used}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
