"""A small network that was exported once for all tests of the scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import edge_sk
from edge_sk.export.network import Network


@pytest.fixture(scope="session")
def small_network() -> Network:
    """A selective kernel between two convolutions; it has labels, one of them hostile."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        edge_sk.SelectiveKernel(16, 16, groups=16),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    with torch.no_grad():
        model.train()(torch.rand(64, 3, 32, 32))
    labels = [f"digit {i}" for i in range(9)] + ['"nine" \\ <b>']
    return Network(
        arch="small_1.0", model=model.eval(), weights="random", input_size=(3, 32, 32), mean=(0.5,) * 3,
        std=(0.25,) * 3, crop_pct=1.0, labels=labels, data="digits",
    )  # fmt: skip


@pytest.fixture(scope="session")
def small_pte(small_network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its fp32 file, with a record."""
    pytest.importorskip("executorch")
    from edge_sk.export import to_pte

    folder = tmp_path_factory.mktemp("small")
    return folder / to_pte(small_network, folder, argv=["test"]).file
