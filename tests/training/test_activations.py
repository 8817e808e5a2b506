"""Less is kept for the backward pass, and the gradients are the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import edge_sk
from edge_sk.training.activations import ReLU6, keep_outputs
from recipes.training_speed import saved_bytes


@pytest.mark.parametrize("arch", ["mobilenetv2_0.5", "timm:mobilenetv2_050@kernels=3+3d2"])
def test_gradients_are_equal_and_a_fifth_less_is_kept(arch: str) -> None:
    plain = edge_sk.create_model(arch, num_classes=5)
    ours = keep_outputs(copy.deepcopy(plain))
    assert not any(type(module) is nn.ReLU6 for module in ours.modules())
    x = torch.randn(4, 3, 64, 64)
    for model in (plain, ours):
        model(x).square().sum().backward()
    for (name, expected), (_, got) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.equal(expected.grad, got.grad), name
    before, after = saved_bytes(plain, x), saved_bytes(ours, x)
    assert after < 0.8 * before
    assert copy.deepcopy(ours).state_dict().keys() == plain.state_dict().keys()


def test_the_limits_have_no_gradient() -> None:
    x = torch.tensor([-1.0, 0.0, 1e-30, 3.0, 5.9999995, 6.0, 7.0], requires_grad=True)
    for layer in (nn.ReLU6(), ReLU6()):
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
        assert gradient.tolist() == [0, 0, 1, 1, 1, 0, 0]
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(lambda v: ReLU6()(v)))(x), gradient)
    with torch.no_grad():
        assert torch.equal(ReLU6()(x), nn.ReLU6()(x))
