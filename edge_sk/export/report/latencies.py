"""Latencies: which of them are comparable, their noise, and the Pareto front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edge_sk.export.record import Latency, Record

# The least noise, as a share of p50: the rounds of one afternoon can agree by chance.
FLOOR = 0.03


class Setting(NamedTuple):
    """Where and how a latency was measured. Only latencies of one setting are comparable."""

    where: str
    runtime: str
    threads: int

    @classmethod
    def of(cls, latency: Latency) -> Setting:
        """The setting of a measurement."""
        return cls(latency.where, latency.runtime, latency.threads)

    @property
    def is_host(self) -> bool:
        """Whether this is a computer, not a phone."""
        return self.where.startswith("host latency")

    @property
    def thread_text(self) -> str:
        """``1 thread``."""
        plural = "s" if self.threads > 1 else ""
        return f"{self.threads} thread{plural}" if self.threads else "threads chosen by the system"

    def __str__(self) -> str:
        """Place, runtime and threads."""
        return f"{self.where}; {self.runtime}; {self.thread_text}"


def settings(records: Sequence[Record]) -> list[Setting]:
    """Return all settings: first those with most measurements, then those with fewest threads."""
    counts = Counter(Setting.of(latency) for record in records for latency in record.latency)
    return sorted(counts, key=lambda setting: (-counts[setting], setting.threads, setting))


def latency_in(record: Record, setting: Setting | None) -> Latency | None:
    """Return the record's measurement in a setting."""
    return next((latency for latency in record.latency if Setting.of(latency) == setting), None)


def noise_ms(latency: Latency) -> float:
    """Return the uncertainty of the median: the range of the rounds' medians, at least 3 % of the median.

    Without rounds, it is the distance from the median to the 90th percentile.
    """
    rounds = latency.round_p50_ms
    spread = max(rounds) - min(rounds) if len(rounds) > 1 else latency.p90_ms - latency.p50_ms
    return max(spread, FLOOR * latency.p50_ms)


def difference_noise_ms(first: Latency, second: Latency) -> float:
    """Return the uncertainty of the difference of two medians: the sum of their noises, or less if they took turns.

    A change of the machine's speed affects both files that took turns in the same rounds. Their noise is the range of
    the difference over the rounds, at least 3 % of the larger median.
    """
    together = (Setting.of(first), first.date) == (Setting.of(second), second.date)
    if not together or not len(first.round_p50_ms) == len(second.round_p50_ms) > 1:
        return noise_ms(first) + noise_ms(second)
    differences = [a - b for a, b in zip(first.round_p50_ms, second.round_p50_ms, strict=True)]
    return max(max(differences) - min(differences), FLOOR * max(first.p50_ms, second.p50_ms))


class Metric(NamedTuple):
    """A quantity to plot latency against."""

    key: str
    title: str
    more_is_better: bool
    value: Callable[[Record], float | None]


METRICS = (
    Metric("accuracy", "top-1 accuracy, %", True, lambda r: 100 * r.accuracy.top1 if r.accuracy else None),
    Metric("macs", "MACs, millions", False, lambda r: r.macs / 1e6),
    Metric("size", "file size, MB", False, lambda r: r.size_bytes / 1e6),
    Metric("params", "parameters, millions", False, lambda r: r.params / 1e6),
)


def default_metric(records: Sequence[Record], setting: Setting | None) -> Metric:
    """Return accuracy if two files have it in this setting, otherwise MACs."""
    known = [record for record in records if record.accuracy and latency_in(record, setting)]
    return METRICS[0] if len(known) > 1 else METRICS[1]


def front(records: Sequence[Record], setting: Setting | None, metric: Metric) -> list[int]:
    """Return the indices of the files on the Pareto front, the fastest first.

    A file is not on the front if another is at least as good in latency and metric and better in one. Files without
    latency or metric are ignored.
    """
    costs: dict[int, tuple[float, float]] = {}
    for index, record in enumerate(records):
        latency, value = latency_in(record, setting), metric.value(record)
        if latency is not None and value is not None:
            costs[index] = (latency.p50_ms, -value if metric.more_is_better else value)
    best = [
        index
        for index, (x, y) in costs.items()
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in costs.values())
    ]
    return sorted(best, key=costs.__getitem__)
