"""A faster backward pass for dilated depthwise convolutions in training on a CPU.

PyTorch's CPU kernels compute the gradients of a dilated depthwise convolution several times slower than those of an
undilated one, which is most of what a selective kernel would cost. The fast kernels give both gradients, exactly:

- with respect to the input, as the same convolution of the output's gradient with the filters turned by 180 degrees
  (stride 1, "same" padding);
- with respect to the filters, from the ``dilation^2`` phases of image and gradient (space to batch): within a phase
  the taps are neighbours.

With a stride equal to the dilation only one phase is read, and the convolution is an undilated one of that phase.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from edge_sk.tracing import hooks


class _DilatedDepthwise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        return _convolve(x, weight, dilation)

    # Apart from forward: torch.func's transforms ask for it.
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        x, weight, ctx.dilation = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        grad_x = _convolve(grad, weight.flip(2, 3), ctx.dilation) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            size, groups = weight.shape[2], weight.shape[0]
            phases = [_phases(image, ctx.dilation, least=size) for image in (x, grad)]
            grad_weight = conv2d_weight(phases[0], weight.shape, phases[1], padding=size // 2, groups=groups)
        return grad_x, grad_weight, None


def _convolve(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    margin = weight.shape[2] // 2 * dilation
    return nn.functional.conv2d(x, weight, padding=margin, dilation=dilation, groups=weight.shape[0])


def _phases(x: Tensor, dilation: int, *, least: int) -> Tensor:
    """Every ``dilation``-th pixel as an image of its own: ``(N, C, H, W)`` to ``(d d N, C, ceil(H/d), ceil(W/d))``.

    Smaller phases are padded to ``least`` pixels a side: PyTorch is slow on images smaller than the filter.
    """
    n, c, h, w = x.shape
    d = dilation
    rows, columns = max(-(-h // d), least), max(-(-w // d), least)
    if (rows * d, columns * d) != (h, w):  # padding by nothing copies
        x = nn.functional.pad(x, (0, columns * d - w, 0, rows * d - h))
    if x.is_contiguous(memory_format=torch.channels_last):
        parts = x.permute(0, 2, 3, 1).reshape(n, rows, d, columns, d, c)
        return parts.permute(2, 4, 0, 1, 3, 5).reshape(d * d * n, rows, columns, c).permute(0, 3, 1, 2)
    parts = x.reshape(n, c, rows, d, columns, d)
    return parts.permute(3, 5, 0, 1, 2, 4).reshape(d * d * n, c, rows, columns)


def depthwise_dilated(x: Tensor, weight: Tensor, *, stride: int, dilation: int) -> Tensor:
    """Convolve depthwise with "same" padding, as ``torch.nn.functional.conv2d`` does.

    ``x`` is ``(N, C, H, W)``, ``weight`` ``(C, 1, k, k)`` with odd ``k``, and ``stride`` 1 or equal to ``dilation``.
    """
    if stride == 1:
        return _DilatedDepthwise.apply(x, weight, dilation)  # type: ignore[return-value]
    return _convolve(x[:, :, ::stride, ::stride], weight, 1)


def pays_off(conv: nn.Module, x: Tensor) -> bool:
    """Whether ``conv`` is one that PyTorch's CPU kernels are slow to differentiate, and is to be differentiated now.

    Graphs that are being captured (compile, export, fx) keep the plain convolution: their backends have kernels of
    their own.
    """
    if type(conv) is not nn.Conv2d or not isinstance(x, Tensor):
        return False
    dilation, stride = conv.dilation[0], conv.stride[0]
    margin = conv.kernel_size[0] // 2 * dilation
    return (
        dilation > 1
        and conv.padding_mode == "zeros"
        and conv.padding == (margin, margin)
        and len({*conv.dilation}) == len({*conv.stride}) == len({*conv.kernel_size}) == 1
        and conv.groups == conv.in_channels == conv.out_channels
        and stride in (1, dilation)
        and x.device.type == "cpu"
        and x.dtype == conv.weight.dtype == torch.float32
        and torch.is_grad_enabled()
        and (x.requires_grad or conv.weight.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def run_branch(branch: nn.Module, x: Tensor) -> Tensor:
    """Run a branch of a selective kernel, whatever it holds.

    A convolution at its start whose gradients PyTorch computes slowly runs the faster way.
    """
    if type(branch) is not nn.Sequential or not len(branch) or hooks(branch):
        return branch(x)
    conv, *rest = branch
    if hooks(conv) or not pays_off(conv, x):
        return branch(x)
    assert isinstance(conv, nn.Conv2d)
    u = depthwise_dilated(x, conv.weight, stride=conv.stride[0], dilation=conv.dilation[0])
    if conv.bias is not None:
        u = u + conv.bias[:, None, None]
    for module in rest:
        u = module(u)
    return u
