"""Find sites by the order in which modules are registered: for networks whose Python code cannot be traced."""

from __future__ import annotations

import itertools
from typing import Any

from torch import nn

from edge_sk.grafting import eligibility
from edge_sk.grafting.site import Left, Site, describe
from edge_sk.tracing import Sharing


def find(model: nn.Module) -> tuple[list[Site], list[Left]]:
    """Find the sites of a model by its module structure.

    A convolution's batch normalisation is its next sibling that is no identity.

    Returns:
        The sites, and the grouped convolutions that are none, each with the reason.
    """
    sharing = Sharing(model)
    followers = {
        id(child): (f"{prefix}.{name}" if prefix else name, sibling)
        for prefix, parent in model.named_modules()
        for (_, child), (name, sibling) in itertools.pairwise(_children(parent))
    }
    sites: list[Site] = []
    left: list[Left] = []
    for name, conv in eligibility.grouped_convolutions(model).items():
        found = _site(sharing, name, conv, followers.get(id(conv)))
        if isinstance(found, Site):
            sites.append(found)
        else:
            left.append(Left(name, describe(conv), found))
    return sites, left


def _children(parent: nn.Module) -> list[Any]:
    """The children that do something, by name."""
    return [(name, child) for name, child in parent.named_children() if not isinstance(child, nn.Identity)]


def _site(sharing: Sharing, name: str, conv: nn.Conv2d, follower: tuple[str, nn.Module] | None) -> Site | str:
    if reason := eligibility.why_not_conv(conv, sharing):
        return reason
    if follower is None:
        return "no module is registered behind it"
    norm_name, norm = follower
    if reason := eligibility.why_not_norm(norm, sharing):
        return reason
    assert isinstance(norm, nn.BatchNorm2d)
    return Site(name, conv, norm_name, norm, "structure")
