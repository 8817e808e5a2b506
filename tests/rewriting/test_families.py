"""One network of every convolutional family of timm and torchvision, as it is and grafted, keeps its outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import edge_sk
from edge_sk import running
from recipes.graft_table import ARCHS, look_trained

# The graft table's networks, and families of which it has none.
OTHERS = """
    cspresnet50 cspdarknet53 darknet17 dm_nfnet_f0 fasternet_t0 densenet121 dla34 efficientformer_l1 focalnet_tiny_srf
    hrnet_w18_small inception_resnet_v2 inception_v3 inception_v4 levit_conv_128s mambaout_femto nasnetalarge
    poolformer_s12 rdnet_tiny repvgg_a0 resnet18 resnet50_clip resnetv2_50 selecsls42 skresnet18 tresnet_m vgg11_bn
    visformer_tiny cpubone_b0_bfrobust csatv2 cspnext_tiny efficientvim_m1 lcnetv2_small lowformer_b0
"""
TORCHVISION = "alexnet densenet121 googlenet inception_v3 resnet18 squeezenet1_1 vgg11_bn"
NETWORKS = [
    *ARCHS,
    *(f"timm:{name}" for name in OTHERS.split()),
    *(f"torchvision:{name}" for name in TORCHVISION.split()),
]


def _images(model: nn.Module) -> Tensor:
    """Small ones where the network takes them."""
    small = running.random_images(model, (2, 3, 96, 96))
    try:
        model(small)
    except Exception:
        return running.random_images(model, (2, *running.input_shape(model)[1:]))
    return small


@pytest.mark.slow
@pytest.mark.parametrize("grafted", [False, True], ids=["plain", "grafted"])
@pytest.mark.parametrize("name", NETWORKS)
def test_family(name: str, grafted: bool) -> None:
    model = edge_sk.create_model(name, num_classes=10).eval()
    look_trained(model)
    if grafted:
        try:
            model, _ = edge_sk.graft(model)
        except edge_sk.InputError as refused:
            if not any(
                words in str(refused) for words in ("nothing to graft", "nothing else to graft", "has no grouped")
            ):
                raise
            return
    example = _images(model)
    form = edge_sk.reparameterize(model, example)
    images = torch.randn(3, *example.shape[1:])
    with torch.no_grad():
        expected = model(images)
        difference = running.compare(expected, form(images))
        if difference > 1e-5:  # beyond this only by rounding, which float64 tells
            assert difference <= 4 * running.compare(model.double()(images.double()), expected.double())
    assert not form.reparameterized.undone
