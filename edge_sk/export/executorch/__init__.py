"""Files for ExecuTorch: lower, quantize, run and measure a ``.pte``."""

from typing import Any

from edge_sk.errors import require
from edge_sk.stderr import capture_stderr


def executorch(module: str) -> Any:
    """Import ``executorch.<module>``.

    Raises:
        InputError: ExecuTorch is not installed.
    """
    with capture_stderr():
        return require(f"executorch.{module}", extra="executorch", needed_for="ExecuTorch export")
