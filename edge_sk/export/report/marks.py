"""Marks of a file with their reasons: are its outputs the network's, does its backend run the whole network."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from edge_sk.export.parity import Threshold
from edge_sk.export.record import Record

Level = Literal["good", "partial", "unknown", "bad"]
# From best to worst.
SYMBOLS: dict[Level, str] = {"good": "✓", "partial": "~", "unknown": "?", "bad": "✗"}


class Mark(NamedTuple):
    """A level, a word for it, and the reason."""

    level: Level
    word: str
    reason: str

    @property
    def symbol(self) -> str:
        """One character, so that a mark does not rely on its colour."""
        return SYMBOLS[self.level]

    @property
    def rank(self) -> int:
        """0 is the best level."""
        return list(SYMBOLS).index(self.level)

    def __str__(self) -> str:
        """Symbol and word."""
        return f"{self.symbol} {self.word}"


def parity_mark(record: Record) -> Mark:
    """Say whether the file's outputs are the network's."""
    proof = record.parity
    if proof is None:
        return Mark("unknown", "not verified", "; ".join(record.notes) or "the record holds no comparison")
    sqnr = "outputs not finite" if proof.sqnr_db is None else f"SQNR {proof.sqnr_db:.1f} dB"
    relative = "" if proof.relative is None else f", largest difference {proof.relative:.1e} of the largest output"
    same = "" if proof.top1_agreement is None else f"same first class on {proof.top1_agreement:.1%}, "
    measured = f"{same}{sqnr}{relative}, on {proof.images} images ({proof.data}), run by: {proof.runtime}"
    if record.maps:
        measured += f"; the worst of the outputs {record.maps}"
    limits = Threshold(**{f.name: getattr(proof, f"threshold_{f.name}") for f in dataclasses.fields(Threshold)})
    if missed := limits.shortfalls(proof):
        return Mark("bad", "differs", f"{'; '.join(missed)}. {measured}")
    if proof.threshold_relative is proof.threshold_top1_agreement is proof.threshold_accuracy_loss is None:
        least = f"only {proof.threshold_sqnr_db:g} dB were required"
        return Mark("partial", "weakly tested", f"untrained weights barely react to the image, so {least}. {measured}")
    required = f"{measured}. Required: {', '.join(limits.demands())}"
    if proof.accepted:
        return Mark("partial", "accepted", f"{required} (by --accept {' '.join(proof.accepted)})")
    return Mark("good", "equal" if record.precision == "fp32" else "agrees", required)


def delegation_mark(record: Record) -> Mark:
    """Say whether the backend runs the whole network."""
    found = record.delegation
    if found is None:
        units = record.program and record.program.compute_units
        if not units:
            return Mark("unknown", "by the device", "Core ML chooses CPU, GPU or Neural Engine when it loads the file")
        planned = [
            f"{device}: {', '.join(f'{count} on {unit}' for unit, count in counts.items())}"
            for device, counts in units.items()
        ]
        return Mark("good", "planned", f"Operators by the unit that Core ML plans for them. {'; '.join(planned)}")
    floating = f" Computed in float inside the delegate: {', '.join(found.in_float)}." if found.in_float else ""
    if found.whole:
        return Mark("good", "whole", f"One delegate runs all {found.operators_delegated} operators.{floating}")
    outside = "; ".join(f"{left.count}x {left.operator}: {left.why} ({left.remedy})" for left in found.left)
    pieces = f"{found.delegates} delegate{'s' if found.delegates != 1 else ''}"
    return Mark(
        "partial" if found.delegates else "bad",
        f"{pieces}, {sum(left.count for left in found.left)} left",
        f"{pieces} with {found.operators_delegated} operators; outside: {outside or 'nothing'}.{floating}",
    )
