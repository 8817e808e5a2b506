"""What selective kernels cost and gain against the same network without them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from edge_sk.export.network import UNTRAINED
from edge_sk.export.record import Accuracy, Record
from edge_sk.export.report.settings import Setting, difference_noise_ms, latency_in

# Prefix of a compared network, the prefix of its plain form, and what was added.
_FAMILIES = (
    ("sk_", "", "selective kernels"),
    ("se_", "", "squeeze and excitation"),
    ("sknet", "resnext", "selective kernels"),
    ("senet", "resnext", "squeeze and excitation"),
)
# The CIFAR networks' plain form carries its width in the name.
_CIFAR = {"sknet29": "resnext29_16x32d", "senet29": "resnext29_8x64d"}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much a number grew, and how far that may be off."""

    value: float
    noise: float


@dataclasses.dataclass(frozen=True)
class Pair:
    """A network with channel attention or selective kernels beside its plain form, in the same kind of file.

    Args:
        added: What the plain network lacks.
        params: Growth of the parameters, as a share.
        macs: Growth of the MACs, as a share.
        latency: Growth of the median latency, as a share.
        latency_ms: The same in milliseconds.
        accuracy: Gain in percentage points; ``None`` unless both files were tried on the same images.
    """

    added: str
    plain: Record
    changed: Record
    params: float
    macs: float
    latency: float | None
    latency_ms: Difference | None
    accuracy: Difference | None


def accuracy_difference(first: Accuracy | None, second: Accuracy | None) -> Difference | None:
    """Gain in percentage points, with two standard errors by the number of images; ``None`` for different images."""
    if not first or not second or (first.data, first.images) != (second.data, second.images):
        return None
    variance = sum(one.top1 * (1 - one.top1) for one in (first, second)) / first.images
    return Difference(100 * (second.top1 - first.top1), 200 * math.sqrt(variance))


def plain_name(arch: str) -> tuple[str, str] | None:
    """The plain form of an architecture's name and what was added to it; ``None`` for a plain one."""
    base = arch.partition("@")[0]
    for prefix, plain, added in _FAMILIES:
        if base.startswith(prefix):
            return _CIFAR.get(base, plain + base.removeprefix(prefix)), added
    return None


def pairs(records: Sequence[Record], setting: Setting | None) -> list[Pair]:
    """All pairs among records; files differ in nothing but the network."""
    return [
        _pair(known[1], plain, changed, setting)
        for changed in records
        if (known := plain_name(changed.arch))
        for plain in records
        if plain.arch == known[0] and _kind(plain) == _kind(changed)
    ]


def _pair(added: str, plain: Record, changed: Record, setting: Setting | None) -> Pair:
    before, after = latency_in(plain, setting), latency_in(changed, setting)
    growth = Difference(after.p50_ms - before.p50_ms, difference_noise_ms(before, after)) if before and after else None
    return Pair(
        added=added,
        plain=plain,
        changed=changed,
        params=changed.params / plain.params - 1,
        macs=changed.macs / plain.macs - 1,
        latency=growth.value / before.p50_ms if growth and before else None,
        latency_ms=growth,
        accuracy=accuracy_difference(plain.accuracy, changed.accuracy),
    )


def _kind(record: Record) -> tuple[object, ...]:
    trained = record.weights != UNTRAINED
    return (record.format, record.backend, record.precision, trained, *record.input.shape)
