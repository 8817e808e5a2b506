"""What a network costs: parameters, multiply-accumulates (MACs), activations, per module.

``python -m edge_sk.profiling sk_shufflenetv2_1.0 shufflenetv2_1.0`` prints one comparison.

Conventions. All counts come from one forward pass, operator by operator:

- **MACs**: multiplications of convolutions and matrix products; a bias adds none, and a batch norm none,
  because at inference it folds into its convolution. What the SKNet and ShuffleNetV2 papers call FLOPs;
  half of what ``torch.utils.flop_counter`` prints. A convolution's formula is that of
  `fvcore <https://github.com/facebookresearch/fvcore>`_.
- **Activations**: elements that convolutions and matrix products write (fvcore's convention).
- **Elementwise work**: elements that every other computing operator goes over (additions, multiplications,
  activation functions, pooling, softmax): the larger of its first input and its output. It takes time, and
  no MAC count includes it.
- **Gates**: MACs inside channel attention (SK's gate, squeeze-and-excitation, CBAM, BAM); part of the MACs.
- **Unsupported**: operators that compute but are not counted, for instance fused attention.
- **fvcore's own total**, in the command's JSON, is larger: it adds 2 per element of a batch norm, 1 per element
  that enters an adaptive average pool, and 4 or 5 per element of layer and group norms and of bilinear resizing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from edge_sk import running
from edge_sk.errors import InputError
from edge_sk.profiling.cost import FeatureMap, ModuleCost, ModuleTable, Profile, comparison, print_table, rich_table
from edge_sk.profiling.counting import OperatorCounter

__all__ = ["FeatureMap", "ModuleCost", "ModuleTable", "Profile", "comparison", "print_table", "profile", "rich_table"]


def profile(model: nn.Module, input_size: int | Sequence[int] | None = None) -> Profile:
    """Count what a network costs for one image.

    The network runs once, in evaluation mode and without gradients, on the device and in the type of its
    parameters. Its mode is restored; its hooks, parameters and buffers do not change.

    Args:
        model: Any module that takes one batch of images.
        input_size: ``(C, H, W)``, ``(N, C, H, W)`` or the side of a square image; ``None`` takes
            ``model.default_cfg["input_size"]`` where there is one, otherwise 3x224x224.

    Raises:
        InputError: No network, a bad shape, a network that does not run on it, or a scripted or compiled one.

    Example:
        >>> profile(nn.Conv2d(3, 8, 3, padding=1, bias=False), (1, 3, 10, 10)).macs == 3 * 8 * 9 * 10 * 10
        True
    """
    running.check_network(model, "profile")
    shape = running.input_shape(model, input_size)
    name = running.default_cfg(model).get("architecture") or type(model).__name__
    reference = running.reference(model)
    if any(map(_is_compiled, model.modules())):
        raise InputError(
            f"{name} cannot be traced, so it cannot be counted: its code is scripted or compiled; "
            "profile a plain nn.Module that takes one tensor"
        )
    counter = OperatorCounter(model)
    try:
        image = torch.zeros(shape, dtype=reference.dtype, device=reference.device)
        with running.evaluating(model), counter.counting():
            model(image)
    except Exception as error:
        size = "x".join(map(str, shape))
        raise InputError(
            f"{name} does not run on an input of {size}: {running.first_line(error)}; try another input size"
        ) from error
    modules = ModuleTable()
    for path, module in model.named_modules():
        params = sum(parameter.numel() for parameter in module.parameters())
        modules[path] = ModuleCost(type(module).__name__, params, **counter.costs[path])
    return Profile(
        **dataclasses.asdict(modules[""]),
        name=name,
        input_size=shape,
        modules=modules,
        operators=dict(counter.operators["macs"].most_common()),
        elementwise_operators=dict(counter.operators["elementwise"].most_common()),
        largest_feature_map=counter.largest,
        unsupported=dict(counter.unsupported),
    )


def _is_compiled(module: nn.Module) -> bool:
    return bool(
        isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod") or module._compiled_call_impl
    )
