"""What units cost on a host: measured, in memory or in a file. ``deploy/unit_costs.py`` writes such a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from edge_sk.errors import InputError, shown
from edge_sk.reading import read_json, validated

Outcome = Literal["select", "merge", "cut"]
OUTCOMES: tuple[Outcome, ...] = ("select", "merge", "cut")


class Costs(BaseModel, extra="forbid", allow_inf_nan=False, frozen=True):
    """What units cost, in microseconds of a forward.

    Args:
        plain: The whole network with plain convolutions in the units' places.
        units: What each unit takes beyond its plain convolution, by path and outcome (see :mod:`edge_sk.merging`). An
            outcome that is not named is not considered.
        where: On which host, or device.
        threads: Of the runtime.
        precision: Of the file.
    """

    plain: float = Field(gt=0)
    units: Mapping[str, Mapping[Outcome, float]]
    where: str = ""
    threads: int | None = None
    precision: str | None = None

    def ratio(self, outcomes: Mapping[str, Outcome]) -> float:
        """Latency as a share of the plain network's."""
        return 1 + sum(self.units[name][outcome] for name, outcome in outcomes.items()) / self.plain


def read_costs(given: Any, units: Iterable[str], *outcomes: Outcome) -> Costs:
    """Costs from a table, from its values as a mapping, or from a JSON file of them.

    Raises:
        InputError: It is none of these or does not fit, or lacks one of ``units`` or one of ``outcomes`` of it.
    """
    if isinstance(given, str | os.PathLike):
        costs = validated(
            Costs,
            read_json(given, missing=f"no costs at {given}; the repository's deploy/unit_costs.py measures them"),
            Path(given),
        )
    elif isinstance(given, Costs | Mapping):
        costs = validated(Costs, given, "costs")
    else:
        raise InputError(f"costs={shown(given)} is neither a table of measured costs nor the file of one")
    for name in units:
        if name not in costs.units:
            raise InputError(f"costs has no unit {name}: it was measured on another network; measure this one")
        if missing := [outcome for outcome in outcomes if outcome not in costs.units[name]]:
            raise InputError(f"costs of {name} are of {shown([*costs.units[name]])}: give {missing[0]} too")
    return costs
