"""Reaching ExecuTorch: one place that imports it, quietly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from edge_sk.errors import require
from edge_sk.export.quiet import quiet


def executorch(module: str) -> Any:
    """A module of ExecuTorch, ``executorch.<module>``.

    Raises:
        InputError: ExecuTorch is not installed.
    """
    with quiet():
        return require(f"executorch.{module}", extra="deploy", needed_for="ExecuTorch export")


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
