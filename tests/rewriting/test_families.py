"""One network of each convolutional family of timm and torchvision, as it is and grafted, keeps its outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import edge_sk
from edge_sk import running
from recipes.graft_table import look_trained

TIMM = """
    mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small lcnet_050 tf_efficientnet_lite0
    fbnetv3_b mixnet_s ghostnet_100 ghostnetv2_100 repghostnet_100 rexnet_100 repvit_m0_9 fastvit_t8 mobileone_s0
    repvgg_a0 starnet_s1 hgnetv2_b0 ese_vovnet19b_dw efficientvit_b0 efficientvit_m0 efficientformer_l1
    efficientformerv2_s0 shvit_s1 swiftformer_xs nextvit_small edgenext_xx_small mobilevit_s tiny_vit_5m_224
    coatnet_rmlp_nano_rw_224 convnext_atto convmixer_768_32 pvt_v2_b0 regnety_002 regnetz_b16 resnet18
    resnext50_32x4d skresnet18 gcresnext26ts resnest14d res2next50 dla34 dpn48b xception41 nf_regnet_b0
    legacy_seresnext26_32x4d cspresnet50 dm_nfnet_f0 fasternet_t0 densenet121 focalnet_tiny_srf hrnet_w18_small
    inception_v3 inception_next_tiny levit_conv_128s mambaout_femto poolformer_s12 rdnet_tiny resnet50_clip
    resnetv2_50 selecsls42 tresnet_m vgg11_bn visformer_tiny cpubone_b0_bfrobust csatv2 cspnext_tiny
    efficientvim_m1 lcnetv2_small lowformer_b0
"""
TORCHVISION = """
    mobilenet_v3_small mnasnet0_5 efficientnet_b0 shufflenet_v2_x0_5 regnet_y_400mf resnext50_32x4d convnext_tiny
    alexnet densenet121 googlenet inception_v3 squeezenet1_1 vgg11_bn
"""
NETWORKS = [*(f"timm:{name}" for name in TIMM.split()), *(f"torchvision:{name}" for name in TORCHVISION.split())]


def _images(model: nn.Module) -> Tensor:
    """A small one where the network takes it."""
    small = running.random_images(model, (1, 3, 96, 96))
    try:
        with torch.no_grad():
            model(small)
    except Exception:
        return running.random_images(model, running.input_shape(model))
    return small


@pytest.mark.slow
@pytest.mark.parametrize("grafted", [False, True], ids=["plain", "grafted"])
@pytest.mark.parametrize("name", NETWORKS)
def test_family(name: str, grafted: bool) -> None:
    model = edge_sk.create_model(name, num_classes=10).eval()
    look_trained(model)
    example = _images(model)
    if grafted:
        try:
            model, _ = edge_sk.graft(model, input_size=example.shape)
        except edge_sk.InputError as refused:
            if not any(
                words in str(refused) for words in ("nothing to graft", "nothing else to graft", "has no grouped")
            ):
                raise
            pytest.skip("no site for a selective kernel")
    form = edge_sk.reparameterize(model, example)
    images = torch.randn(3, *example.shape[1:])
    with torch.no_grad():
        expected = model(images)
        difference = running.compare(expected, form(images))
        if difference > 1e-5:  # beyond this only by rounding, which float64 tells
            assert difference <= 4 * running.compare(model.double()(images.double()), expected.double())
    rewrites = form.reparameterized
    assert not rewrites.undone
    # Branches on sizes, and its source does more with its children than call them: they are left alone.
    assert not rewrites.left or name in ("timm:visformer_tiny", "timm:csatv2")
    assert rewrites.difference is not None
