"""Less memory for the activations of MobileNets in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _KeepOutput(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return nn.functional.relu6(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        # The output is 0 or 6 just where the input is outside: the same gradient, bit for bit.
        return torch.ops.aten.hardtanh_backward(grad_outputs[0], ctx.saved_tensors[0], 0.0, 6.0)


class ReLU6(nn.ReLU6):
    """``nn.ReLU6`` that keeps its output for the backward pass, which the next convolution keeps too.

    PyTorch's keeps its input, in place a copy of it: a map more.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Clamp to [0, 6]."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().forward(input)
        return _KeepOutput.apply(input)  # type: ignore[return-value]


def keep_outputs(model: nn.Module) -> nn.Module:
    """Turn every ReLU6 of a network into one that keeps its output; hooks on it stay."""
    for module in model.modules():
        if type(module) is nn.ReLU6:
            module.__class__ = ReLU6
    return model
