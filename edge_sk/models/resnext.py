"""ResNeXt 32x4d and what the paper's ImageNet tables compare with it: timm's networks, SK grafted in.

Xie et al., *Aggregated Residual Transformations*, CVPR 2017, https://arxiv.org/abs/1611.05431. SKNet's Table 1:
SKNet-50 is ResNeXt-50 32x4d with every grouped 3x3 replaced by SK[M=2, G=32, r=16].
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from edge_sk.gates import add_bam
from edge_sk.models._entry import TIMM_OPTIONS, Entry, Graft
from edge_sk.selective_kernel import UnitSpec

DEPTHS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def _build(layers: tuple[int, ...], *, cardinality: int = 32, attention: str | None = None, **kwargs: Any) -> nn.Module:
    from timm.models import resnet

    build: Any = resnet.ResNet  # its annotations ask for an instance of the block and a whole base width
    in_block = {"attn_layer": attention} if attention in ("se", "cbam") else None
    args = {"base_width": 4} | kwargs
    model = build(resnet.Bottleneck, layers, cardinality=cardinality, block_args=in_block, **args)
    if attention == "bam":
        add_bam(model)
    return model


def entries() -> list[Entry]:
    """The rows of the zoo."""
    rows: list[Entry] = []

    def add(name: str, layers: tuple[int, ...], graft: Graft | None = None, **args: Any) -> None:
        cfg = {"first_conv": "conv1", "classifier": "fc"}
        build = functools.partial(_build, layers, **args)
        rows.append(Entry(name=name, build=build, recipe="large", cfg=cfg, options=TIMM_OPTIONS, graft=graft))

    for depth, layers in DEPTHS.items():
        add(f"resnext{depth}", layers)
        add(f"senet{depth}", layers, attention="se")
        add(f"sknet{depth}", layers, Graft(unit=UnitSpec(act="relu")))
    for depth in (50, 101):
        for attention in ("bam", "cbam"):
            add(f"resnext{depth}_{attention}", DEPTHS[depth], attention=attention)
    # Table 3, matched complexity. The paper does not say how its wider and deeper networks are made: these are what
    # reproduces its figures. Wider is every width behind the stem x 17/16, in 34 groups (base_width is what timm's
    # rounding down turns into 4, 8, 16, 32 channels a group); deeper has its two more blocks in the third stage.
    add("resnext50_wider", DEPTHS[50], cardinality=34, base_width=3.8, channels=(68, 136, 272, 544))
    add("resnext56", (3, 4, 8, 3))
    add("resnext50_36x4d", DEPTHS[50], cardinality=36)
    return rows
