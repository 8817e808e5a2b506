"""Run a network before and after a graft: where its sites are, and how much each site's output differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from edge_sk.grafting.site import Site
from edge_sk.running import difference, outputs
from edge_sk.selective_kernel import SelectiveKernel

# Relative difference of a network's outputs up to which it counts as kept. In float64 rounding stays orders of
# magnitude below; a network that uses a site in a way nobody saw lies far above.
TOLERANCE = 1e-3


@dataclasses.dataclass
class Observation:
    """What a run of the model showed about one module."""

    calls: int = 0
    resolution: tuple[int, int] | None = None
    given: Any = None
    returned: Any = None


def observe(model: nn.Module, images: Tensor, modules: Sequence[nn.Module]) -> dict[int, Observation]:
    """Run the model and note what it does with some of its modules.

    Returns:
        The observations by ``id`` of the module.
    """
    seen = {id(module): Observation() for module in modules}
    handles: list[RemovableHandle] = []

    def note(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        observation = seen[id(module)]
        observation.calls += 1
        observation.given, observation.returned = (args[0] if args else None), result
        if isinstance(result, Tensor) and result.ndim == 4:
            observation.resolution = (int(result.shape[2]), int(result.shape[3]))

    try:
        handles += [module.register_forward_hook(note) for module in {id(m): m for m in modules}.values()]
        outputs(model, images)
        return seen
    finally:
        for handle in handles:
            handle.remove()


def site_differences(
    model: nn.Module, images: Tensor, units: Sequence[tuple[Site, SelectiveKernel]]
) -> tuple[list[Tensor], list[float]]:
    """Run a grafted model, and at every unit compare its output with what the site would have given for the same input.

    Returns:
        The model's outputs; and one relative difference per unit, ``nan`` for a unit that did not run.
    """
    found: dict[int, float] = {}
    handles = []
    for site, unit in units:

        def compare(module: nn.Module, args: tuple[Any, ...], result: Tensor, site: Site = site) -> None:
            found[id(module)] = difference([_original(site, module, args[0])], [result])

        handles.append(unit.register_forward_hook(compare))
    try:
        results = outputs(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return results, [found.get(id(unit), float("nan")) for _, unit in units]


def _original(site: Site, unit: nn.Module, x: Tensor) -> Tensor:
    """What stood where the unit stands, behind the activation that its branches have, if any."""
    norm = site.norm_module
    x = F.batch_norm(site.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    for name, part in unit.get_submodule("branches.0").named_children():
        x = part(x) if name == "act" else x
    return x
