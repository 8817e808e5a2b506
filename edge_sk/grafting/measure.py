"""Compare a network before and after a graft: its outputs, and the output of every site."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_sk import running
from edge_sk.errors import InputError
from edge_sk.grafting.site import Site
from edge_sk.selective_kernel import SelectiveKernel

# Relative difference of a network's outputs up to which it counts as kept. In float64 rounding stays orders of
# magnitude below; a network that uses a site in a way that was not found lies far above.
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a graft changed on a batch of images.

    Args:
        network: Relative difference of the output; ``None`` if it has no floating-point value.
        sites: Relative difference of each unit's output from its site's, given the same input; ``nan``: it did not run.
        same_choice: Share of the images with the same largest score; ``None`` if the output is no vector of scores.
    """

    network: float | None
    sites: list[float]
    same_choice: float | None


def compare(
    model: nn.Module, grafted: nn.Module, images: Tensor, units: Sequence[tuple[Site, SelectiveKernel]] = ()
) -> Comparison:
    """Run a network and its graft on the same images."""
    sites: dict[nn.Module, Site] = {unit: site for site, unit in units}
    found: dict[nn.Module, float] = {}

    def note(unit: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        found[unit] = running.difference([_original(sites[unit], unit, args[0])], [result])

    with contextlib.ExitStack() as stack:
        for unit in sites:
            stack.enter_context(unit.register_forward_hook(note))
        for network in (model, grafted):
            stack.enter_context(running.evaluating(network))
        before, after = running.outputs(model, images), running.outputs(grafted, images)
    same_choice = None
    if len(before) == 1 and before[0].ndim == 2 and before[0].shape[1] > 1:
        same_choice = float((before[0].argmax(1) == after[0].argmax(1)).float().mean())
    return Comparison(
        network=running.difference(before, after) if any(tensor.numel() for tensor in before) else None,
        sites=[found.get(unit, math.nan) for _, unit in units],
        same_choice=same_choice,
    )


def _original(site: Site, unit: nn.Module, x: Tensor) -> Tensor:
    """The site's output, behind the activation that the unit's branches have, if any."""
    x = site.conv(x)
    if (norm := site.norm_module) is not None:
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    act = getattr(unit.get_submodule("branches.0"), "act", None)
    return x if act is None else act(x)


def check_kept(model: nn.Module, grafted: nn.Module, images: Tensor, difference: float | None) -> None:
    """Refuse a graft that changed the network although every unit has its site's function.

    Raises:
        InputError: The output changed, or is not finite.
    """
    # Deep networks amplify rounding, and low precision rounds more: compare again in types that round less.
    for dtype in (torch.float32, torch.float64):
        if difference is None or difference <= TOLERANCE:
            return
        if torch.finfo(dtype).eps < torch.finfo(images.dtype).eps:
            before, after = (running.copied(network).to(dtype) for network in (model, grafted))
            difference = compare(before, after, images.to(dtype)).network
    if difference is None or math.isnan(difference):
        raise InputError(
            f"the output of {type(model).__name__} is not finite (nan or inf) before or after the graft, so nothing "
            "shows that it was kept: look at its weights and, if you gave some, at the images"
        )
    if difference > TOLERANCE:
        raise InputError(
            f"the output of {type(model).__name__} changed by {difference:.1e} although every site kept its function: "
            "either it is random in eval mode, or its forward uses a replaced module in a way that was not found; "
            "leave those out with where="
        )
