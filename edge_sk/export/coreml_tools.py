"""Reaching coremltools: one place that imports it, quietly."""

from __future__ import annotations

from typing import Any

from edge_sk.errors import require
from edge_sk.export.quiet import quiet


def coremltools() -> Any:
    """The package.

    Raises:
        InputError: It is not installed.
    """
    with quiet():
        return require("coremltools", extra="deploy", needed_for="Core ML export")
