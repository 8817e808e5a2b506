"""Where and how latency was measured: only numbers of one setting may be compared."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from edge_sk.export.record import Latency, Record

# Of p50: differences below are not told apart even where the rounds agree by chance.
FLOOR = 0.03


@dataclasses.dataclass(frozen=True)
class Setting:
    """A place, a runtime and a number of threads."""

    where: str
    runtime: str
    threads: int

    @classmethod
    def of(cls, one: Latency) -> Setting:
        """The setting of a measurement."""
        return cls(one.where, one.runtime, one.threads)

    @property
    def is_host(self) -> bool:
        """Whether this is a computer that stands for no phone."""
        return self.where.startswith("host latency")

    @property
    def thread_text(self) -> str:
        """``1 thread``."""
        return "threads chosen by the system" if not self.threads else _plural(self.threads, "thread")

    def __str__(self) -> str:
        """Place, runtime and threads."""
        return f"{self.where}; {self.runtime}; {self.thread_text}"


def settings(records: Sequence[Record]) -> list[Setting]:
    """All settings; first the one that most files were measured in, then fewest threads."""
    counts = Counter(Setting.of(one) for record in records for one in record.latency)
    return sorted(counts, key=lambda one: (-counts[one], one.threads, one.where, one.runtime))


def latency_in(record: Record, setting: Setting | None) -> Latency | None:
    """The record's measurement in a setting."""
    return next((one for one in record.latency if Setting.of(one) == setting), None)


def noise_ms(one: Latency) -> float:
    """How far the median may be off: the spread between rounds, or where that is unknown from median to p90.

    Never below 3 % of the median: rounds of one afternoon can agree by chance.
    """
    rounds = one.round_p50_ms
    spread = max(rounds) - min(rounds) if len(rounds) > 1 else one.p90_ms - one.p50_ms
    return max(spread, FLOOR * one.p50_ms)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"
