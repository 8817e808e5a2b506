"""The 29-layer networks for 32x32 images: ResNeXt-29, SENet-29, SKNet-29 (the SKNet paper's Table 5).

Three stages of three bottleneck blocks behind a 3x3 stem of 64 channels; 256, 512, 1024 channels; stride 2 at stages
two and three (ResNeXt's CIFAR design, Xie et al., 2017, Sec. 5.3).
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from edge_sk.models._entry import Entry, Graft
from edge_sk.models._staged import StagedClassifier, conv_bn
from edge_sk.selective_kernel import UnitSpec

PLANES = (64, 128, 256)


class CifarResNeXt(StagedClassifier):
    """ResNeXt-29 (Xie et al., 2017, Sec. 5.3), of timm's bottleneck blocks.

    Args:
        cardinality: Groups of the 3x3 convolutions.
        base_width: Channels of one group in the first stage.
        se: Squeeze-and-excitation (r = 16) in every block.
        num_classes: Classes, 0 for none.
        in_chans: Channels of the image, in the paper of 32x32 pixels; the total stride is 4.
        options: ``global_pool`` and ``drop_rate`` of :class:`~edge_sk.models._staged.StagedClassifier`.
    """

    def __init__(
        self,
        cardinality: int,
        base_width: int,
        *,
        se: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        **options: Any,
    ) -> None:
        from timm.layers import SqueezeExcite
        from timm.models.resnet import Bottleneck, make_blocks

        super().__init__(["stem", "stage1", "stage2", "stage3"], **options)
        self.stem = nn.Sequential(*conv_bn(in_chans, 64, 3))
        block_args = {"cardinality": cardinality, "base_width": base_width, "attn_layer": SqueezeExcite if se else None}
        stages, _ = make_blocks((Bottleneck,) * 3, PLANES, (3, 3, 3), 64, **block_args)
        self.stage1, self.stage2, self.stage3 = (stage for _, stage in stages)
        channels = (64, *(planes * Bottleneck.expansion for planes in PLANES))
        self.num_features = self.head_hidden_size = channels[-1]
        levels = zip(self.stage_names, channels, (1, 1, 2, 4), strict=True)
        self.feature_info = [{"module": name, "num_chs": chs, "reduction": stride} for name, chs, stride in levels]
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.reset_classifier(num_classes)


def entries() -> list[Entry]:
    """The rows of the zoo."""
    # Kernels 1x1 and 3x3, G = 16, r = 32: the only setting found to reproduce the cited 27.7M parameters and 4.2 GMACs.
    graft = Graft(unit=UnitSpec(kernels="1+3", reduction=32, act="relu"))
    cfg = {"input_size": (3, 32, 32), "pool_size": (8, 8), "num_classes": 10, "crop_pct": 1.0}
    cfg |= {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
    cfg |= {"first_conv": "stem.0", "classifier": "fc"}
    common: dict[str, Any] = {"recipe": "cifar", "cfg": cfg, "levels": 4}
    rows = [
        Entry(name=f"resnext29_{groups}x{width}d", build=functools.partial(CifarResNeXt, groups, width), **common)
        for groups, width in ((16, 32), (8, 64), (16, 64))
    ]
    # The table's 35.0M parameters are those of SE on 8x64d (on 16x32d it would be 25.8M).
    rows.append(Entry(name="senet29", build=functools.partial(CifarResNeXt, 8, 64, se=True), **common))
    rows.append(Entry(name="sknet29", build=functools.partial(CifarResNeXt, 16, 32), graft=graft, **common))
    return rows
