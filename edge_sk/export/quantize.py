"""Post-training int8 for XNNPACK: static, symmetric weights per channel, calibrated on real images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

CALIBRATION_IMAGES = 128


def quantize(model: nn.Module, example: Tensor, batches: Iterable[Tensor]) -> fx.GraphModule:
    """Quantize a deploy-form network (PT2E).

    Args:
        model: In eval mode.
        example: One image, ``(1, C, H, W)``.
        batches: Calibration images, ``(N, C, H, W)``; they pass one by one, as on the phone.

    Returns:
        A graph with quantize and dequantize operators, ready for ``torch.export``.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer: Any = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(model, (example,)).module(), quantizer)
    with torch.no_grad():
        for batch in batches:
            for image in batch:
                prepared(image[None])
    return convert_pt2e(prepared)


def computed_in_float(quantized: fx.GraphModule) -> list[str]:
    """Operators that compute in float, each with how often: ``["sigmoid x13"]``.

    An operator computes in int8 when it reads dequantized values and its result is quantized again, alone or after the
    activation that is fused into it.
    """
    counts: Counter[str] = Counter()
    for node in quantized.graph.nodes:
        if node.op != "call_function":
            continue
        name = str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)
        if "quantize" in name or name in _MOVES or not _computes(node):
            continue
        reads = all("dequantize" in str(source.target) for source in node.all_input_nodes)
        after_fused = any(_is_fused_pair(source, node) for source in node.all_input_nodes)
        writes = all("quantize_per" in str(user.target) or _is_fused_pair(node, user) for user in node.users)
        if not ((reads or after_fused) and writes):
            counts[name] += 1
    return [f"{name} x{count}" for name, count in counts.most_common()]


_MOVES = ("view", "reshape", "flatten", "slice", "cat", "permute", "getitem", "_guards_fn")


def _computes(node: fx.Node) -> bool:
    return "torch.ops" in repr(node.target) or "OpOverload" in type(node.target).__name__


def _is_fused_pair(first: fx.Node, second: fx.Node) -> bool:
    """Whether the second is a ReLU that XNNPACK runs inside the first."""
    return "relu" in str(second.target) and "relu6" not in str(second.target) and second in first.users
