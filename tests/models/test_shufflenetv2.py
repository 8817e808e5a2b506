"""ShuffleNetV2 is torchvision's, weight for weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

import edge_sk


@pytest.mark.parametrize("width", ["0.5", "1.0", "1.5", "2.0"])
def test_takes_torchvisions_weights_and_gives_its_output(
    width: str, lived_in: Callable[[nn.Module], nn.Module], digits: Tensor
) -> None:
    theirs = lived_in(torchvision.models.get_model(f"shufflenet_v2_x{width.replace('.', '_')}"))
    ours = edge_sk.create_model(f"shufflenetv2_{width}").eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(digits[:4]), theirs(digits[:4]), rtol=1e-5, atol=1e-5)
