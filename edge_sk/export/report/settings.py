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
        return f"{self.threads} thread{'s' * (self.threads != 1)}" if self.threads else "threads chosen by the system"

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


def difference_noise_ms(first: Latency, second: Latency) -> float:
    """How far the difference of two medians may be off.

    Files that took turns in the same rounds met the same changes of the machine's speed. For them it is the spread
    between rounds of the difference, at least 3 % of the larger median; for others the sum of both noises.
    """
    together = (Setting.of(first), first.date) == (Setting.of(second), second.date)
    if not together or not len(first.round_p50_ms) == len(second.round_p50_ms) > 1:
        return noise_ms(first) + noise_ms(second)
    differences = [a - b for a, b in zip(first.round_p50_ms, second.round_p50_ms, strict=True)]
    return max(max(differences) - min(differences), FLOOR * max(first.p50_ms, second.p50_ms))
