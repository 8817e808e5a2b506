"""Write a trained network as files for phones, and prove that they compute the same."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sk.export.coreml.mlpackage import to_mlpackage
    from edge_sk.export.executorch.pte import to_pte

__all__ = ["to_mlpackage", "to_pte"]

# Loaded at first use: ExecuTorch and coremltools are optional, and slow to import.
_LAZY = {"to_mlpackage": "edge_sk.export.coreml.mlpackage", "to_pte": "edge_sk.export.executorch.pte"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edge_sk.export' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
