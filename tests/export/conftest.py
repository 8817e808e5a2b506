"""Networks that were exported once for all tests: lowering takes its time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edge_sk
from edge_sk.export.network import Network
from edge_sk.training.digits import CLASSES

SIZE = 48


def settle(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """Make an untrained network know digits without training: batch statistics of real images, a fitted last layer."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # average over the batches
    features: list[torch.Tensor] = []
    fc = model.get_submodule("fc")
    assert isinstance(fc, nn.Linear)
    with torch.no_grad():
        model.train()
        for batch in images.split(128):
            model(batch)
        model.eval()
        hook = fc.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        for batch in images.split(128):
            model(batch)
        hook.remove()
        x = torch.cat(features)
        x = torch.cat((x, torch.ones(len(x), 1)), 1)
        wanted = nn.functional.one_hot(labels, 10).float()
        solution = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(x.shape[1]), x.T @ wanted)
        fc.weight.copy_(solution[:-1].T)
        fc.bias.copy_(solution[-1])
    return model


@pytest.fixture(scope="session")
def knows_digits() -> Network:
    """A selective-kernel ShuffleNetV2 that reads digits."""
    torch.manual_seed(0)
    model = edge_sk.create_model("sk_shufflenetv2_0.5", num_classes=10)
    mean, std = (0.5, 0.45, 0.4), (0.3, 0.25, 0.2)
    network = Network(
        arch="sk_shufflenetv2_0.5", model=model, weights="settled", input_size=(3, SIZE, SIZE), mean=mean, std=std,
        crop_pct=1.0, labels=list(CLASSES), knows_data=True,
    )  # fmt: skip
    batches = list(network.images(split="train", limit=1024))
    images, labels = torch.cat([b for b, _ in batches]), torch.cat([y for _, y in batches])
    normalized = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    settle(model, normalized, labels)
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
