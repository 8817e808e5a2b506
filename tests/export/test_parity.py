"""The measure that exports are held to: it sees what it must see."""

from __future__ import annotations

import math

import pytest
import torch

from edge_sk.errors import InputError
from edge_sk.export import parity


def _logits(images: int = 64) -> torch.Tensor:
    return torch.randn(images, 10, generator=torch.Generator().manual_seed(0))


def test_equal() -> None:
    same = parity.measure(_logits(), _logits())
    assert same == parity.Parity(0.0, 0.0, parity.EXACT_DB, 1.0, 64)
    for form, precision in parity.THRESHOLDS:
        same.check(parity.threshold(form, precision))


def test_known_noise() -> None:
    reference = torch.zeros(64, 2)
    reference[::2, 0] = reference[1::2, 1] = 2.0  # varies by 1 around its mean
    candidate = reference + 0.1
    measured = parity.measure(reference, candidate)
    assert measured.sqnr_db == pytest.approx(20.0)
    assert measured.max_abs == pytest.approx(0.1)
    assert measured.relative == pytest.approx(0.05)
    assert measured.top1_agreement == 1.0


def test_a_constant_output_is_no_signal() -> None:
    """A file that always answers with the classifier's bias: close in absolute terms, and worthless."""
    reference = 100 + 0.01 * _logits()
    measured = parity.measure(reference, reference.mean(0).expand_as(reference))
    assert measured.relative < 1e-3
    assert measured.sqnr_db == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(InputError, match="SQNR"):
        measured.check(parity.threshold("pte", "fp32"))


def test_top1() -> None:
    candidate = _logits()
    candidate[:16] = candidate[:16].roll(1, dims=1)
    measured = parity.measure(_logits(), candidate)
    assert measured.top1_agreement == 0.75
    with pytest.raises(InputError, match=r"top-1 agreement 75.0% is below 100.0%"):
        measured.check(parity.threshold("pte", "fp32"))


def test_every_shortfall_is_named() -> None:
    with pytest.raises(InputError, match=r"file.pte .* relative difference .* SQNR .* top-1"):
        parity.measure(_logits(), -_logits()).check(parity.threshold("pte", "fp32"), what="file.pte")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite_is_never_good(value: float) -> None:
    candidate = _logits()
    candidate[3, 3] = value
    for key in parity.THRESHOLDS:
        with pytest.raises(InputError, match="does not compute"):
            parity.measure(_logits(), candidate).check(parity.threshold(*key))
    with pytest.raises(InputError, match="does not compute"):
        parity.measure(_logits(), candidate).check(parity.threshold("pte", "int8", trained=False))


def test_too_few_images() -> None:
    with pytest.raises(InputError, match="32 images; at least 64"):
        parity.measure(_logits(32), _logits(32)).check(parity.threshold("pte", "fp32"))


@pytest.mark.parametrize("shape", [(64, 9), (63, 10), (640,)])
def test_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="one shape"):
        parity.measure(_logits(), torch.zeros(shape))


def test_unknown_precision() -> None:
    with pytest.raises(InputError, match=r"no parity threshold for pte int4; known: pte fp32"):
        parity.threshold("pte", "int4")
