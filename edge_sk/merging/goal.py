"""Where merging stops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, Field, model_validator

from edge_sk.costs import Costs
from edge_sk.errors import InputError
from edge_sk.merging.report import Step


class Goal(BaseModel, extra="forbid", allow_inf_nan=False):
    """One of three limits, see :func:`edge_sk.merge`."""

    keep: int | None = Field(default=None, ge=0)
    budget: float | None = Field(default=None, gt=0)
    tolerance: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one(self) -> Any:
        if [self.keep, self.budget, self.tolerance].count(None) != 2:
            raise ValueError("merging stops at one of keep=, budget= and tolerance=: give one of them")
        return self

    def check(self, units: Iterable[str], costs: Costs | None) -> None:
        """An ``InputError`` if no network with these units and costs can reach it."""
        if self.budget is None:
            return
        if costs is None:
            raise InputError("budget= is a share of the plain network's latency: give costs=, which are measured")
        smallest = 1 + sum(min(costs.units[name].values()) for name in units) / costs.plain
        if self.budget < smallest:
            raise InputError(f"budget={self.budget} cannot be met: the smallest ratio that can is {smallest:.3f}")

    def chosen(self, steps: Sequence[Step]) -> int | None:
        """The step to stop at, ``None`` before it: the first within the limit; with a tolerance the last."""
        for index, step in enumerate(steps):
            gain = step.effect.gain
            if self.tolerance is not None and gain is not None and gain[0] < -self.tolerance - 1e-9:
                return index - 1
            few = self.keep is not None and step.count("select") <= self.keep
            if few or (self.budget is not None and step.ratio is not None and step.ratio <= self.budget):
                return index
        return None
