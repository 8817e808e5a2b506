"""Find sites by the order in which modules are registered: for networks whose Python code cannot be traced."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from edge_sk.grafting import eligibility
from edge_sk.grafting.site import Activation, Left, Site, describe
from edge_sk.tracing import Sharing, is_activation


def find(model: nn.Module) -> tuple[list[Site], list[Left]]:
    """Find the sites of a model by its module structure.

    A convolution's batch normalisation is its next sibling that does anything, its activation the one after that.

    Returns:
        The sites, and the grouped convolutions that are none, each with the reason.
    """
    sharing = Sharing(model)
    followers = {
        id(child): [(f"{prefix}.{name}" if prefix else name, sibling) for name, sibling in later]
        for prefix, parent in model.named_modules()
        for child, later in _siblings(parent)
    }
    sites: list[Site] = []
    left: list[Left] = []
    for name, conv in eligibility.grouped_convolutions(model).items():
        found = _site(sharing, name, conv, followers[id(conv)])
        if isinstance(found, Site):
            sites.append(found)
        else:
            left.append(Left(name, describe(conv), found))
    return sites, left


def _siblings(parent: nn.Module) -> Iterator[tuple[nn.Module, list[tuple[str, nn.Module]]]]:
    children = [(n, child) for n, child in parent.named_children() if not isinstance(child, nn.Identity)]
    for index, (_, child) in enumerate(children):
        yield child, children[index + 1 : index + 3]


def _site(sharing: Sharing, name: str, conv: nn.Conv2d, followers: list[tuple[str, nn.Module]]) -> Site | str:
    if reason := eligibility.why_not_conv(conv, sharing):
        return reason
    if not followers:
        return "no module is registered behind it"
    norm_name, norm = followers[0]
    if reason := eligibility.why_not_norm(norm, sharing):
        return reason
    assert isinstance(norm, nn.BatchNorm2d)
    activation = None
    inside = getattr(norm, "act", None)
    if isinstance(inside, nn.Module) and not isinstance(inside, nn.Identity):
        activation = Activation(type(inside).__name__, inside, "norm")
    elif len(followers) > 1 and is_activation(followers[1][1]):
        path, act = followers[1]
        place = "module" if eligibility.is_plain(act, sharing) else "outside"
        activation = Activation(type(act).__name__, act, place, path if place == "module" else None)
    return Site(name, conv, norm_name, norm, "structure", activation)
