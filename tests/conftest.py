from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

# Started in the background, pytest and with it the scripts that it tests would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits() -> Tensor:
    """Real images: 64 handwritten digits, (64, 3, 64, 64) in [0, 1]."""
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images[:64]).float()[:, None] / 16
    return nn.functional.interpolate(images, size=(64, 64), mode="bilinear").expand(-1, 3, -1, -1).contiguous()


@pytest.fixture(scope="session")
def lived_in() -> Callable[[nn.Module], nn.Module]:
    """Give a network the look of a trained one: an untrained net hides errors behind BN's zeros and ones."""

    def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)

        def uniform(tensor: Tensor, low: float, high: float) -> None:
            tensor.data.copy_(torch.empty_like(tensor).uniform_(low, high, generator=generator))

        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                assert module.running_var is not None
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.5, 1.5)
                if module.affine:
                    uniform(module.weight, 0.7, 1.3)
                    uniform(module.bias, -0.2, 0.2)
        return model.eval()

    return randomise
