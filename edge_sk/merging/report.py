"""The report of a merge: the units as they were measured, and the networks on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sk.costs import Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effect:
    """What merging did to a network's output on the images.

    Args:
        change: Root mean square of the output's change, as a share of the output's.
        top1: Accuracy in per cent; ``None`` without labels.
        gain: Change of the accuracy in points, and its 95 % interval (paired; Agresti and Min, 2005); ``None``
            without labels.
    """

    change: float
    top1: float | None = None
    gain: tuple[float, float, float] | None = None

    def __str__(self) -> str:
        text = f"output changed by {self.change:.1%}"
        return text if self.gain is None else text + ", top-1 {:+.2f} points ({:+.2f} to {:+.2f})".format(*self.gain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit as it was trained.

    Args:
        name: Its path.
        kernels: Its branches, for instance ``3+3d2``.
        attention: Mean attention of each branch.
        spread: Standard deviation over images of a channel's attention, mean over channels.
        class_spread: The same over the means of the classes; ``None`` without labels.
        alone: What happens if this unit alone is merged, or cut.
    """

    name: str
    kernels: str
    attention: tuple[float, ...]
    spread: float
    class_spread: float | None
    alone: Mapping[Outcome, Effect]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A network on the way: what has become of each unit, and its effect, both against the network as it was.

    ``moved`` is the unit that this step changed, ``None`` in the first; ``ratio`` is the latency as a share of the
    plain network's, by the costs given.
    """

    moved: str | None
    outcomes: Mapping[str, Outcome]
    effect: Effect
    ratio: float | None

    def count(self, outcome: Outcome) -> int:
        """How many units have an outcome."""
        return list(self.outcomes.values()).count(outcome)

    def __str__(self) -> str:
        names: dict[Outcome, str] = {"select": "selecting", "merge": "merged", "cut": "cut to the host's kernel"}
        made = ", ".join(f"{self.count(outcome)} {name}" for outcome, name in names.items())
        ratio = "" if self.ratio is None else f"; latency by the costs given {self.ratio:.3f} of the plain network's"
        return f"{len(self.outcomes)} units: {made}{ratio}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The units as they were measured, and the steps taken; ``images`` is how many were measured on."""

    units: Sequence[Unit]
    steps: Sequence[Step]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        last = self.steps[-1]
        lines = [str(last), f"on {self.images} images: {last.effect}"]
        for unit in self.units:
            alone = "; ".join(f"{outcome} alone: {effect}" for outcome, effect in unit.alone.items())
            lines.append(
                f"  {last.outcomes[unit.name]:6} {unit.name} ({unit.kernels}), spread {unit.spread:.3f}; {alone}"
            )
        return "\n".join([*lines, "What is merged can be undone only from the checkpoint."])
