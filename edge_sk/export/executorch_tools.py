"""Reaching ExecuTorch: one place that imports it, and keeps what it says to itself from the user."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from edge_sk.errors import require


def executorch(module: str) -> Any:
    """A module of ExecuTorch, ``executorch.<module>``.

    Raises:
        InputError: ExecuTorch is not installed.
    """
    with quiet():
        return require(f"executorch.{module}", extra="deploy", needed_for="ExecuTorch export")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence deprecation remarks among ExecuTorch's own parts, and the C++ library's lines about the CPU on stderr."""
    loggers = [logging.getLogger(name) for name in ("torch.utils._pytree", "torchao", "executorch", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), _silent_stderr():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def shared_provenance() -> Iterator[None]:
    """Let the passes of a lowering share what nodes know of their origin, instead of each copying all of it.

    Nothing changes a :class:`torch.fx.traceback.NodeSource` once it is made, and copying them is a fifth of the time.
    """
    from torch.fx.traceback import NodeSource

    setattr(NodeSource, "__deepcopy__", lambda self, memo: self)  # noqa: B010 - the class has no such attribute
    try:
        yield
    finally:
        delattr(NodeSource, "__deepcopy__")


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Send file descriptor 2 away: C++ does not write through ``sys.stderr``."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
