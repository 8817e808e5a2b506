"""Which sites a budget of latency pays for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edge_sk.errors import InputError, shown
from edge_sk.grafting.site import Site

# In the paper (Sec. 4.5) attention follows the scale of the object in the lower and middle stages, and no longer in the
# last one. Stages 2 and 3 work at strides 8 and 16; the others come behind them, the last at the end.
ORDER: dict[int | None, int] = {2: 0, 3: 1, 1: 2, 0: 3, None: 5}


def affordable(sites: Sequence[Site], budget: float | None, costs: Any) -> list[Site]:
    """The sites that selective kernels fit into a budget at, taken in :data:`ORDER` as long as each one's cost fits.

    Args:
        sites: Candidates, in the order of the network.
        budget: Largest latency, as a share of the plain network's; ``None``: all sites.
        costs: As :func:`edge_sk.costs.read_costs` takes them.

    Raises:
        InputError: The budget is no number above 1 or pays for no site, or the costs are missing or do not fit.
    """
    if budget is None:
        if costs is not None:
            raise InputError("costs= goes with budget=: give the latency that they are to stay within")
        return list(sites)
    if not isinstance(budget, int | float) or isinstance(budget, bool) or not 1 < budget < math.inf:
        raise InputError(f"budget={shown(budget)} is not a share of the plain network's latency, above 1 (1.10)")
    if costs is None:
        raise InputError(
            "budget= needs costs=, what each unit costs on a device; the repository's deploy/unit_costs.py measures it"
        )
    from edge_sk.costs import read_costs  # loads pydantic

    table = read_costs(costs, [site.name for site in sites], "select")
    prices = {site.name: table.units[site.name]["select"] / table.plain for site in sites}
    room, taken = budget - 1 + 1e-9, set[str]()
    for site in sorted(sites, key=lambda site: ORDER.get(site.stage, 4)):
        if prices[site.name] <= room:
            room -= prices[site.name]
            taken.add(site.name)
    if not taken:
        smallest = 1 + min(prices.values(), default=0)
        raise InputError(f"budget={budget} pays for no site: the smallest ratio that does is {smallest:.3f}")
    return [site for site in sites if site.name in taken]
