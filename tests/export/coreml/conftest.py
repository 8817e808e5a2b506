"""A package that was exported once for all tests: it takes its time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import edge_sk
from edge_sk.export import to_mlpackage
from edge_sk.export.network import Network
from edge_sk.export.record import Record
from tests.export.coreml.networks import make_network


@pytest.fixture(scope="session")
def network(lived_in) -> Network:
    """A selective-kernel network of the zoo with statistics as after training."""
    torch.manual_seed(0)
    model = lived_in(edge_sk.create_model("sk_shufflenetv2_0.5", num_classes=10))
    return make_network(model, arch="sk_shufflenetv2_0.5", input_size=(3, 64, 64))


@pytest.fixture(scope="session")
def exported(network, tmp_path_factory) -> tuple[Path, Record]:
    folder = tmp_path_factory.mktemp("exported")
    record = to_mlpackage(network, folder, precision="fp32", argv=["deploy/export.py", "x"])
    return folder / record.file, record
