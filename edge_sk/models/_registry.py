"""The zoo: its names, and what is known about each."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import re
from collections.abc import Iterable

from edge_sk.errors import InputError
from edge_sk.models import cifar, mobilenet, resnext, shufflenetv2
from edge_sk.models._entry import DEFAULT_CFG, Entry
from edge_sk.models._libraries import PREFIXES
from edge_sk.models._names import parse_name

# Families of timm and torchvision made for phones, by a part of their names.
MOBILE = ("mobilenet", "mobileone", "shufflenet", "mnasnet", "efficientnet_lite", "lcnet", "ghostnet", "fbnet")
MOBILE += ("tinynet", "hardcorenas")


@functools.cache
def entries() -> dict[str, Entry]:
    """The zoo, by name."""
    families = (shufflenetv2, mobilenet, resnext, cifar)
    zoo: dict[str, Entry] = {}
    for entry in (entry for family in families for entry in family.entries()):
        if entry.name in zoo:
            raise RuntimeError(f"two networks are named {entry.name}")
        zoo[entry.name] = entry
    return zoo


def list_models(pattern: str | Iterable[str] = "*", exclude_filters: str | Iterable[str] = ()) -> list[str]:
    """Names of the zoo, in natural order (``sknet26`` before ``sknet101``).

    Args:
        pattern: Shell-style pattern, or several; a name that matches one is listed. Empty: every name.
        exclude_filters: Pattern or patterns of names to leave out.

    Raises:
        InputError: Neither a pattern nor several.

    Example:
        >>> list_models(["sknet*", "senet*"], exclude_filters="*29")
        ['senet26', 'senet50', 'senet101', 'sknet26', 'sknet50', 'sknet101']
    """
    names = _matching(pattern or "*") - _matching(exclude_filters or ())
    return sorted(names, key=lambda name: [float(p) if p[:1].isdigit() else p for p in _split_numbers(name)])


def _matching(patterns: str | Iterable[str]) -> set[str]:
    several = [patterns] if isinstance(patterns, str) or not isinstance(patterns, Iterable) else list(patterns)
    for pattern in several:
        if not isinstance(pattern, str):
            raise InputError(f"{pattern!r} is no pattern of names: give text such as 'sk_*', or a list of such texts")
    return {name for pattern in several for name in fnmatch.filter(entries(), pattern)}


def _split_numbers(name: str) -> list[str]:
    return re.split(r"(\d+(?:\.\d+)?)", name)


def find(name: str) -> Entry:
    """The row of a name.

    Raises:
        InputError: There is none; the message suggests the nearest.
    """
    zoo = entries()
    if name in zoo:
        return zoo[name]
    near = difflib.get_close_matches(name, zoo, n=3)
    near.sort(key=lambda other: (-difflib.SequenceMatcher(None, name, other).ratio(), other))
    hint = f"did you mean {', '.join(near)}?" if near else "edge_sk.list_models() lists the names"
    raise InputError(f"unknown model {name!r}; {hint} (timm:NAME and torchvision:NAME are accepted too)")


def default_recipe(name: str) -> str:
    """Stem of the recipe for a name: ``light``, ``large`` or ``cifar``.

    Of timm's and torchvision's names, families made for phones (:data:`MOBILE`) get ``light`` and all others ``large``,
    as in the zoo.

    Raises:
        InputError: An unknown name of the zoo.
    """
    name, _ = parse_name(name)
    if name.startswith(PREFIXES):
        return "light" if any(family in name for family in MOBILE) else "large"
    return find(name).recipe


def input_size(name: str) -> tuple[int, int, int]:
    """``(C, H, W)`` of the images that a network of the zoo was designed for; 3x224x224 for other libraries' names."""
    name, _ = parse_name(name)
    if name.startswith(PREFIXES):
        return DEFAULT_CFG["input_size"]
    return find(name).default_cfg["input_size"]
