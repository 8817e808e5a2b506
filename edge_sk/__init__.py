"""Selective-kernel networks for phones: build, graft, train, measure, export."""

from typing import TYPE_CHECKING, Any

from edge_sk import grafting
from edge_sk.errors import InputError
from edge_sk.grafting import graft
from edge_sk.models import create_model, list_models
from edge_sk.rewriting import reparameterize
from edge_sk.selective_kernel import Kernel, SelectiveKernel, UnitSpec

if TYPE_CHECKING:
    from edge_sk.manifest import __version__ as __version__
    from edge_sk.models._timm import register_with_timm
    from edge_sk.profiling import profile

__all__ = [
    "InputError",
    "Kernel",
    "SelectiveKernel",
    "UnitSpec",
    "create_model",
    "graft",
    "grafting",
    "list_models",
    "profile",
    "register_with_timm",
    "reparameterize",
]

# Loaded at first use: fvcore, timm and torchvision come with them, and the version is read from disk.
_LAZY = {
    "__version__": "edge_sk.manifest",
    "profile": "edge_sk.profiling",
    "register_with_timm": "edge_sk.models._timm",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edge_sk' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
