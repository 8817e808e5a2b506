"""The report of a graft: what was replaced, what was not and why, and how far the outputs changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from edge_sk.grafting.site import Left


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replaced:
    """A site that became a selective kernel.

    Args:
        name: Dotted path.
        found_by: ``"dataflow"`` (torch.fx) or ``"structure"`` (order of registration, confirmed by a run).
        conv: The convolution that stood there, in short.
        kernels: The branches, for instance ``3+5``.
        stage: See :class:`~edge_sk.grafting.Site`.
        resolution: ``(H, W)`` of its output.
        exact: Whether the unit can start as the site's function, and did.
        difference: Largest change of the site's output, relative to its largest value, the same input given: on noise.
        difference_real: The same on real images.
    """

    name: str
    found_by: str
    conv: str
    kernels: str
    stage: int | None
    resolution: tuple[int, int] | None
    exact: bool
    difference: float
    difference_real: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a graft replaced and left, what it costs, and how much the output differs.

    Args:
        model: Class of the model.
        untraced: Why torch.fx could not follow the whole model; ``None`` if it could.
        init: How the units start.
        input_size: ``(C, H, W)`` that was measured.
        replaced: Sites that became selective kernels.
        left: Grouped and depthwise convolutions that did not.
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
    left: Sequence[Left]
    params: tuple[int, int]
    macs: tuple[int, int] | None
    difference: float | None
    difference_real: float | None
    images: str
    same_choice: float | None

    @property
    def found_by(self) -> str:
        """How the sites were found, in words."""
        ways = [site.found_by for site in self.replaced]
        names = {"dataflow": "dataflow", "structure": "module structure"}
        counts = [(names[way], ways.count(way)) for way in names if way in ways]
        return counts[0][0] if len(counts) == 1 else " and ".join(f"{name} ({count})" for name, count in counts)

    @property
    def exact(self) -> bool:
        """Whether every unit could start as its site's function, and did."""
        return all(site.exact for site in self.replaced)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return dataclasses.asdict(self) | {"found_by": self.found_by, "exact": self.exact}

    def __str__(self) -> str:
        """The report for people."""
        total = len(self.replaced) + len(self.left)
        lines = [
            f"{self.model}: {len(self.replaced)} of {total} grouped convolutions grafted, found by {self.found_by}"
        ]
        if self.untraced:
            lines.append(f"  torch.fx cannot trace all of it: {self.untraced}")
        header = ("site", "was", "kernels", "stage", "output", "difference")
        rows = [
            (
                site.name,
                site.conv,
                site.kernels,
                "" if site.stage is None else str(site.stage),
                "" if site.resolution is None else "{}x{}".format(*site.resolution),
                f"{max(site.difference, site.difference_real):.1e}" + ("" if site.exact else " (not kept)"),
            )
            for site in self.replaced
        ]
        lines += _table(header, rows)
        for reason in dict.fromkeys(item.reason for item in self.left):
            names = [f"{item.name} ({item.conv})" for item in self.left if item.reason == reason]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"left: {', '.join(names[:3])}{more}: {reason}")
        lines.append(f"parameters {_change(*self.params)}")
        if self.macs is not None:
            lines.append(f"MACs       {_change(*self.macs)} at {'x'.join(map(str, self.input_size))}")
        if self.difference is None or self.difference_real is None:
            lines.append(f"init={self.init}: outputs not compared, the network returns no floating-point value")
        else:
            lines.append(
                f"init={self.init}: relative output difference {self.difference:.1e} on noise, "
                f"{self.difference_real:.1e} on {self.images}" + self._choice()
            )
        return "\n".join(lines)

    def _choice(self) -> str:
        return "" if self.same_choice is None else f" (same top-1 on {self.same_choice:.0%} of them)"


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} ({(after - before) / before:+.1%})"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
