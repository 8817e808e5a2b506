"""The figures that the paper prints, and why ours differ where they do."""

from __future__ import annotations

import functools

from torch import nn

from recipes.paper.model import Row, Table


def _densenet(growth_rate: int, block_config: tuple[int, ...]) -> nn.Module:
    from timm.models.densenet import DenseNet

    return DenseNet(growth_rate=growth_rate, block_config=block_config)


ROUNDED = "The published figure has two digits; ours rounds to it."
SHUFFLE_BASE = (
    "The author's own baseline is not the published ShuffleNetV2: its recalled figures show more parameters with fewer "
    "MACs. Compare the differences between rows, below."
)
SHUFFLE_SE = (
    "Where SE goes and its reduction are not stated; ours is the author's released file (r = 16, on the output of the "
    "unit), which is smaller. See also the row of the baseline."
)
SHUFFLE_SK = (
    "Inherits the baseline's difference. What SK adds agrees: parameters as they are, MACs with elementwise work, "
    "see below."
)
TRUNCATED = (
    "The paper's parameters equal ours with the decimals cut off ({ours} M); leaving out batch norm (0.06 M) or the "
    "classifier (1.5 M) does not give them."
)
WIDER = (
    "Our reading: every width after the stem x 17/16 (34 groups). No network with 32 groups and uniformly wider "
    "stages has both figures."
)
DEEPER = "Our reading: layers 3, 4, 8, 3. Two more blocks in stage 3; in any other stage the parameters do not fit."

TABLES = (
    Table(
        "1",
        "The three networks with 50 layers",
        (),
        (
            Row("ResNeXt-50 (32x4d)", "resnext50", "25.0", "4.24"),
            Row("SENet-50", "senet50", "27.7", "4.25"),
            Row("SKNet-50", "sknet50", "27.5", "4.47"),
        ),
    ),
    Table(
        "2",
        "ImageNet, single crop",
        ("224", "320"),
        (
            Row("ResNeXt-50", "resnext50", "25.0", "4.24", ("22.23", "21.05")),
            Row(
                "AttentionNeXt-56",
                None,
                "31.9",
                "6.32",
                ("21.76", None),
                "Not built: neither timm nor torchvision has it.",
            ),
            Row(
                "InceptionV3",
                "torchvision:inception_v3@init_weights=false",
                "27.1",
                "5.73",
                (None, "21.20"),
                "At 299x299, with the auxiliary classifier, which the paper's parameters include.",
                size=299,
            ),
            Row("ResNeXt-50 + BAM", "resnext50_bam", "25.4", "4.31", ("21.70", "20.15")),
            Row("ResNeXt-50 + CBAM", "resnext50_cbam", "27.7", "4.25", ("21.40", "20.38")),
            Row("SENet-50", "senet50", "27.7", "4.25", ("21.12", "19.71")),
            Row("SKNet-50", "sknet50", "27.5", "4.47", ("20.79", "19.32")),
            Row("ResNeXt-101", "resnext101", "44.3", "7.99", ("21.11", "19.86")),
            Row(
                "Attention-92",
                None,
                "51.3",
                "10.43",
                (None, "19.50"),
                "Not built: neither timm nor torchvision has it.",
            ),
            Row("DPN-92", "timm:dpn92", "37.7", "6.50", ("20.70", "19.30"), size=224),
            Row("DPN-98", "timm:dpn98", "61.6", "11.70", ("20.20", "18.90"), size=224),
            Row(
                "InceptionV4",
                "timm:inception_v4",
                "42.0",
                "12.31",
                (None, "20.00"),
                "At 299x299. " + TRUNCATED.format(ours="42.68"),
                size=299,
            ),
            Row(
                "Inception-ResNetV2",
                "timm:inception_resnet_v2",
                "55.0",
                "13.22",
                (None, "19.90"),
                "At 299x299. " + TRUNCATED.format(ours="55.84"),
                size=299,
            ),
            Row("ResNeXt-101 + BAM", "resnext101_bam", "44.6", "8.05", ("20.67", "19.15")),
            Row("ResNeXt-101 + CBAM", "resnext101_cbam", "49.2", "8.00", ("20.60", "19.42")),
            Row("SENet-101", "senet101", "49.2", "8.00", ("20.58", "18.61")),
            Row("SKNet-101", "sknet101", "48.9", "8.46", ("20.19", "18.40")),
        ),
    ),
    Table(
        "3",
        "Other uses of the same budget",
        ("224",),
        (
            Row("ResNeXt-50 (32x4d)", "resnext50", "25.0", "4.24", ("22.23",)),
            Row("SKNet-50", "sknet50", "27.5", "4.47", ("20.79",)),
            Row("ResNeXt-50, wider", "resnext50_wider", "28.1", "4.74", ("22.13",), WIDER),
            Row("ResNeXt-56, deeper", "resnext56", "27.3", "4.67", ("22.04",), DEEPER),
            Row("ResNeXt-50 (36x4d)", "resnext50_36x4d", "27.6", "4.70", ("22.00",)),
        ),
    ),
    Table(
        "4",
        "ShuffleNetV2 with SE and SK",
        ("224",),
        (
            Row("ShuffleNetV2 0.5x", "shufflenetv2_0.5", "1.4", "41", ("39.70",), ROUNDED),
            Row(
                "ShuffleNetV2 0.5x (the author's)",
                "shufflenetv2_0.5",
                "1.40",
                "40.39",
                ("38.41",),
                SHUFFLE_BASE,
                recalled=("params", "macs", "224"),
            ),
            Row(
                "ShuffleNetV2 0.5x + SE",
                "se_shufflenetv2_0.5",
                "1.56",
                "40.85",
                ("36.34",),
                SHUFFLE_SE,
                recalled=("params", "macs", "224"),
            ),
            Row(
                "ShuffleNetV2 0.5x + SK",
                "sk_shufflenetv2_0.5",
                "1.48",
                "42.58",
                ("35.35",),
                SHUFFLE_SK,
                recalled=("params", "macs", "224"),
            ),
            Row("ShuffleNetV2 1.0x", "shufflenetv2_1.0", "2.3", "146", ("30.60",)),
            Row(
                "ShuffleNetV2 1.0x (the author's)",
                "shufflenetv2_1.0",
                "2.45",
                "140.35",
                ("30.57",),
                SHUFFLE_BASE,
                recalled=("params", "macs"),
            ),
            Row(
                "ShuffleNetV2 1.0x + SE",
                "se_shufflenetv2_1.0",
                "2.66",
                "141.73",
                ("29.47",),
                SHUFFLE_SE,
                recalled=("params", "224"),
            ),
            Row(
                "ShuffleNetV2 1.0x + SK",
                "sk_shufflenetv2_1.0",
                "2.63",
                "145.66",
                ("28.36",),
                SHUFFLE_SK,
                recalled=("params",),
            ),
        ),
        unit="M",
        note="The first row of each width is what the ShuffleNetV2 paper published.",
    ),
    Table(
        "5",
        "CIFAR-10 and CIFAR-100",
        ("C10", "C100"),
        (
            Row(
                "ResNeXt-29, 16x32d",
                "resnext29_16x32d",
                "25.2",
                None,
                ("3.87", "18.56"),
                recalled=("params", "C10", "C100"),
            ),
            Row("ResNeXt-29, 8x64d", "resnext29_8x64d", "34.4", None, ("3.65", "17.77"), recalled=("C10",)),
            Row("ResNeXt-29, 16x64d", "resnext29_16x64d", "68.1", None, ("3.58", "17.31"), recalled=("C10", "C100")),
            Row(
                "SENet-29",
                "senet29",
                "35.0",
                None,
                ("3.68", "17.78"),
                "SE on the 8x64d network: on 16x32d, which the paper's text names, it would have 25.8 M.",
                recalled=("C10",),
            ),
            Row(
                "SKNet-29",
                "sknet29",
                "27.7",
                "4.2",
                ("3.47", "17.33"),
                "Branches 1x1 and 3x3, G = 16, r = 32: the setting that has both figures. GFLOPs as cited elsewhere.",
                recalled=("C10",),
            ),
        ),
        note="Counted with ten classes at 32x32; a hundred classes add 0.09 M.",
    ),
    Table(
        "6",
        "SKNet-50, the second branch varied (the first is 3x3, G = 32)",
        ("224",),
        (
            Row("3x3, D = 3, G = 32", "sknet50@kernels=3+3d3", "27.5", "4.47", ("20.97",)),
            Row("3x3, D = 2, G = 32", "sknet50@kernels=3+3d2", "27.5", "4.47", ("20.79",)),
            Row("3x3, D = 1, G = 32", "sknet50@kernels=3+3", "27.5", "4.47", ("20.91",)),
            Row("5x5, D = 1, G = 64", "sknet50@kernels=3+5g64", "28.1", "4.56", ("20.80",)),
            Row("7x7, D = 1, G = 128", "sknet50@kernels=3+7g128", "28.1", "4.55", ("21.18",)),
        ),
    ),
    Table(
        "7",
        "SKNet-50, combinations of kernels (K3: 3x3; K5, K7: 3x3 of dilation 2, 3)",
        ("224",),
        (
            Row("K3", "sknet50@kernels=3,select=false", "25.0", "4.24", ("22.23",)),
            Row("K5", "sknet50@kernels=3d2,select=false", "25.0", "4.24", ("25.14",)),
            Row("K7", "sknet50@kernels=3d3,select=false", "25.0", "4.24", ("25.51",)),
            Row("K3 + K5, sum", "sknet50@kernels=3+3d2,select=false", "26.5", "4.46", ("21.76",)),
            Row("K3 + K5, SK", "sknet50@kernels=3+3d2", "27.5", "4.47", ("20.79",)),
            Row("K3 + K7, sum", "sknet50@kernels=3+3d3,select=false", "26.5", "4.46", ("21.82",)),
            Row("K3 + K7, SK", "sknet50@kernels=3+3d3", "27.5", "4.47", ("20.97",)),
            Row("K5 + K7, sum", "sknet50@kernels=3d2+3d3,select=false", "26.5", "4.46", ("23.64",)),
            Row("K5 + K7, SK", "sknet50@kernels=3d2+3d3", "27.5", "4.47", ("23.09",)),
            Row("K3 + K5 + K7, sum", "sknet50@kernels=3+3d2+3d3,select=false", "28.0", "4.69", ("21.47",)),
            Row("K3 + K5 + K7, SK", "sknet50@kernels=3+3d2+3d3", "29.3", "4.70", ("20.76",)),
        ),
    ),
    Table(
        "S9",
        "ImageNet, parameters against error",
        ("224",),
        (
            Row("ResNet-50", "timm:resnet50", "25.56", None, ("23.9",)),
            Row("ResNet-101", "timm:resnet101", "44.55", None, ("22.6",)),
            Row("ResNet-152", "timm:resnet152", "60.19", None, ("21.7",)),
            Row("DenseNet-169 (k = 32)", "timm:densenet169", "14.15", None, ("23.8",)),
            Row("DenseNet-201 (k = 32)", "timm:densenet201", "20.01", None, ("22.6",)),
            Row(
                "DenseNet-264 (k = 32)",
                "timm's DenseNet class, blocks 6, 12, 64, 48",
                "33.34",
                None,
                ("22.2",),
                build=functools.partial(_densenet, 32, (6, 12, 64, 48)),
            ),
            Row(
                "DenseNet-232 (k = 48)",
                "timm's DenseNet class, blocks 6, 12, 48, 48",
                "55.80",
                None,
                ("21.3",),
                "Our reading of 232 layers: how they divide into blocks is not published at hand.",
                build=functools.partial(_densenet, 48, (6, 12, 48, 48)),
            ),
            Row("ResNeXt-50", "resnext50", "25.00", None, ("22.2",)),
            Row("ResNeXt-101", "resnext101", "44.30", None, ("21.2",)),
            Row("DPN-68", "timm:dpn68", "12.61", None, ("23.7",), size=224),
            Row("DPN-92", "timm:dpn92", "37.67", None, ("20.7",), size=224),
            Row("DPN-98", "timm:dpn98", "61.57", None, ("20.2",), size=224),
            Row("SENet-50", "senet50", "27.7", None, ("21.12",)),
            Row("SENet-101", "senet101", "49.2", None, ("20.58",)),
            Row("SKNet-26", "sknet26", "16.8", None, ("22.74",)),
            Row("SKNet-50", "sknet50", "27.5", None, ("20.79",)),
            Row("SKNet-101", "sknet101", "48.9", None, ("20.19",)),
        ),
        note="The paper gives no FLOPs here.",
    ),
)
