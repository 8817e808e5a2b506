"""ResNeXt 32x4d and what the paper's ImageNet tables compare with it: timm's networks, SK grafted in.

Xie et al., *Aggregated Residual Transformations*, CVPR 2017, https://arxiv.org/abs/1611.05431. SKNet's Table 1:
SKNet-50 is ResNeXt-50 32x4d with every grouped 3x3 replaced by SK[M=2, G=32, r=16].
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from torch import nn

from edge_sk.models._entry import TIMM_OPTIONS, Entry, Graft
from edge_sk.selective_kernel import UnitSpec


@dataclasses.dataclass(frozen=True)
class _Config:
    layers: tuple[int, int, int, int]
    cardinality: int = 32
    base_width: float = 4
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    attention: str | None = None


CONFIGS = {
    "resnext26": _Config((2, 2, 2, 2)),
    "resnext50": _Config((3, 4, 6, 3)),
    "resnext101": _Config((3, 4, 23, 3)),
    # Table 3, matched complexity. The paper does not say how its wider and deeper networks are made: these are what
    # reproduces its figures. Wider is every width behind the stem x 17/16, in 34 groups (base_width is what timm's
    # rounding down turns into 4, 8, 16, 32 channels a group); deeper has its two more blocks in the third stage.
    "resnext50_wider": _Config((3, 4, 6, 3), cardinality=34, base_width=3.8, planes=(68, 136, 272, 544)),
    "resnext56": _Config((3, 4, 8, 3)),
    "resnext50_36x4d": _Config((3, 4, 6, 3), cardinality=36),
    "senet26": _Config((2, 2, 2, 2), attention="se"),
    "senet50": _Config((3, 4, 6, 3), attention="se"),
    "senet101": _Config((3, 4, 23, 3), attention="se"),
    "resnext50_bam": _Config((3, 4, 6, 3), attention="bam"),
    "resnext101_bam": _Config((3, 4, 23, 3), attention="bam"),
    "resnext50_cbam": _Config((3, 4, 6, 3), attention="cbam"),
    "resnext101_cbam": _Config((3, 4, 23, 3), attention="cbam"),
}
SK = {"sknet26": "resnext26", "sknet50": "resnext50", "sknet101": "resnext101"}


def _build(config: _Config, **kwargs: Any) -> nn.Module:
    from timm.models.resnet import Bottleneck, ResNet

    in_block = config.attention in ("se", "cbam")
    # timm's annotations ask for an instance of the block and a whole base width.
    block, base_width = cast(Any, Bottleneck), cast(int, config.base_width)
    model = ResNet(
        block=block,
        layers=config.layers,
        cardinality=config.cardinality,
        base_width=base_width,
        channels=config.planes,
        block_args={"attn_layer": config.attention} if in_block else None,
        **kwargs,
    )
    if config.attention == "bam":
        from edge_sk.gates import add_bam

        add_bam(model)
    return model


def entries() -> list[Entry]:
    """The rows of the zoo."""
    common: dict[str, Any] = {
        "build": _build,
        "recipe": "large",
        "cfg": {"first_conv": "conv1", "classifier": "fc"},
        "options": TIMM_OPTIONS,
    }
    rows = [Entry(name=name, build_args={"config": config}, **common) for name, config in CONFIGS.items()]
    paper = Graft(unit=UnitSpec(act="relu"))
    rows += [
        Entry(name=name, build_args={"config": CONFIGS[plain]}, graft=paper, **common) for name, plain in SK.items()
    ]
    return rows
