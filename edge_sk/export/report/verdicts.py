"""Plain marks with their reasons: does the file compute what the network computes, does one delegate run it all."""

from __future__ import annotations

import dataclasses
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
    measured = f"{_measured(proof)}, on {proof.images} images ({proof.data}), run by: {proof.runtime}"
    short = _short_of(proof)
    if short:
        return Mark("bad", "differs", f"{'; '.join(short)}. {measured}")
    if proof.threshold_relative is None and proof.threshold_top1_agreement is None:
        return Mark(
            "partial",
            "weakly tested",
            f"untrained weights hardly tell images apart, so only {proof.threshold_sqnr_db:g} dB were demanded. "
            f"{measured}",
        )
    word = "equal" if record.precision == "fp32" else "agrees"
    return Mark("good", word, f"{measured}. Demanded: {_demanded(proof)}")


def delegation_mark(record: Record) -> Mark:
    """Whether the backend runs the whole network."""
    done = record.delegation
    if done is None:
        if record.program is not None and record.program.compute_units:
            planned = [
                f"{device}: {', '.join(f'{count} on {unit}' for unit, count in units.items())}"
                for device, units in record.program.compute_units.items()
            ]
            return Mark("good", "planned", f"Operators by the unit that Core ML plans for them. {'; '.join(planned)}")
        return Mark("unknown", "by the device", "Core ML chooses CPU, GPU or Neural Engine when it loads the file")
    floating = f" Computed in float inside the delegate: {', '.join(done.in_float)}." if done.in_float else ""
    if done.whole:
        return Mark("good", "whole", f"One delegate runs all {done.operators_delegated} operators.{floating}")
    left = "; ".join(f"{one.count}x {one.operator}: {one.why} ({one.remedy})" for one in done.left)
    count = sum(one.count for one in done.left)
    pieces = f"{done.delegates} delegate{'s' if done.delegates != 1 else ''}"
    return Mark(
        "partial" if done.delegates else "bad",
        f"{pieces}, {count} left",
        f"{pieces} with {done.operators_delegated} operators; outside: {left or 'nothing'}.{floating}",
    )


def _measured(proof: ParityEvidence) -> str:
    sqnr = "outputs not finite" if proof.sqnr_db is None else f"SQNR {proof.sqnr_db:.1f} dB"
    relative = "" if proof.relative is None else f", largest difference {proof.relative:.1e} of the largest output"
    return f"same first class on {proof.top1_agreement:.1%}, {sqnr}{relative}"


def _demanded(proof: ParityEvidence) -> str:
    demanded = [f"SQNR at least {proof.threshold_sqnr_db:g} dB"]
    if proof.threshold_top1_agreement is not None:
        demanded.append(f"the same class on {proof.threshold_top1_agreement:.0%}")
    if proof.threshold_relative is not None:
        demanded.append(f"a difference of at most {proof.threshold_relative:.0e}")
    return ", ".join(demanded)


def _short_of(proof: ParityEvidence) -> list[str]:
    if proof.sqnr_db is None or proof.relative is None:
        return ["outputs are not finite"]
    short = []
    if proof.sqnr_db < proof.threshold_sqnr_db:
        short.append(f"SQNR {proof.sqnr_db:.1f} dB is below {proof.threshold_sqnr_db:g} dB")
    if proof.threshold_relative is not None and proof.relative > proof.threshold_relative:
        short.append(f"the difference {proof.relative:.1e} is above {proof.threshold_relative:.0e}")
    if proof.threshold_top1_agreement is not None and proof.top1_agreement < proof.threshold_top1_agreement:
        short.append(f"the same class on {proof.top1_agreement:.1%} is below {proof.threshold_top1_agreement:.0%}")
    return short
