"""Predicates over sites, for ``graft(where=...)``; combine them with ``&``, ``|`` and ``~``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from edge_sk.errors import InputError, shown
from edge_sk.grafting.site import Site


@dataclasses.dataclass(frozen=True, repr=False)
class Where:
    """A predicate over sites that can be combined with others.

    Args:
        test: Says whether a site is chosen.
        text: What it chooses, in words.

    Example:
        >>> depthwise & stages(2, 3)
        depthwise & stages(2, 3)
    """

    test: Callable[[Site], bool]
    text: str

    def __call__(self, site: Site) -> bool:
        """Whether a site is chosen."""
        return self.test(site)

    def __and__(self, other: Callable[[Site], bool]) -> Where:
        return Where(lambda site: self(site) and other(site), f"{self} & {other}")

    def __or__(self, other: Callable[[Site], bool]) -> Where:
        return Where(lambda site: self(site) or other(site), f"({self} | {other})")

    def __invert__(self) -> Where:
        return Where(lambda site: not self(site), f"~{self}")

    def __repr__(self) -> str:
        return self.text


depthwise = Where(lambda site: site.depthwise, "depthwise")
grouped = Where(lambda site: not site.depthwise, "grouped")
stride1 = Where(lambda site: site.stride == 1, "stride1")
# Small maps: 14x14 and 7x7 of an image of 224 pixels.
late = Where(lambda site: site.stride == 1 and site.stage is not None and site.stage >= 3, "late")
# The option sk_units of a name.
NAMED = {"all": Where(lambda site: True, "all"), "stride1": stride1, "early": stride1 & ~late, "late": late}


def stages(*numbers: int) -> Where:
    """Sites of some stages: stage ``s`` works at a stride of ``2 ** (s + 1)``.

    1 to 4 are ResNet's ``layer1`` to ``layer4``, 2 to 4 ShuffleNetV2's ``stage2`` to ``stage4``; networks that name
    their stages otherwise are numbered by resolution all the same.

    Raises:
        InputError: No number, or one that is not a whole number.
    """
    if not numbers or not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise InputError(f"stages{shown(numbers)} does not name stages by number; for instance stages(2, 3)")
    return Where(lambda site: site.stage in numbers, f"stages({', '.join(map(shown, numbers))})")
