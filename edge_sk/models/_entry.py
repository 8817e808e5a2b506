"""One row of the zoo."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn


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
        cfg: What differs from :data:`edge_sk.models._registry.DEFAULT_CFG`.
        graft: How selective kernels go in; ``None`` for networks without.
        own_class: ``build`` gives a class of this package, which knows nothing of timm's builder arguments.
    """

    name: str
    build: Callable[..., nn.Module]
    build_args: dict[str, Any]
    recipe: str
    cfg: dict[str, Any] = dataclasses.field(default_factory=dict)
    graft: Graft | None = None
    own_class: bool = False
