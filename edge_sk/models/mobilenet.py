"""MobileNet V1-V4: timm's networks, plain, with squeeze-and-excitation, and with selective kernels grafted in.

The SKNet paper names MobileNet as a place for SK convolutions but reports none. DCANet (Ma et al., 2020) replaces every
3x3 depthwise convolution of MobileNetV2 (``sk_units=all``). The ``sk_`` names replace those of stride 1 on small maps
(``late``), because large maps are what makes a unit slow (deploy/results/NOTES.md).
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from edge_sk.models._entry import TIMM_OPTIONS, Entry, Graft, timm_name

PLAIN = ("mobilenetv1_1.0", "mobilenetv2_0.5", "mobilenetv2_1.0", "mobilenetv2_1.4")
PLAIN += ("mobilenetv3_small_1.0", "mobilenetv3_large_1.0", "mobilenetv4_conv_small")


def _build(name: str, *, se: bool = False, **kwargs: Any) -> nn.Module:
    import timm
    from timm.layers import SqueezeExcite

    model = timm.create_model(timm_name(name), **kwargs)
    # SE (r = 16) stands behind the depthwise convolution of every block, where SK would be: there MobileNetV3 has it
    # (Howard et al., 2019, Sec. 5.3), and there timm's blocks keep a slot for it.
    for block in model.modules() if se else ():
        conv = getattr(block, "conv_dw", None)
        if isinstance(conv, nn.Conv2d):
            block.se = SqueezeExcite(conv.out_channels, rd_channels=max(conv.out_channels // 16, 8))
    return model


def entries() -> list[Entry]:
    """The rows of the zoo."""
    rows: list[Entry] = []
    cfg = {"first_conv": "conv_stem", "classifier": "classifier"}
    common: dict[str, Any] = {"recipe": "light", "cfg": cfg, "options": TIMM_OPTIONS, "of_timm": True}
    for name in PLAIN:
        build = functools.partial(_build, name)
        rows.append(Entry(name=name, build=build, **common))
        rows.append(Entry(name=f"sk_{name}", build=build, graft=Graft(sk_units="late"), **common))
        if name.startswith(("mobilenetv1", "mobilenetv2")):
            rows.append(Entry(name=f"se_{name}", build=functools.partial(build, se=True), **common))
    return rows
