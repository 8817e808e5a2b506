"""Compare files: a network with its plain form, and a report with an older one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

from edge_sk.export.network import UNTRAINED
from edge_sk.export.record import Accuracy, Record
from edge_sk.export.report.latencies import Setting, difference_noise_ms, latency_in, noise_ms
from edge_sk.export.report.marks import delegation_mark, parity_mark
from edge_sk.export.report.model import Report, file_title, identity

# How names with selective kernels or squeeze and excitation begin, and how their plain forms' do.
_PLAIN = {"sk_": "", "se_": "", "sknet": "resnext", "senet": "resnext"}
# The plain forms of the CIFAR networks carry their width in the name.
_CIFAR = {"sknet29": "resnext29_16x32d", "senet29": "resnext29_8x64d"}

# A share: names and versions inside a file change its size by some bytes.
SIZE_NOISE = 0.01

Verdict = Literal["worse", "not comparable", "better"]


class Difference(NamedTuple):
    """A difference of two measurements, and its uncertainty."""

    value: float
    noise: float


class Pair(NamedTuple):
    """Two files that differ only in the network; ``params``, ``macs`` and ``latency`` are growth as a share."""

    plain: Record
    changed: Record
    params: float
    macs: float
    latency: float | None
    latency_ms: Difference | None
    accuracy: Difference | None


class Change(NamedTuple):
    """A difference between two reports: its verdict, the file, and both values with the noise.

    Only ``worse`` is a regression.
    """

    verdict: Verdict
    file: str
    what: str


def plain_name(arch: str) -> str | None:
    """Return the name without selective kernels or squeeze and excitation; ``None`` if the network has neither."""
    base = arch.partition("@")[0]
    for prefix, plain in _PLAIN.items():
        if base.startswith(prefix):
            return _CIFAR.get(base, plain + base.removeprefix(prefix))
    return None


def pairs(records: Sequence[Record], setting: Setting | None) -> list[Pair]:
    """Return all pairs of records, with their latencies in a setting."""
    return [
        _pair(plain, changed, setting)
        for changed in records
        for plain in records
        if plain.arch == plain_name(changed.arch) and _kind(plain) == _kind(changed)
    ]


def _kind(record: Record) -> tuple[Any, ...]:
    return (record.format, record.backend, record.precision, record.weights == UNTRAINED, *record.input.shape)


def _pair(plain: Record, changed: Record, setting: Setting | None) -> Pair:
    before, after = latency_in(plain, setting), latency_in(changed, setting)
    share = latency_ms = None
    if before and after:
        latency_ms = Difference(after.p50_ms - before.p50_ms, difference_noise_ms(before, after))
        share = latency_ms.value / before.p50_ms
    accuracy = _accuracy_difference(plain.accuracy, changed.accuracy)
    params, macs = changed.params / plain.params - 1, changed.macs / plain.macs - 1
    return Pair(plain, changed, params, macs, share, latency_ms, accuracy)


def _accuracy_difference(old: Accuracy | None, new: Accuracy | None) -> Difference | None:
    """In percentage points, with two standard errors for the number of images; ``None`` unless on the same images."""
    if old is None or new is None or (old.data, old.images) != (new.data, new.images):
        return None
    variance = (old.top1 * (1 - old.top1) + new.top1 * (1 - new.top1)) / new.images
    return Difference(100 * (new.top1 - old.top1), 200 * math.sqrt(variance))


def compare(old: Report, new: Report) -> list[Change]:
    """Return everything that differs beyond the noise, regressions first.

    - Latency: beyond the sum of both reports' noise (:func:`edge_sk.export.report.latencies.noise_ms`), and only
      between measurements of one place, runtime and number of threads.
    - Size: beyond 1 %. Parameters and MACs: any difference, because they are counted.
    - Accuracy: beyond two standard errors, on the same images.
    - Marks of parity and delegation: a change of level.
    - Files of the older report whose export failed in the new one.
    """
    before = {identity(record): record for record in old.records}
    changes = [
        Change(verdict, file_title(record), what)
        for record in new.records
        if (past := before.get(identity(record)))
        for verdict, what in _changes(past, record)
    ]
    names = {file_title(record) for record in old.records}
    changes += [
        Change("worse", file_title(failure), f"could not be made any more: {failure.reason}")
        for failure in new.failures
        if failure.stage == "export" and file_title(failure) in names
    ]
    return sorted(changes, key=lambda change: get_args(Verdict).index(change.verdict))


def _changes(old: Record, new: Record) -> Iterator[tuple[Verdict, str]]:
    for title, unit, was, now, tolerance in (
        ("parameters", "million", old.params, new.params, 0.0),
        ("MACs", "million", old.macs, new.macs, 0.0),
        ("size", "MB", old.size_bytes, new.size_bytes, SIZE_NOISE),
    ):
        if abs(now - was) > tolerance * was:
            noise = f" (noise {tolerance * was / 1e6:.3f})" if tolerance else ""
            yield _verdict(now - was), f"{title} {was / 1e6:.3f} → {now / 1e6:.3f} {unit}{noise}"
    yield from _latency_changes(old, new)
    gain = _accuracy_difference(old.accuracy, new.accuracy)
    if old.accuracy and new.accuracy and gain and abs(gain.value) > gain.noise:
        values = f"{100 * old.accuracy.top1:.2f} → {100 * new.accuracy.top1:.2f} % (noise {gain.noise:.2f})"
        yield _verdict(-gain.value), f"accuracy {values}"
    for title, mark in (("parity", parity_mark), ("delegation", delegation_mark)):
        before, after = mark(old), mark(new)
        if before.level != after.level:
            yield _verdict(after.rank - before.rank), f"{title} {before.word} → {after.word}: {after.reason}"


def _latency_changes(old: Record, new: Record) -> Iterator[tuple[Verdict, str]]:
    known = [(past, latency) for latency in new.latency if (past := latency_in(old, Setting.of(latency)))]
    for past, latency in known:
        change, noise = latency.p50_ms - past.p50_ms, noise_ms(past) + noise_ms(latency)
        if abs(change) > noise:
            values = f"{past.p50_ms:.2f} → {latency.p50_ms:.2f} ms ({change / past.p50_ms:+.0%}, noise {noise:.2f} ms)"
            yield _verdict(change), f"latency, {Setting.of(latency).thread_text}: {values}"
    if old.latency and new.latency and not known:
        then, now = Setting.of(old.latency[0]), Setting.of(new.latency[0])
        yield "not comparable", f"latency: then on {then}, now on {now}"


def _verdict(growth_of_cost: float) -> Verdict:
    return "worse" if growth_of_cost > 0 else "better"
