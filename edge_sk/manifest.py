"""Describe where a number comes from: command, versions, commit, host, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__version__ = "0.2.0"
PACKAGES = ("torch", "torchvision", "timm", "executorch", "torchao", "coremltools", "fvcore", "numpy")


def manifest(argv: Sequence[str] | None = None, *, seed: int | None = None) -> dict[str, Any]:
    """Describe this run: the command (``sys.argv`` when ``None``) and its seed, the versions, where and when."""
    host = {"system": platform.system(), "machine": platform.machine(), "cpu": _cpu_model(), "cores": os.cpu_count()}
    return {
        "command": shlex.join(["python", *(sys.argv if argv is None else argv)]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), "edge_sk": __version__}
        | {name: version for name in PACKAGES if (version := _version(name))},
        "host": host,
    } | ({} if seed is None else {"seed": seed})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, with ``+dirty`` when files differ from it; ``None`` outside git."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        describe = ["git", "-C", str(root), "describe", "--always", "--dirty=+dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
