"""A report against an older one: what got worse beyond the noise, what got better, what cannot be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from edge_sk.export.record import Record
from edge_sk.export.report.model import Report, file_name, identity
from edge_sk.export.report.pairs import accuracy_difference
from edge_sk.export.report.settings import Setting, latency_in, noise_ms
from edge_sk.export.report.verdicts import delegation_mark, parity_mark

Verdict = Literal["worse", "not comparable", "better"]

# Names and versions inside a file change its size by some bytes.
SIZE_NOISE = 0.01

_VERDICTS = ("worse", "not comparable", "better")
_LEVELS = ("good", "partial", "unknown", "bad")


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
    changes = [
        Change(verdict, file_name(record), what)
        for record in new.records
        if (past := before.get(identity(record)))
        for verdict, what in _changes(past, record)
    ]
    names = {file_name(record) for record in old.records}
    changes += [
        Change("worse", file_name(failure), f"could not be made any more: {failure.reason}")
        for failure in new.failures
        if failure.stage == "export" and file_name(failure) in names
    ]
    return sorted(changes, key=lambda change: _VERDICTS.index(change.verdict))


def _changes(old: Record, new: Record) -> Iterator[tuple[Verdict, str]]:
    for title, unit, was, now, noise in (
        ("parameters", "million", old.params, new.params, 0.0),
        ("MACs", "million", old.macs, new.macs, 0.0),
        ("size", "MB", old.size_bytes, new.size_bytes, SIZE_NOISE * old.size_bytes),
    ):
        if abs(now - was) > noise:
            allowed = f" (noise {noise / 1e6:.3f})" if noise else ""
            yield _verdict(now > was), f"{title} {was / 1e6:.3f} → {now / 1e6:.3f} {unit}{allowed}"
    yield from _latency_changes(old, new)
    gain = accuracy_difference(old.accuracy, new.accuracy)
    if old.accuracy and new.accuracy and gain and abs(gain.value) > gain.noise:
        was, now = 100 * old.accuracy.top1, 100 * new.accuracy.top1
        yield _verdict(now < was), f"accuracy {was:.2f} → {now:.2f} % (noise {gain.noise:.2f})"
    for title, mark in (("parity", parity_mark), ("delegation", delegation_mark)):
        was, now = mark(old), mark(new)
        if was.level != now.level:
            fell = _LEVELS.index(now.level) > _LEVELS.index(was.level)
            yield _verdict(fell), f"{title} {was.word} → {now.word}: {now.reason}"


def _latency_changes(old: Record, new: Record) -> Iterator[tuple[Verdict, str]]:
    shared = [(past, one) for one in new.latency if (past := latency_in(old, Setting.of(one)))]
    for past, one in shared:
        noise = noise_ms(past) + noise_ms(one)
        if abs(one.p50_ms - past.p50_ms) > noise:
            yield (
                _verdict(one.p50_ms > past.p50_ms),
                f"latency, {Setting.of(one).thread_text}: {past.p50_ms:.2f} → {one.p50_ms:.2f} ms "
                f"({one.p50_ms / past.p50_ms - 1:+.0%}, noise {noise:.2f} ms)",
            )
    if old.latency and new.latency and not shared:
        then, now = Setting.of(old.latency[0]), Setting.of(new.latency[0])
        yield "not comparable", f"latency: then on {then}, now on {now}"


def _verdict(worse: bool) -> Verdict:
    return "worse" if worse else "better"
