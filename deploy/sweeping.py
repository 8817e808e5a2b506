"""Every network that an export format must take: the zoo, and grafts of networks that are not ours."""

from __future__ import annotations

import dataclasses

import torch

import edge_sk
from edge_sk.errors import InputError
from edge_sk.export.network import Network, from_arch
from edge_sk.export.settle import settle

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
    """A network at a small image size, with batch-norm statistics as after training; the graph is that of any size."""
    network = from_arch(name.removeprefix(PREFIX))
    model = network.model
    if name.startswith(PREFIX):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, _ = edge_sk.graft(model)
    side = min(size, network.input_size[1])
    shape = (network.input_size[0], side, side)
    return settle(dataclasses.replace(network, arch=name, model=model, input_size=shape), vary=True)
