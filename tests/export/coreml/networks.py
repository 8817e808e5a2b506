"""Networks to export, and the parts of a package on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import edge_sk
from edge_sk.export.network import Network
from edge_sk.training.digits import CLASSES

SIZE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def make_network(model: nn.Module, **fields: Any) -> Network:
    defaults = {
        "arch": "tiny",
        "weights": "random",
        "input_size": (3, SIZE, SIZE),
        "mean": MEAN,
        "std": STD,
        "labels": CLASSES,
        "data": "digits",
    }
    return Network(model=model.eval(), **(defaults | fields))  # type: ignore[arg-type]


def tiny(lived_in: Callable[[nn.Module], nn.Module], *extra: nn.Module, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return lived_in(
        nn.Sequential(
            nn.Conv2d(channels, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
            edge_sk.SelectiveKernel(16, 16, groups=16),
            *extra,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        )
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
