"""ShuffleNetV2: plain, with squeeze-and-excitation, and (through the graft) with selective kernels.

Ma et al., *ShuffleNet V2*, ECCV 2018, https://arxiv.org/abs/1807.11164, Table 5. Modules are named as torchvision names
them, so its weights load unchanged.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edge_sk.errors import InputError, shown
from edge_sk.grafting import NAMED, Where
from edge_sk.models._entry import Entry, Graft
from edge_sk.models._staged import StagedClassifier, conv_bn

# Output channels of conv1, stages 2-4 and conv5 (Table 5 of the paper).
WIDTHS = {
    "0.5": (24, 48, 96, 192, 1024),
    "1.0": (24, 116, 232, 464, 1024),
    "1.5": (24, 176, 352, 704, 1024),
    "2.0": (24, 244, 488, 976, 2048),
}
STAGE_REPEATS = (4, 8, 4)


class InvertedResidual(nn.Module):
    """The unit of the paper's Fig. 3 (c), and with stride 2 of Fig. 3 (d).

    Args:
        inp, oup: Channels.
        stride: 1 splits the input in halves, one of which passes through; 2 sends it down both branches.
        attn_layer: Called with ``oup``; applied to the concatenated output before the shuffle, where the SKNet paper's
            author puts squeeze-and-excitation (PytorchInsight, ``shufflenetv2_se.py``).

    Shape:
        - Input: ``(N, inp, H, W)``
        - Output: ``(N, oup, ceil(H / stride), ceil(W / stride))``
    """

    def __init__(self, inp: int, oup: int, stride: int, attn_layer: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        self.stride = stride
        half = oup // 2
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(*conv_bn(inp, inp, 3, stride, inp, relu=False), *conv_bn(inp, half, 1))
        self.branch2 = nn.Sequential(
            *conv_bn(inp if stride > 1 else half, half, 1),
            *conv_bn(half, half, 3, stride, half, relu=False),
            *conv_bn(half, half, 1),
        )
        self.attn = attn_layer(oup) if attn_layer is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run the unit."""
        if self.stride == 1:
            first, second = x.chunk(2, dim=1)
        else:
            first, second = self.branch1(x), x
        return torch.channel_shuffle(self.attn(torch.cat((first, self.branch2(second)), dim=1)), 2)


class ShuffleNetV2(StagedClassifier):
    """ShuffleNetV2 (Table 5 of its paper).

    Args:
        widths: Output channels of conv1, stages 2-4 and conv5.
        num_classes: Classes, 0 for none.
        in_chans: Channels of the image; the total stride is 32.
        width: Times the channels of stages 2-4, rounded to even numbers, which units need.
        attn_layer: See :class:`InvertedResidual`.
        options: ``global_pool`` and ``drop_rate`` of :class:`~edge_sk.models._staged.StagedClassifier`.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        width: float = 1.0,
        attn_layer: Callable[[int], nn.Module] | None = None,
        **options: Any,
    ) -> None:
        if isinstance(width, bool) or not isinstance(width, numbers.Real) or not 0.1 <= width <= 10:
            raise InputError(f"width={shown(width)} must be a number from 0.1 to 10")
        names = ["conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"]
        super().__init__(names, **options)
        stem, *stage_widths, last = widths
        stage_widths = [2 * round(channels * width / 2) for channels in stage_widths]
        self.conv1 = nn.Sequential(*conv_bn(in_chans, stem, 3, 2))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inp = stem
        stages = []
        for oup, repeats in zip(stage_widths, STAGE_REPEATS, strict=True):
            units = [InvertedResidual(inp, oup, 2, attn_layer)]
            units += [InvertedResidual(oup, oup, 1, attn_layer) for _ in range(repeats - 1)]
            stages.append(nn.Sequential(*units))
            inp = oup
        self.stage2, self.stage3, self.stage4 = stages
        self.conv5 = nn.Sequential(*conv_bn(inp, last, 1))
        self.num_features = self.head_hidden_size = last
        levels = zip(names[:-1], (stem, stem, *stage_widths), (2, 4, 8, 16, 32), strict=True)
        self.feature_info = [{"module": name, "num_chs": chs, "reduction": stride} for name, chs, stride in levels]
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.reset_classifier(num_classes)


def _squeeze_excite(channels: int) -> nn.Module:
    from timm.layers import SqueezeExcite

    return SqueezeExcite(channels, rd_channels=channels // 16)


def entries() -> list[Entry]:
    """The rows of the zoo."""
    # The main branch of every unit, stride 2 too.
    places = NAMED | {"main": Where(lambda site: "branch2" in site.name, "main")}
    # Stride 1 matches the parameters that the paper reports.
    graft = Graft(sk_units="stride1", places=places)
    rows: list[Entry] = []
    cfg = {"first_conv": "conv1.0", "classifier": "fc"}
    common: dict[str, Any] = {"recipe": "light", "cfg": cfg, "options": ("drop_rate", "width")}
    for width, channels in WIDTHS.items():
        name = f"shufflenetv2_{width}"
        plain = functools.partial(ShuffleNetV2, channels)
        with_se = functools.partial(plain, attn_layer=_squeeze_excite)
        rows.append(Entry(name=name, build=plain, **common))
        rows.append(Entry(name=f"se_{name}", build=with_se, **common))
        rows.append(Entry(name=f"sk_{name}", build=plain, graft=graft, **common))
    return rows
