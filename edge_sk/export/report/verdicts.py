"""Plain marks with their reasons: does the file compute what the network computes, does one delegate run it all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from edge_sk.export.record import ParityEvidence, Record

Level = Literal["good", "partial", "bad", "unknown"]


@dataclasses.dataclass(frozen=True)
class Mark:
    """A mark that does not rely on colour, a word for it, and why."""

    level: Level
    word: str
    reason: str

    @property
    def symbol(self) -> str:
        """One character."""
        return {"good": "✓", "partial": "~", "bad": "✗", "unknown": "?"}[self.level]

    def __str__(self) -> str:
        """Symbol and word."""
        return f"{self.symbol} {self.word}"


def parity_mark(record: Record) -> Mark:
    """Whether the file's outputs are the network's."""
    proof = record.parity
    if proof is None:
        return Mark("unknown", "not verified", "; ".join(record.notes) or "the record holds no comparison")
    sqnr = "outputs not finite" if proof.sqnr_db is None else f"SQNR {proof.sqnr_db:.1f} dB"
    relative = "" if proof.relative is None else f", largest difference {proof.relative:.1e} of the largest output"
    measured = (
        f"same first class on {proof.top1_agreement:.1%}, {sqnr}{relative}, on {proof.images} images ({proof.data}), "
        f"run by: {proof.runtime}"
    )
    demands = list(_demands(proof))
    missed = [how for _, how in demands if how]
    if proof.sqnr_db is None or proof.relative is None:
        missed = ["outputs are not finite"]
    if missed:
        return Mark("bad", "differs", f"{'; '.join(missed)}. {measured}")
    if proof.threshold_relative is None and proof.threshold_top1_agreement is None:
        why = f"untrained weights hardly tell images apart, so only {proof.threshold_sqnr_db:g} dB were demanded"
        return Mark("partial", "weakly tested", f"{why}. {measured}")
    demanded = ", ".join(demand for demand, _ in demands)
    return Mark("good", "equal" if record.precision == "fp32" else "agrees", f"{measured}. Demanded: {demanded}")


def _demands(proof: ParityEvidence) -> Iterator[tuple[str, str | None]]:
    """What was demanded of the file, and how it fell short, if it did."""
    least, agreement, most = proof.threshold_sqnr_db, proof.threshold_top1_agreement, proof.threshold_relative
    sqnr, relative = proof.sqnr_db, proof.relative
    missed = sqnr is not None and sqnr < least
    yield f"SQNR at least {least:g} dB", f"SQNR {sqnr:.1f} dB is below {least:g} dB" if missed else None
    if agreement is not None:
        missed = proof.top1_agreement < agreement
        short = f"the same class on {proof.top1_agreement:.1%} is below {agreement:.0%}"
        yield f"the same class on {agreement:.0%}", short if missed else None
    if most is not None:
        missed = relative is not None and relative > most
        yield (
            f"a difference of at most {most:.0e}",
            f"the difference {relative:.1e} is above {most:.0e}" if missed else None,
        )


def delegation_mark(record: Record) -> Mark:
    """Whether the backend runs the whole network."""
    done = record.delegation
    if done is None:
        if record.program is not None and record.program.compute_units:
            planned = "; ".join(
                f"{device}: {', '.join(f'{count} on {unit}' for unit, count in units.items())}"
                for device, units in record.program.compute_units.items()
            )
            return Mark("good", "planned", f"Operators by the unit that Core ML plans for them. {planned}")
        return Mark("unknown", "by the device", "Core ML chooses CPU, GPU or Neural Engine when it loads the file")
    floating = f" Computed in float inside the delegate: {', '.join(done.in_float)}." if done.in_float else ""
    if done.whole:
        return Mark("good", "whole", f"One delegate runs all {done.operators_delegated} operators.{floating}")
    outside = "; ".join(f"{one.count}x {one.operator}: {one.why} ({one.remedy})" for one in done.left) or "nothing"
    pieces = f"{done.delegates} delegate{'s' if done.delegates != 1 else ''}"
    return Mark(
        "partial" if done.delegates else "bad",
        f"{pieces}, {sum(one.count for one in done.left)} left",
        f"{pieces} with {done.operators_delegated} operators; outside: {outside}.{floating}",
    )
