from __future__ import annotations

import pytest
import torch
from torch import nn

from edge_sk.errors import InputError
from edge_sk.gates import BAM, add_bam


def test_bam_is_the_papers_formula() -> None:
    bam = BAM(64).eval()
    x = torch.randn(2, 64, 9, 9)
    channel = bam.channel(x.mean((2, 3), keepdim=True))
    spatial = bam.spatial(x)
    assert channel.shape == (2, 64, 1, 1)
    assert spatial.shape == (2, 1, 9, 9)
    torch.testing.assert_close(bam(x), x * (1 + torch.sigmoid(channel + spatial)))


def test_bam_needs_stages() -> None:
    with pytest.raises(InputError, match="Linear has no layer1"):
        add_bam(nn.Linear(2, 2))
