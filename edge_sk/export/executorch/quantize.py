"""Post-training int8 for XNNPACK: static, symmetric weights per channel, calibrated on real images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from edge_sk.quantization import SMALLEST_STEP, pt2e, xnnpack_quantizer

CALIBRATION_IMAGES = 128


def quantize(model: nn.Module, example: Tensor, batches: Iterable[Tensor]) -> fx.GraphModule:
    """Quantize a rewritten network (PT2E).

    Args:
        model: In eval mode.
        example: One image, ``(1, C, H, W)``.
        batches: Calibration images, ``(N, C, H, W)``; they run one by one, as on the phone.

    Returns:
        A graph with quantize and dequantize operators, ready for ``torch.export``.
    """
    quantizing = pt2e(".quantize_pt2e")
    # The whole range, not the default histogram's clipped one: 10.3 against 9.5 dB (SK-ShuffleNetV2), and faster.
    quantizer = xnnpack_quantizer(pt2e().MinMaxObserver.with_args(eps=SMALLEST_STEP))
    prepared = quantizing.prepare_pt2e(torch.export.export(model, (example,)).module(), quantizer)
    with torch.no_grad():
        for batch in batches:
            for image in batch:
                prepared(image[None])
    return quantizing.convert_pt2e(prepared)


def computed_in_float(quantized: fx.GraphModule) -> list[str]:
    """Operators that compute in float, each with how often: ``["sigmoid x13"]``.

    An operator computes in int8 if XNNPACK has it in int8, its inputs are dequantized values, and its result is
    quantized again, directly or after the ReLU that is fused into it.
    """
    in_int8 = _operators_in_int8()
    counts: Counter[str] = Counter()
    for node in quantized.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target._opname.rstrip("_")
        if "quantize" in name or name in _MOVES:
            continue
        tensors = [source for source in node.all_input_nodes if source.op != "get_attr"]
        reads = all("dequantize" in str(source.target) or _is_fused(source, node) for source in tensors)
        writes = all("quantize_per" in str(user.target) or _is_fused(node, user) for user in node.users)
        if not (name in in_int8 and reads and writes):
            counts[name] += 1
    return [f"{name} x{count}" for name, count in counts.most_common()]


# Operators that only move values.
_MOVES = ("view", "reshape", "flatten", "slice", "permute", "transpose", "dropout")
# What the exporter's graph and the partitioner's configurations call the same operator.
_ALIASES = {"convolution": "conv2d", "mean": "adaptive_avg_pool2d", "hardtanh": "relu6"}


def _operators_in_int8() -> set[str]:
    """Operators that XNNPACK's partitioner takes in static int8."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType

    names: set[str] = set()
    for config in (make() for make in ALL_PARTITIONER_CONFIGS):
        if ConfigPrecisionType.STATIC_QUANT in config.supported_precision_types():
            name = config.target_name.split(".")[0]
            names |= {name, _ALIASES.get(name, name)}
    return names


def _is_fused(first: fx.Node, second: fx.Node) -> bool:
    """Whether the second is a ReLU that XNNPACK runs inside the first."""
    return "relu" in str(second.target) and "relu6" not in str(second.target) and second in first.users
