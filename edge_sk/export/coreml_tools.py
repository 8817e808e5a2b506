"""Reaching coremltools: one place that imports it, and keeps what it says to itself from the user."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from edge_sk.errors import require


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep coremltools' remarks about itself and its progress bars off the terminal.

    Off macOS it logs one line per missing system library; it says that every torch newer than its last test is
    untested, and calls its own deprecated functions. Its errors are exceptions and pass, and so do numerical warnings
    (an overflow of half precision is the user's).
    """
    import tqdm

    loggers = [logging.getLogger(name) for name in ("coremltools", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    bar = tqdm.tqdm.__init__
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, ResourceWarning, SyntaxWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        # coremltools has no switch for its bars.
        tqdm.tqdm.__init__ = functools.partialmethod(bar, disable=True)  # type: ignore[method-assign]
        try:
            yield
        finally:
            tqdm.tqdm.__init__ = bar  # type: ignore[method-assign]
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def coremltools() -> Any:
    """The package.

    Raises:
        InputError: It is not installed.
    """
    if "coremltools" in sys.modules:
        return require("coremltools", extra="deploy", needed_for="Core ML export")
    with quiet():
        return require("coremltools", extra="deploy", needed_for="Core ML export")
