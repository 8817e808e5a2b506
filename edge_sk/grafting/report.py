"""The report of a graft: what was replaced, what was not and why, and how far the outputs changed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from edge_sk.grafting.site import Skipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replaced:
    """A :class:`~edge_sk.grafting.Site` that became a selective kernel.

    Args:
        conv: The convolution that was replaced, in short.
        norm: Path of the batch norm that the branches took over; ``None``: they have a bias.
        kernels: The branches, for instance ``3+5``.
        exact: Whether the unit starts as the site's function by construction; others may, see ``difference``.
        difference: Largest change of the site's output, relative to its largest value, the same input given: on noise.
        difference_real: The same on real images.
    """

    name: str
    found_by: str
    conv: str
    norm: str | None
    kernels: str
    stage: int | None
    resolution: tuple[int, int] | None
    exact: bool
    difference: float
    difference_real: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a graft replaced and skipped, what it costs, and how much the output differs.

    Args:
        untraced: Why torch.fx could not follow the whole model; ``None`` if it could.
        input_size: ``(C, H, W)`` that was measured.
        replaced: Sites that became selective kernels.
        left: The skipped convolutions: grouped and depthwise ones that were not replaced.
        params: Parameters before and after.
        macs: MACs before and after (see :mod:`edge_sk.profiling`); ``None`` if they cannot be counted.
        difference: Largest change of the network's output, relative to its largest value, on two images of noise;
            ``None`` if it returns no floating-point value, so that nothing was compared.
        difference_real: The same on real images.
        images: What the real images were.
        same_choice: Share of the real images whose largest output is the same; ``None`` if the output is no vector of
            scores.
    """

    model: str
    untraced: str | None
    init: str
    input_size: tuple[int, ...]
    replaced: Sequence[Replaced]
    left: Sequence[Skipped]
    params: tuple[int, int]
    macs: tuple[int, int] | None
    difference: float | None
    difference_real: float | None
    images: str
    same_choice: float | None

    @property
    def found_by(self) -> str:
        """How the sites were found, in words."""
        counts = Counter(site.found_by for site in self.replaced)
        names = {"dataflow": "dataflow", "structure": "module structure"}
        ways = {name: counts[way] for way, name in names.items() if counts[way]}
        return " and ".join(name if len(ways) == 1 else f"{name} ({count})" for name, count in ways.items())

    @property
    def exact(self) -> bool:
        """Whether every unit starts as its site's function by construction."""
        return all(site.exact for site in self.replaced)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return dataclasses.asdict(self) | {"found_by": self.found_by, "exact": self.exact}

    def __str__(self) -> str:
        grafted, total = len(self.replaced), len(self.replaced) + len(self.left)
        lines = [f"{self.model}: {grafted} of {total} grouped convolutions grafted, found by {self.found_by}"]
        if self.untraced:
            lines.append(f"  torch.fx cannot trace all of it: {self.untraced}")
        rows = [("site", "was", "kernels", "branches", "stage", "output", "difference")]
        for site in self.replaced:
            resolution = "x".join(map(str, site.resolution or ()))
            kept = "" if site.exact else " (not guaranteed)"
            difference = f"{max(site.difference, site.difference_real):.1e}{kept}"
            branches = "bias" if site.norm is None else "batch norm"
            rows.append((site.name, site.conv, site.kernels, branches, str(site.stage), resolution, difference))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        for reason in dict.fromkeys(item.reason for item in self.left):
            names = [f"{item.name} ({item.conv})" for item in self.left if item.reason == reason]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"skipped: {', '.join(names[:3])}{more}: {reason}")
        lines.append(f"parameters {_change(*self.params)}")
        if self.macs is not None:
            lines.append(f"MACs       {_change(*self.macs)} at {'x'.join(map(str, self.input_size))}")
        if self.difference is None or self.difference_real is None:
            lines.append(f"init={self.init}: outputs not compared, the network returns no floating-point value")
        else:
            same = "" if self.same_choice is None else f" (same top-1 on {self.same_choice:.0%} of them)"
            lines.append(
                f"init={self.init}: relative output difference {self.difference:.1e} on noise, "
                f"{self.difference_real:.1e} on {self.images}{same}"
            )
        return "\n".join(lines)


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} ({(after - before) / before:+.1%})"
