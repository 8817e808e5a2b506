"""One row of the zoo."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

from edge_sk.running import IMAGENET

# What timm calls a default_cfg: how to feed the network. Entries say where they differ.
DEFAULT_CFG: dict[str, Any] = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    **IMAGENET,
}
# What timm's networks take; ours have no drop_path_rate.
TIMM_OPTIONS = ("drop_rate", "drop_path_rate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graft:
    """How a network of the zoo takes its selective kernels.

    Args:
        where: From the option ``sk_units`` to a predicate over sites; ``None``: every site, and no such option.
        kernels: Branches; ``None``: the site's own kernel and a dilated 3x3 of the next extent.
        reduction: ``r``.
        min_width: ``L``.
        act_layer: Activation of the branches; ``None``: the one the site has.
    """

    where: Callable[[str], Callable[[Any], bool]] | None = None
    kernels: str | None = None
    reduction: int = 16
    min_width: int = 32
    act_layer: Callable[..., nn.Module] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A name of the zoo and how to build it.

    Args:
        name: The exact name.
        build: Builds the plain network from ``build_args`` and timm's keyword arguments.
        build_args: Fixed arguments of ``build``.
        recipe: Stem of the recipe that trains it.
        cfg: What differs from :data:`DEFAULT_CFG`.
        graft: How selective kernels go in; ``None`` for networks without.
        options: Options of ``build`` that :func:`edge_sk.create_model` offers.
        timm_name: Name of the plain network in timm, whose entry point ``build`` calls; ``None`` where ``build``
            calls a class.
    """

    name: str
    build: Callable[..., nn.Module]
    build_args: dict[str, Any]
    recipe: str
    cfg: dict[str, Any] = dataclasses.field(default_factory=dict)
    graft: Graft | None = None
    options: tuple[str, ...] = ("drop_rate",)
    timm_name: str | None = None

    @property
    def default_cfg(self) -> dict[str, Any]:
        """How to feed the network (timm's form)."""
        return DEFAULT_CFG | self.cfg | {"architecture": self.name}
