"""MobileNet V1-V4: timm's networks, plain, with squeeze-and-excitation, and with selective kernels grafted in.

The SKNet paper names MobileNet as a place for SK convolutions but reports none. DCANet (Ma et al., 2020) replaces every
3x3 depthwise convolution of MobileNetV2 (``sk_units=all``). The ``sk_`` names replace those of stride 1 on small maps
(``late``), because large maps are what makes a unit slow (deploy/results/NOTES.md).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from edge_sk.models._entry import TIMM_OPTIONS, Entry, Graft

# Zoo name -> timm's name.
PLAIN = {
    "mobilenetv1_1.0": "mobilenetv1_100",
    "mobilenetv2_0.5": "mobilenetv2_050",
    "mobilenetv2_1.0": "mobilenetv2_100",
    "mobilenetv2_1.4": "mobilenetv2_140",
    "mobilenetv3_small_1.0": "mobilenetv3_small_100",
    "mobilenetv3_large_1.0": "mobilenetv3_large_100",
    "mobilenetv4_conv_small": "mobilenetv4_conv_small",
}


def _build(timm_name: str, *, se: bool = False, **kwargs: Any) -> nn.Module:
    import timm

    model = timm.create_model(timm_name, **kwargs)
    if se:
        _add_squeeze_excite(model)
    return model


def _add_squeeze_excite(model: nn.Module) -> None:
    """Put squeeze-and-excitation (r = 16) behind the depthwise convolution of every block, where SK would be.

    It is the place MobileNetV3 gives it (Howard et al., 2019, Sec. 5.3) and timm's blocks keep a slot for it.
    """
    from timm.layers import SqueezeExcite

    for module in model.modules():
        depthwise = getattr(module, "conv_dw", None)
        if isinstance(depthwise, nn.Conv2d):
            channels = depthwise.out_channels
            module.se = SqueezeExcite(channels, rd_channels=max(channels // 16, 8))


def entries() -> list[Entry]:
    """The rows of the zoo."""
    rows: list[Entry] = []
    for name, timm_name in PLAIN.items():
        args: dict[str, Any] = {"build": _build, "recipe": "light", "timm_name": timm_name, "options": TIMM_OPTIONS}
        plain = {"timm_name": timm_name}
        rows.append(Entry(name=name, build_args=plain, **args))
        rows.append(Entry(name=f"sk_{name}", build_args=plain, graft=Graft(sk_units="late"), **args))
        if name.startswith(("mobilenetv1", "mobilenetv2")):
            rows.append(Entry(name=f"se_{name}", build_args=plain | {"se": True}, **args))
    return rows
