"""Networks that were exported once for all tests: lowering takes its time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edge_sk
from edge_sk.export.network import UNTRAINED, Network
from edge_sk.training.digits import CLASSES

SIZE = 40
# Three units: lowering int8 takes seconds for every unit.
ARCH = "sk_shufflenetv2_0.5@sk_units=early"


def learn(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, steps: int) -> None:
    """Train for a few seconds: random weights hardly tell images apart, and hide what an export does to them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(images), (64,), generator=generator)
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


@pytest.fixture(scope="session")
def knows_digits() -> Network:
    """A selective-kernel ShuffleNetV2 that reads digits, though too unsurely for the threshold of int8."""
    torch.manual_seed(0)
    model = edge_sk.create_model(ARCH, num_classes=10)
    mean, std = (0.5, 0.45, 0.4), (0.3, 0.25, 0.2)
    network = Network(
        arch=ARCH, model=model, weights=UNTRAINED, input_size=(3, SIZE, SIZE), mean=mean, std=std,
        crop_pct=1.0, labels=list(CLASSES), knows_data=True,
    )  # fmt: skip
    batches = list(network.images(split="train", limit=1024))
    images, labels = torch.cat([b for b, _ in batches]), torch.cat([y for _, y in batches])
    normalized = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    learn(model, normalized, labels, steps=200)
    return network


@pytest.fixture(scope="session")
def exported(knows_digits: Network, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Path and record of the network's fp32 and int8 files."""
    pytest.importorskip("executorch")
    from edge_sk.export import to_pte

    folder = tmp_path_factory.mktemp("exported")
    files: dict[str, tuple[Path, Any]] = {}
    for precision in ("fp32", "int8"):
        record = to_pte(knows_digits, folder, precision=precision, bundle=precision == "fp32", argv=["test"])
        files[precision] = (folder / record.file, record)
    return files
