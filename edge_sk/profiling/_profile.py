"""The profile itself: one trace, summed by module."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from torch import nn

from edge_sk import running
from edge_sk.profiling.cost import ModuleCost, ModuleTable, Profile
from edge_sk.profiling.trace import network_name, trace

# Channel attention: classes by the module that has them. One that nobody has imported has no instances.
GATES = {
    "edge_sk.selective_kernel": ("Gate",),
    "edge_sk.gates": ("BAM",),
    "timm.layers.cbam": ("CbamModule", "LightCbamModule"),
    "timm.layers.eca": ("EcaModule",),
    "timm.layers.selective_kernel": ("SelectiveKernelAttn",),
    "timm.layers.squeeze_excite": ("SEModule", "EffectiveSEModule", "SqueezeExciteCl"),
    "timm.models._efficientnet_blocks": ("SqueezeExcite",),
    "timm.models.senet": ("SEModule",),
    "torchvision.ops.misc": ("SqueezeExcitation",),
}


def profile(model: nn.Module, input_size: int | Sequence[int] | None = None) -> Profile:
    """Count what a network costs for one image.

    The network runs once, in evaluation mode and without gradients, on the device and in the type of its
    parameters; its mode and its hooks are restored, its parameters and buffers are not touched.

    Args:
        model: Any module that takes one batch of images.
        input_size: ``(C, H, W)``, ``(N, C, H, W)`` or the side of a square image; ``None`` takes
            ``model.default_cfg["input_size"]`` where there is one, otherwise 3x224x224.

    Raises:
        InputError: A bad shape, a network that does not run on it, or one that cannot be traced.

    Example:
        >>> profile(nn.Conv2d(3, 8, 3, padding=1, bias=False), (1, 3, 10, 10)).macs == 3 * 8 * 9 * 10 * 10
        True
    """
    shape = running.input_shape(model, input_size)
    analysis, largest = trace(model, shape)
    counts = analysis.by_module_and_operator()
    kinds = tuple(getattr(sys.modules[path], kind) for path in GATES.keys() & sys.modules for kind in GATES[path])
    gates = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    outermost = [name for name in gates if not any(name.startswith(f"{other}.") for other in gates if other != name)]
    modules = ModuleTable()
    for name, module in model.named_modules():
        count = counts[name]
        inside = [gate for gate in outermost if not name or gate == name or gate.startswith(f"{name}.")]
        in_gate = any(name == gate or name.startswith(f"{gate}.") for gate in outermost)
        macs = _summed(count, "macs")
        modules[name] = ModuleCost(
            type=type(module).__name__,
            params=sum(parameter.numel() for parameter in module.parameters()),
            macs=macs,
            gate_macs=macs if in_gate else sum(_summed(counts[gate], "macs") for gate in inside),
            activations=_summed(count, "activations"),
            elementwise=_summed(count, "elementwise"),
        )
    return Profile(
        name=network_name(model),
        input_size=shape,
        modules=modules,
        operators=_operators(counts[""], "macs"),
        elementwise_operators=_operators(counts[""], "elementwise"),
        largest_feature_map=largest,
        unsupported=dict(analysis.unsupported_ops()),
        fvcore_total=_summed(counts[""], "macs") + _summed(counts[""], "fvcore"),
    )


def _summed(count: Counter[str], kind: str) -> int:
    return sum(value for key, value in count.items() if key.startswith(f"{kind} "))


def _operators(count: Counter[str], kind: str) -> dict[str, int]:
    found = {key.removeprefix(f"{kind} "): value for key, value in count.items() if key.startswith(f"{kind} ")}
    return dict(sorted(found.items(), key=lambda item: -item[1]))
