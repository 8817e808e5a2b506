"""A report against an older one: what got worse beyond the noise, what got better, what cannot be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from edge_sk.export.record import Record
from edge_sk.export.report.model import Report, file_name, identity
from edge_sk.export.report.pairs import accuracy_noise
from edge_sk.export.report.settings import Setting, latency_in, noise_ms
from edge_sk.export.report.verdicts import delegation_mark, parity_mark

Verdict = Literal["worse", "better", "not comparable"]

# Names and versions inside a file change its size by some bytes.
SIZE_NOISE = 0.01

_ORDER = {"good": 0, "partial": 1, "unknown": 2, "bad": 3}


@dataclasses.dataclass(frozen=True)
class Change:
    """One difference between the reports.

    Args:
        verdict: Only ``worse`` is a regression.
        file: Which file, in words.
        what: What changed, with both values and the noise.
    """

    verdict: Verdict
    file: str
    what: str


def compare(old: Report, new: Report) -> list[Change]:
    """Everything that differs beyond the noise, regressions first.

    - Latency: beyond the sum of both reports' noise, see :func:`~edge_sk.export.report.settings.noise_ms`, and only
      between measurements of one place, runtime and number of threads.
    - Size: beyond 1 %. Parameters and MACs: at all, they are counted.
    - Accuracy: beyond two standard errors, on the same images.
    - Marks: parity or delegation that fell a level.
    - A file that was there, is wanted, and could not be made.
    """
    before = {identity(record): record for record in old.records}
    changes: list[Change] = []
    for record in new.records:
        if (past := before.get(identity(record))) is not None:
            changes += _changes(past, record)
    names = {file_name(record) for record in old.records}
    for failure in new.failures:
        if failure.stage == "export" and file_name(failure) in names:
            changes.append(Change("worse", file_name(failure), f"could not be made any more: {failure.reason}"))
    order = ("worse", "not comparable", "better")
    return sorted(changes, key=lambda change: order.index(change.verdict))


def _changes(old: Record, new: Record) -> Iterator[Change]:
    name = file_name(new)

    def change(worse: bool, what: str) -> Change:
        return Change("worse" if worse else "better", name, what)

    for title, unit, was, now, noise in (
        ("parameters", "million", old.params / 1e6, new.params / 1e6, 0.0),
        ("MACs", "million", old.macs / 1e6, new.macs / 1e6, 0.0),
        ("size", "MB", old.size_bytes / 1e6, new.size_bytes / 1e6, SIZE_NOISE * old.size_bytes / 1e6),
    ):
        if abs(now - was) > noise:
            allowed = f" (noise {noise:.3f})" if noise else ""
            yield change(now > was, f"{title} {was:.3f} → {now:.3f} {unit}{allowed}")
    yield from _latency_changes(name, old, new)
    if (
        old.accuracy
        and new.accuracy
        and (old.accuracy.data, old.accuracy.images)
        == (
            new.accuracy.data,
            new.accuracy.images,
        )
    ):
        was, now = 100 * old.accuracy.top1, 100 * new.accuracy.top1
        noise = accuracy_noise(old.accuracy.top1, new.accuracy.top1, new.accuracy.images)
        if abs(now - was) > noise:
            yield change(now < was, f"accuracy {was:.2f} → {now:.2f} % (noise {noise:.2f})")
    for title, was, now in (
        ("parity", parity_mark(old), parity_mark(new)),
        ("delegation", delegation_mark(old), delegation_mark(new)),
    ):
        if _ORDER[was.level] != _ORDER[now.level]:
            yield change(_ORDER[now.level] > _ORDER[was.level], f"{title} {was.word} → {now.word}: {now.reason}")


def _latency_changes(name: str, old: Record, new: Record) -> Iterator[Change]:
    compared = False
    for one in new.latency:
        setting = Setting.of(one)
        past = latency_in(old, setting)
        if past is None:
            continue
        compared = True
        noise = noise_ms(past) + noise_ms(one)
        if abs(one.p50_ms - past.p50_ms) > noise:
            yield Change(
                "worse" if one.p50_ms > past.p50_ms else "better",
                name,
                f"latency, {setting.thread_text}: {past.p50_ms:.2f} → {one.p50_ms:.2f} ms "
                f"({one.p50_ms / past.p50_ms - 1:+.0%}, noise {noise:.2f} ms)",
            )
    if old.latency and new.latency and not compared:
        yield Change(
            "not comparable",
            name,
            f"latency: then on {Setting.of(old.latency[0])}, now on {Setting.of(new.latency[0])}",
        )
