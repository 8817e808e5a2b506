"""Selective-kernel networks for phones: build, graft, train, measure, export."""

from edge_sk.errors import InputError  # isort: skip (before torch: Ctrl-C)
from edge_sk import grafting
from edge_sk.grafting import graft
from edge_sk.manifest import __version__ as __version__
from edge_sk.merging import merge
from edge_sk.models import create_model, list_models
from edge_sk.models._timm import register_with_timm
from edge_sk.profiling import profile
from edge_sk.rewriting import reparameterize
from edge_sk.selective_kernel import Kernel, SelectiveKernel, UnitSpec

__all__ = [
    "InputError",
    "Kernel",
    "SelectiveKernel",
    "UnitSpec",
    "create_model",
    "graft",
    "grafting",
    "list_models",
    "merge",
    "profile",
    "register_with_timm",
    "reparameterize",
]
