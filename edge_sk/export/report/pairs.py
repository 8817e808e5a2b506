"""What selective kernels cost and gain against the same network without them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from edge_sk.export.record import Record
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
class Pair:
    """A network with channel attention or selective kernels beside its plain form, in the same kind of file."""

    added: str
    plain: Record
    changed: Record
    setting: Setting | None

    @property
    def params(self) -> float:
        """Growth of the parameters, as a share."""
        return self.changed.params / self.plain.params - 1

    @property
    def macs(self) -> float:
        """Growth of the MACs, as a share."""
        return self.changed.macs / self.plain.macs - 1

    @property
    def latency_ms(self) -> float | None:
        """Growth of the median latency."""
        plain, changed = self._latencies()
        return None if plain is None or changed is None else changed.p50_ms - plain.p50_ms

    @property
    def latency(self) -> float | None:
        """Growth of the median latency, as a share."""
        plain, _ = self._latencies()
        return None if self.latency_ms is None or plain is None else self.latency_ms / plain.p50_ms

    @property
    def latency_noise_ms(self) -> float | None:
        """How far :attr:`latency_ms` may be off."""
        plain, changed = self._latencies()
        return None if plain is None or changed is None else difference_noise_ms(plain, changed)

    @property
    def accuracy(self) -> float | None:
        """Gain in percentage points; ``None`` unless both files were tried on the same images."""
        plain, changed = self.plain.accuracy, self.changed.accuracy
        if plain is None or changed is None or (plain.data, plain.images) != (changed.data, changed.images):
            return None
        return 100 * (changed.top1 - plain.top1)

    @property
    def accuracy_noise(self) -> float | None:
        """Two standard errors of :attr:`accuracy` by the number of images; chance of training not included."""
        if self.accuracy is None or self.plain.accuracy is None or self.changed.accuracy is None:
            return None
        return accuracy_noise(self.plain.accuracy.top1, self.changed.accuracy.top1, self.plain.accuracy.images)

    def _latencies(self) -> tuple:
        return latency_in(self.plain, self.setting), latency_in(self.changed, self.setting)


def accuracy_noise(first: float, second: float, images: int) -> float:
    """Two standard errors of the difference of two accuracies, in percentage points."""
    return 200 * math.sqrt((first * (1 - first) + second * (1 - second)) / images)


def plain_name(arch: str) -> tuple[str, str] | None:
    """The plain form of an architecture's name and what was added to it; ``None`` for a plain one."""
    base = arch.partition("@")[0]
    for prefix, plain, added in _FAMILIES:
        if base.startswith(prefix):
            return _CIFAR.get(base, plain + base.removeprefix(prefix)), added
    return None


def pairs(records: Sequence[Record], setting: Setting | None) -> list[Pair]:
    """All pairs among records; files differ in nothing but the network."""
    found = []
    for changed in records:
        known = plain_name(changed.arch)
        if known is None:
            continue
        found += [
            Pair(known[1], plain, changed, setting)
            for plain in records
            if plain.arch == known[0] and _kind(plain) == _kind(changed)
        ]
    return found


def _kind(record: Record) -> tuple:
    trained = record.weights != "untrained"
    return (record.format, record.backend, record.precision, trained, *record.input.shape)
