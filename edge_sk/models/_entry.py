"""One row of the zoo: a name, its plain network, and how selective kernels go into it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn

from edge_sk.errors import InputError, shown
from edge_sk.grafting import NAMED, Site, graft_, stages
from edge_sk.grafting.unit import Init
from edge_sk.running import IMAGENET
from edge_sk.selective_kernel import Kernels, UnitSpec, parse_kernels

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


def timm_name(name: str) -> str:
    """Spell a name timm's way: ``sk_shufflenetv2_1.0`` is ``sk_shufflenetv2_100`` (a dot starts a weight tag there)."""
    return re.sub(r"_(\d+)\.(\d)$", lambda match: f"_{int(match[1] + match[2]) * 10:03d}", name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graft:
    """The selective kernels of a network, unless options say otherwise.

    Args:
        unit: What they are.
        sk_units: Where they are: a key of ``places``.
        places: Predicates over sites, by the values of the option ``sk_units``.
    """

    unit: UnitSpec = dataclasses.field(default_factory=UnitSpec)
    sk_units: str = "all"
    places: Mapping[str, Callable[[Site], bool]] = dataclasses.field(default_factory=lambda: NAMED)

    # The options of a name that are about selective kernels.
    OPTIONS: ClassVar = (*(field.name for field in dataclasses.fields(UnitSpec)), "sk_units", "init")

    def into(self, model: nn.Module, options: Mapping[str, Any], *, input_size: tuple[int, ...], init: Init) -> None:
        """Put selective kernels into a plain network, in place.

        ``options`` are those of :attr:`OPTIONS` that are given. ``init`` says how units start (see
        :func:`edge_sk.graft`) if the options do not. ``input_size`` is ``(C, H, W)``.

        Raises:
            InputError: A value that makes no sense, or nothing to replace.
        """
        unit = dict(options)
        kernels, table = unit.get("kernels"), dict[Any, Kernels | None]()
        if isinstance(kernels, str) and ":" in kernels:
            table = _by_stage(kernels)
        # Among the stages that are named, all sites of stride 1 and not the late ones alone.
        default = "stride1" if table and self.sk_units == "late" else self.sk_units
        init, place = unit.pop("init", init), unit.pop("sk_units", default)
        if not isinstance(place, str) or place not in self.places:
            raise InputError(f"sk_units={shown(place)} is not known; use {', '.join(map(repr, self.places))}")
        where = self.places[place]
        if table:
            unit["kernels"], where = lambda site: table[site.stage], stages(*table) & where
        elif isinstance(kernels, str):
            unit["kernels"] = _read_kernels(kernels)
        spec = dataclasses.replace(self.unit, **unit)
        replaced = graft_(model, spec, where=where, init=init, input_size=input_size)
        if lacking := table.keys() - {site.stage for site, _ in replaced}:
            raise InputError(f"kernels={shown(kernels)}: with sk_units={place!r}, stage {min(lacking)} has no site")


def _by_stage(text: str) -> dict[Any, Kernels | None]:
    """The kernels of each stage that is named: ``"2:3+5/3:auto"``."""
    table: dict[Any, Kernels | None] = {}
    for part in text.split("/"):
        stage, colon, kernels = part.partition(":")
        if not (colon and len(stage) == 1 and stage.isdecimal()) or int(stage) in table:
            raise InputError(
                f"kernels={shown(text)}: {shown(part)} is not STAGE:KERNELS with another stage from 0 to 9; for "
                "instance 2:3+5/3:auto"
            )
        table[int(stage)] = _read_kernels(kernels)
    return table


def _read_kernels(text: str) -> Kernels | None:
    return None if text == "auto" else parse_kernels(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A name of the zoo and how to build it.

    Args:
        name: The exact name.
        build: Builds the plain network from timm's keyword arguments.
        recipe: Stem of the recipe that trains it.
        cfg: What differs from :data:`DEFAULT_CFG`.
        graft: Its selective kernels; ``None`` for networks without.
        options: Options of ``build`` that :func:`edge_sk.create_model` offers.
        of_timm: Whether ``build`` calls an entry point of timm.
        levels: Levels of features that timm's ``features_only`` gives.
    """

    name: str
    build: Callable[..., nn.Module]
    recipe: str
    cfg: dict[str, Any] = dataclasses.field(default_factory=dict)
    graft: Graft | None = None
    options: tuple[str, ...] = ("drop_rate",)
    of_timm: bool = False
    levels: int = 5

    @property
    def default_cfg(self) -> dict[str, Any]:
        """How to feed the network (timm's form)."""
        return DEFAULT_CFG | self.cfg | {"architecture": self.name}
