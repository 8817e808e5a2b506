"""Graft selective kernels onto a network: :func:`edge_sk.graft` and what it is made of."""

from edge_sk.grafting import preserve
from edge_sk.grafting._graft import graft, graft_
from edge_sk.grafting.report import Replaced, Report
from edge_sk.grafting.site import Site, Skipped
from edge_sk.grafting.unit import default_kernels, make_unit, replace
from edge_sk.grafting.where import NAMED, Where, depthwise, grouped, late, stages, stride1

__all__ = [
    "NAMED",
    "Replaced",
    "Report",
    "Site",
    "Skipped",
    "Where",
    "default_kernels",
    "depthwise",
    "graft",
    "graft_",
    "grouped",
    "late",
    "make_unit",
    "preserve",
    "replace",
    "stages",
    "stride1",
]
