"""Packages for Core ML: convert, interpret without a Mac, and measure on one."""

from typing import Any

from edge_sk.errors import require
from edge_sk.stderr import capture_stderr


def coremltools() -> Any:
    """Import coremltools.

    Raises:
        InputError: It is not installed.
    """
    with capture_stderr():
        return require("coremltools", extra="coreml", needed_for="Core ML export")
