"""Every network that an export format must take: the zoo, and grafts of networks that are not ours."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

import edge_sk
from edge_sk.errors import InputError
from edge_sk.export.network import Network, from_arch

GRAFTS = (
    "timm:mobilenetv1_100",
    "timm:mobilenetv2_100",
    "timm:mobilenetv3_large_100",
    "timm:mobilenetv4_conv_small",
    "timm:efficientnet_b0",
    "timm:efficientnet_lite0",
    "timm:mobileone_s1",
    "timm:ghostnet_100",
    "timm:regnety_002",
    "timm:resnext50_32x4d",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:mobilenet_v3_large",
    "torchvision:mnasnet1_0",
)
"""Selective kernels are put into these with :func:`edge_sk.graft`'s defaults."""

PREFIX = "graft "


def names(pattern: str = "*") -> list[str]:
    """Names of the zoo that match, and with ``*`` the grafts as ``graft NAME``.

    Raises:
        InputError: None matches.
    """
    found = edge_sk.list_models(pattern)
    if not found:
        raise InputError(f"no name of the zoo matches {pattern!r}; edge_sk.list_models() names them")
    return found + ([PREFIX + name for name in GRAFTS] if pattern == "*" else [])


def small_network(name: str, *, size: int = 64) -> Network:
    """A network at a small image size, with batch-norm statistics as after training; the graph is that of any size.

    Freshly built, batch norms are identities and many residual branches end in a zero: an error there would not show,
    and the activations of a deep network would grow beyond half precision, as no trained network's do.
    """
    network = from_arch(name.removeprefix(PREFIX))
    model = network.model
    if name.startswith(PREFIX):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, _ = edge_sk.graft(model)
    side = min(size, network.input_size[1])
    network = dataclasses.replace(network, arch=name, input_size=(network.input_size[0], side, side))
    return dataclasses.replace(network, model=_with_statistics(model, network))


@torch.no_grad()
def _with_statistics(model: nn.Module, network: Network) -> nn.Module:
    """Random affine parts, and statistics at the scale that real images have at each batch norm.

    One scale for all channels: per channel, a nearly dead one would be amplified, and with it the rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def settle(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        power = inputs[0].square().mean()
        norm.running_mean.uniform_(-0.3, 0.3, generator=generator).mul_(power.sqrt())
        norm.running_var.uniform_(0.5, 1.5, generator=generator).mul_(power)
        norm.weight.uniform_(0.7, 1.3, generator=generator)
        norm.bias.uniform_(-0.2, 0.2, generator=generator)

    norms = [module for module in model.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (network.mean, network.std))
    images, _ = next(iter(network.images(split="train", limit=16)))
    model((images - mean) / std)
    for hook in hooks:
        hook.remove()
    return model
