"""Untrained networks in which images survive: without it, parity of some of them could prove nothing."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from edge_sk.export.network import Network

IMAGES = 16


def settle(network: Network, *, vary: bool = False) -> Network:
    """Scale an untrained network's layers so that its batch norms write values of size one; others stay as they are.

    Random weights with fresh statistics can shrink an image layer by layer: every squeeze-and-excitation halves it,
    and the logits of an untrained SE-ShuffleNetV2 are the classifier's bias plus a thousandth of it. Or they grow
    beyond half precision, as no trained network's do. Each batch norm gets one scale for all its channels, the mean
    square of what enters it for training images. One per channel would divide dead channels by next to nothing and
    make rounding errors the largest values.

    Args:
        network: Left as it is.
        vary: Draw means and affine parts, too, and let variances differ. Freshly built, batch norms are identities and
            many residual branches end in a zero, where an error would not show.
    """
    if network.trained:
        return network
    model = copy.deepcopy(network.model).eval()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    generator = torch.Generator().manual_seed(0)

    def scale(norm: Any, inputs: tuple[Tensor]) -> None:
        if norm.running_var is not None:
            power = inputs[0].square().mean()
            if vary:
                norm.running_mean.uniform_(-0.3, 0.3, generator=generator).mul_(power.sqrt())
                norm.running_var.uniform_(0.5, 1.5, generator=generator).mul_(power)
            else:
                norm.running_var.fill_(power)
        if vary and norm.weight is not None:
            norm.weight.uniform_(0.7, 1.3, generator=generator)
            norm.bias.uniform_(-0.2, 0.2, generator=generator)

    hooks = [norm.register_forward_pre_hook(scale) for norm in norms]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (network.mean, network.std))
    try:
        with torch.no_grad():
            images, _ = next(network.images(split="train", limit=IMAGES))
            model((images - mean) / std)
    finally:
        for hook in hooks:
            hook.remove()
    return dataclasses.replace(network, model=model)
