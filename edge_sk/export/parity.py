"""Parity: how far a file's outputs are from the network's, and the frozen thresholds."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edge_sk.errors import InputError, shown

MIN_IMAGES = 64


@dataclasses.dataclass(frozen=True)
class Threshold:
    """What an exported file must reach; a field of ``None`` is recorded but not demanded.

    Args:
        relative: Largest difference, as a share of the largest reference value.
        sqnr_db: Smallest signal to noise, see :class:`Parity`.
        top1_agreement: Smallest share of images with the same first class.
        accuracy_loss: Largest loss of accuracy, as a share of the images.
    """

    relative: float | None
    sqnr_db: float
    top1_agreement: float | None
    accuracy_loss: float | None = None

    def demands(self) -> list[str]:
        """What is demanded, for readers."""
        return [
            f"{words} {'at least' if name in AT_LEAST else 'at most'} {form.format(limit)}"
            for name, (words, form) in WORDS.items()
            if (limit := getattr(self, name)) is not None
        ]

    def shortfalls(self, measured: Any) -> list[str]:
        """What falls short in a :class:`Parity`, or in a record's evidence, where ``None`` says "not finite"."""
        short = []
        for name, (words, form) in WORDS.items():
            limit, value = getattr(self, name), getattr(measured, name)
            if limit is None or (name == "top1_agreement" and value is None):
                continue
            value = math.nan if value is None else value
            if not (value >= limit if name in AT_LEAST else value <= limit):  # a NaN is never good
                side = "below" if name in AT_LEAST else "above"
                short.append(f"{words} {form.format(value)} is {side} {form.format(limit)}")
        return short


AT_LEAST = ("sqnr_db", "top1_agreement")
AT_MOST = ("relative", "accuracy_loss")
# Of each measure: its name for readers, and how to write it.
WORDS = {
    "relative": ("relative difference", "{:.1e}"),
    "sqnr_db": ("SQNR", "{:.1f} dB"),
    "top1_agreement": ("top-1 agreement", "{:.1%}"),
    "accuracy_loss": ("accuracy loss", "{:.1%}"),
}

THRESHOLDS: dict[tuple[str, str], Threshold] = {
    ("pte", "fp32"): Threshold(relative=1e-4, sqnr_db=80.0, top1_agreement=1.0),
    # Holds for sums in fp16 (x86-64 with AVX512-FP16, newer Arm: 41.7 dB and 1.2 % at worst) and in fp32 (49.8 dB),
    # with 11 dB to spare. Trained networks with one convolution set to zero stay below 27 dB (deploy/results/NOTES.md:
    # only x86-64's 44.3 dB and 0.8 % have a record, the rest was measured once).
    ("pte", "fp16"): Threshold(relative=3e-2, sqnr_db=30.0, top1_agreement=0.98),
    ("pte", "int8"): Threshold(relative=None, sqnr_db=6.0, top1_agreement=None, accuracy_loss=0.02),
    ("mlpackage", "fp32"): Threshold(relative=1e-4, sqnr_db=80.0, top1_agreement=1.0),
    ("mlpackage", "fp16"): Threshold(relative=1e-2, sqnr_db=35.0, top1_agreement=0.98),
    ("mlpackage", "int8"): Threshold(relative=None, sqnr_db=10.0, top1_agreement=None, accuracy_loss=0.02),
    ("mlpackage", "palette6"): Threshold(relative=None, sqnr_db=8.0, top1_agreement=None, accuracy_loss=0.02),
}
"""Per (format, precision), frozen from a first measurement: a change needs a reason in its commit.

With weights of few bits, a network of many classes changes its mind between two that it finds equally likely: what is
demanded there is its accuracy.
"""


def accepting(demanded: Threshold, accepted: Sequence[str]) -> Threshold:
    """A threshold with some of its demands replaced, each as ``"top1_agreement>=0.9"`` or ``"accuracy_loss<=0.05"``.

    An agreement stands in for the loss of accuracy.

    Raises:
        InputError: Another measure or sign, or no number.
    """
    given: dict[str, float | None] = {}
    for text in accepted:
        name, sign, number = re.fullmatch(r"\s*(\w*)\s*([<>]?=?)\s*(.*)", text).groups()  # type: ignore[union-attr]
        known = [f"{name}>=VALUE" for name in AT_LEAST] + [f"{name}<=VALUE" for name in AT_MOST]
        if f"{name}{sign}VALUE" not in known or not re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", number):
            raise InputError(f"--accept {shown(text)} is none of {', '.join(known)}, with a number for VALUE")
        given[name] = float(number)
    if "top1_agreement" in given:
        given.setdefault("accuracy_loss", None)
    return dataclasses.replace(demanded, **given)  # type: ignore[arg-type]


SANITY = Threshold(relative=None, sqnr_db=0.0, top1_agreement=None)
UNTRAINED: dict[tuple[str, str], Threshold] = {
    # With sums in fp16 the worst of six networks of from_arch is at 24.8 dB; damaged ones are mostly below 15 (measured
    # once, without a record: deploy/results/NOTES.md).
    ("pte", "fp16"): Threshold(relative=None, sqnr_db=15.0, top1_agreement=None),
    ("pte", "int8"): SANITY,
    # Of all networks the lowest is at 32.6 dB, the largest difference 1.2 %: EfficientNet-B0 with selective kernels,
    # whose package in fp32 is at 107 dB and 4e-6, so that all of it is rounding (deploy/results/coreml.md).
    ("mlpackage", "fp16"): Threshold(relative=2e-2, sqnr_db=30.0, top1_agreement=0.98),
    ("mlpackage", "int8"): SANITY,
    ("mlpackage", "palette6"): SANITY,
}
"""For random weights, which hardly tell images apart, so that rounding is nearly as large as the signal."""


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far an exported file's outputs are from the eager model's.

    Args:
        max_abs: Largest absolute difference.
        relative: ``max_abs`` over the largest absolute reference value.
        sqnr_db: Signal to quantization noise in decibels. The signal is what varies from image to image: a
            constant output (the classifier's bias) proves nothing about the network before it.
        top1_agreement: Share of images, or of their pixels, whose first class is the same; ``None`` where the output
            chooses no class.
        images: Images compared.
        accuracy_loss: By how much the share of right first classes is lower. Without labels, what it is expected to
            be: each image counts by how much likelier the network finds its own first class than the file's.
    """

    max_abs: float
    relative: float
    sqnr_db: float
    top1_agreement: float | None
    images: int
    accuracy_loss: float = 0.0

    def check(self, threshold: Threshold, *, what: str = "the exported file") -> None:
        """Compare the measurement with a threshold.

        Raises:
            InputError: Too few images, or below the threshold; the message names each number that fell short.
        """
        if self.images < MIN_IMAGES:
            raise InputError(f"parity of {what} was measured on {self.images} images; at least {MIN_IMAGES} are needed")
        if short := threshold.shortfalls(self):
            raise InputError(
                f"{what} does not compute what the model computes on {self.images} images: {'; '.join(short)}"
            )


class Comparison:
    """Measures, batch by batch, how far one output of a file is from the network's.

    Args:
        decides: Whether the second axis has classes, of which the largest is chosen.
        probabilities: Whether the values are probabilities; else they are logits.
    """

    def __init__(self, *, decides: bool = True, probabilities: bool = False) -> None:
        self.decides, self.probabilities = decides, probabilities
        self.images = self.places = 0
        self.max_abs = self.largest = self.noise = self.squares = self.agreed = self.lost = 0.0
        self.right = self.eager_right = 0
        self.first: Tensor | None = None
        self.total: Any = 0.0

    def add(self, reference: Tensor, candidate: Tensor, classes: Tensor | None = None) -> None:
        """Compare a batch: the network's output, the file's of the same shape, and the right classes, if known.

        Raises:
            InputError: The shapes differ, or are not ``(N, ...)``.
        """
        if reference.shape != candidate.shape or reference.ndim < 2 or not len(reference):
            raise InputError(
                f"parity needs two (images, classes) tensors of one shape, got {tuple(reference.shape)} and "
                f"{tuple(candidate.shape)}"
            )
        expected, got = reference.detach().double().cpu(), candidate.detach().double().cpu()
        difference = (got - expected).abs()
        self.max_abs = _most([self.max_abs, difference.max().item()])
        self.largest = _most([self.largest, expected.abs().max().item()])
        self.noise += difference.square().sum().item()
        # What varies from image to image, in one pass: relative to the first image, which keeps the sums exact.
        self.first = expected[0] if self.first is None else self.first
        varying = expected - self.first
        self.total = self.total + varying.sum(0)
        self.squares += varying.square().sum().item()
        self.images += len(expected)
        if self.decides:
            ours, theirs = expected.argmax(1, keepdim=True), got.argmax(1, keepdim=True)
            self.agreed += (ours == theirs).sum().item()
            self.places += ours.numel()
            if classes is not None:
                self.right += int((theirs.flatten() == classes).sum())
                self.eager_right += int((ours.flatten() == classes).sum())
                self.lost = self.eager_right - self.right
            else:
                worth = expected if self.probabilities else expected.softmax(1)
                self.lost += (worth.gather(1, ours) - worth.gather(1, theirs)).sum().item()

    def result(self) -> Parity:
        """What was measured so far."""
        signal = max(0.0, self.squares - self.total.square().sum().item() / self.images)
        return Parity(
            max_abs=self.max_abs,
            relative=self.max_abs / self.largest if self.largest else math.inf if self.max_abs else 0.0,
            sqnr_db=_decibels(signal, self.noise),
            top1_agreement=self.agreed / self.places if self.decides else None,
            images=self.images,
            accuracy_loss=self.lost / self.places if self.decides else 0.0,
        )


def measure(reference: Tensor, candidate: Tensor, classes: Tensor | None = None, **about: bool) -> Parity:
    """Compare outputs for all images at once; arguments, and errors, as in :class:`Comparison`."""
    comparison = Comparison(**about)
    comparison.add(reference, candidate, classes)
    return comparison.result()


def worst(measured: Sequence[Parity]) -> Parity:
    """The worst of every measure over the outputs of a file."""
    agreements = [one.top1_agreement for one in measured if one.top1_agreement is not None]
    return Parity(
        max_abs=_most([one.max_abs for one in measured]),
        relative=_most([one.relative for one in measured]),
        sqnr_db=-_most([-one.sqnr_db for one in measured]),
        top1_agreement=min(agreements, default=None),
        images=measured[0].images,
        accuracy_loss=max(one.accuracy_loss for one in measured),
    )


def _most(values: Sequence[float]) -> float:
    """The largest; NaN if one is."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def check_count(images: int | None) -> None:
    """Refuse a number of images that is too small for a proof, before minutes of work; ``None`` is the default.

    Raises:
        InputError: Fewer than :data:`MIN_IMAGES`.
    """
    if images is not None and images < MIN_IMAGES:
        raise InputError(f"parity on {images} images; at least {MIN_IMAGES} are needed")


def threshold(file_format: str, precision: str, *, trained: bool = True) -> Threshold:
    """The frozen threshold of a format and precision.

    Args:
        file_format: ``pte`` or ``mlpackage``.
        precision: ``fp32``, ``fp16``, ``int8`` or ``palette6``.
        trained: Files of random weights are held to what :data:`UNTRAINED` says, where it says something.
    """
    try:
        demanded = THRESHOLDS[file_format, precision]
        return demanded if trained else UNTRAINED.get((file_format, precision), demanded)
    except KeyError:
        known = ", ".join(f"{a} {b}" for a, b in THRESHOLDS)
        raise InputError(f"no parity threshold for {file_format} {precision}; known: {known}") from None


def _decibels(signal: float, noise: float) -> float:
    if not math.isfinite(signal) or not math.isfinite(noise):
        return math.nan
    if noise == 0.0:
        return EXACT_DB
    return min(EXACT_DB, 10 * math.log10(signal / noise)) if signal else -EXACT_DB


EXACT_DB = 300.0
"""Stands for "no difference at all": JSON has no infinity, and float32 ends near 150 dB."""
