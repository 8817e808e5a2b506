"""What is changed around ExecuTorch's own code."""

from __future__ import annotations

import contextlib

import pytest
from torch import nn
from torch.fx.traceback import NodeSource

import edge_sk
from edge_sk.export import executorch_tools, pte
from edge_sk.export.network import Network

pytest.importorskip("executorch")


def test_shared_provenance_changes_no_byte_and_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = edge_sk.SelectiveKernel(3, 6, groups=3, min_width=4)
    model = nn.Sequential(unit, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)).eval()
    network = Network(
        arch="small", model=model, weights="random", input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    _, shared, _ = pte.lower(network)
    assert not hasattr(NodeSource, "__deepcopy__")
    monkeypatch.setattr(pte, executorch_tools.shared_provenance.__name__, contextlib.nullcontext)
    _, copied, _ = pte.lower(network)
    assert bytes(shared.buffer) == bytes(copied.buffer)
