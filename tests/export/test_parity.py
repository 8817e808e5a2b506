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


def test_a_change_of_mind_counts_as_much_as_the_network_was_sure() -> None:
    """Where labels are not known, by its own probabilities; where they are, by right answers alone."""
    likely = torch.tensor([[0.5, 0.4, 0.1], [0.9, 0.05, 0.05], [0.2, 0.3, 0.5], [0.3, 0.3, 0.4]]).repeat(16, 1)
    changed = likely.clone()
    changed[0::4] = changed[0::4].flip(1) + torch.tensor([0.0, 1.0, 0.0])  # the second class: 0.1 less likely
    changed[1::4, 2] = 2.0  # the third: 0.85 less likely
    for reference, probabilities in ((likely, True), (likely.log() + 5, False)):
        measured = parity.measure(reference, changed, probabilities=probabilities)
        assert measured.top1_agreement == 0.5
        assert measured.accuracy_loss == pytest.approx((0.1 + 0.85) / 4)
    truth = torch.tensor([1, 0, 2, 2]).repeat(16)  # one answer more is right, one less
    assert parity.measure(likely, changed, truth).accuracy_loss == pytest.approx(0.0)
    truth = torch.tensor([0, 0, 2, 2]).repeat(16)
    assert parity.measure(likely, changed, truth).accuracy_loss == pytest.approx(0.5)


def test_an_unsure_network_of_many_classes_may_change_its_mind() -> None:
    """It finds two of a thousand classes equally likely; a sure one that changes its mind as often is refused."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(256, 1000, generator=generator)
    best = torch.arange(256) % 500
    rows = torch.arange(256)
    for lead, accepted in ((0.05, True), (4.0, False)):
        reference = logits.clone()
        reference[rows, best], reference[rows, best + 500] = 12.0 + lead, 12.0
        candidate = reference.clone()
        candidate[::8, :] = reference[::8].roll(500, dims=1)  # one image in eight takes the other class
        candidate[::8] = 0.9 * reference[::8] + 0.1 * candidate[::8]
        candidate[rows[::8], best[::8] + 500] = candidate[rows[::8], best[::8]] + 0.01
        measured = parity.measure(reference, candidate)
        assert measured.top1_agreement == 0.875
        limits = parity.threshold("pte", "int8")
        if accepted:
            measured.check(limits)
        else:
            with pytest.raises(InputError, match=r"accuracy loss 1\d\.\d% is above 2\.0%$"):
                measured.check(limits)


def test_a_demand_can_be_replaced_by_name() -> None:
    demanded = parity.threshold("pte", "int8")
    assert parity.accepting(demanded, []) == demanded
    wider = parity.accepting(demanded, ["accuracy_loss<=0.05", "sqnr_db >= 4"])
    assert wider == parity.Threshold(relative=None, sqnr_db=4.0, top1_agreement=None, accuracy_loss=0.05)
    # An agreement stands in for the loss, unless that is given, too.
    agreed = parity.accepting(demanded, ["top1_agreement>=0.9"])
    assert (agreed.top1_agreement, agreed.accuracy_loss) == (0.9, None)
    both = parity.accepting(demanded, ["accuracy_loss<=0.1", "top1_agreement>=0.9"])
    assert (both.top1_agreement, both.accuracy_loss) == (0.9, 0.1)


@pytest.mark.parametrize("text", ["", "sqnr_db", "sqnr_db<=3", "relative>=1", "speed>=1", "sqnr_db>=nan", "sqnr_db>=x"])
def test_what_cannot_be_accepted(text: str) -> None:
    with pytest.raises(InputError, match="is none of sqnr_db>=VALUE, top1_agreement>=VALUE, relative<=VALUE"):
        parity.accepting(parity.SANITY, [text])


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
