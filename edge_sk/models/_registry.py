"""Names of networks: those of the zoo, what is known about each, and the options that may follow a name."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import functools
import re
from collections.abc import Iterable
from typing import Any

from edge_sk.errors import InputError, shown
from edge_sk.models import cifar, mobilenet, resnext, shufflenetv2
from edge_sk.models._entry import Entry

# Networks of other libraries.
PREFIXES = ("timm:", "torchvision:")
# Networks with their weights: a run folder or one that timm saved, and the same on the Hugging Face Hub.
FOLDERS = ("local-dir:", "hf-hub:")
ANY = "edge_sk"  # in timm's registry: networks that have no name of their own there
# Their families that are made for phones, by a part of their names.
MOBILE = ("mobilenet", "mobileone", "shufflenet", "mnasnet", "efficientnet_lite", "lcnet", "ghostnet", "fbnet")
MOBILE += ("tinynet", "hardcorenas")


@functools.cache
def entries() -> dict[str, Entry]:
    """The zoo, by name."""
    rows = [entry for family in (shufflenetv2, mobilenet, resnext, cifar) for entry in family.entries()]
    zoo = {entry.name: entry for entry in rows}
    assert len(zoo) == len(rows), "two networks have one name"
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
    names = _matching(pattern, "*") - _matching(exclude_filters)
    parts = {name: re.split(r"(\d+(?:\.\d+)?)", name) for name in names}  # every second part is a number
    return sorted(names, key=lambda name: [float(p) if p[:1].isdigit() else p for p in parts[name]])


def _matching(patterns: str | Iterable[str] | None, *default: str) -> set[str]:
    try:
        several: list[Any] = [patterns] if patterns and isinstance(patterns, str) else list(patterns or default)
    except (TypeError, ValueError, RuntimeError):  # a number; arrays have no truth value
        several = [patterns]
    for pattern in several:
        if not isinstance(pattern, str):
            raise InputError(f"{shown(pattern)} is no pattern of names: give text such as 'sk_*', or a list of such")
    return {name for pattern in several for name in fnmatch.filter(entries(), pattern)}


def parse_name(name: str) -> tuple[str, dict[str, Any]]:
    """Split ``"NAME@option=value,..."``; numbers, true and false are read as such.

    Raises:
        InputError: No text, a part that is not ``option=value``, or an option twice.
    """
    if not isinstance(name, str):
        raise InputError(f"{shown(name)} is no name of a model: give text; edge_sk.list_models() lists the names")
    name, _, rest = name.partition("@")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{shown(part)} in {name}@{rest} is not option=value")
        key, value = key.strip(), value.strip()
        if key in options:
            raise InputError(f"{name}@{rest} gives {shown(key)} twice")
        options[key] = value if key == "kernels" else _read_value(value)
    return name, options


def _read_value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean A, B?"`` with the nearest of the known names; empty where none is near."""
    near = difflib.get_close_matches(name, known, n=3)
    near.sort(key=lambda other: (-difflib.SequenceMatcher(None, name, other).ratio(), other))
    return f"; did you mean {', '.join(near)}?" if near else ""


def find(name: str) -> Entry:
    """The row of a name.

    Raises:
        InputError: There is none; the message suggests the nearest.
    """
    if name in entries():
        return entries()[name]
    import timm

    hint = did_you_mean(name, entries()) or "; edge_sk.list_models() lists the names"
    if timm.is_model(name):
        hint = f"; did you mean timm:{name}?"
    raise InputError(f"unknown model {name!r}{hint} (timm:NAME, torchvision:NAME and local-dir:RUN are accepted too)")


# What the networks of version 0.1 are called today: its units had an activation in every branch, and MobileNet had them
# at every site. Those of MobileNetV3 and V4 and of other libraries have no name: their activations differed by site.
_OF_0_1 = {"sk_shufflenetv2_*": "act=relu", "sk_mobilenetv[12]_*": "sk_units=all,act=relu6"}


def todays_name(name: str, version: str) -> str:
    """Today's name of a network that was trained by a version of edge_sk.

    Raises:
        InputError: Today's library cannot build it.
    """
    base, _, options = name.partition("@")
    grafted = base.startswith(PREFIXES) and "kernels=" in options
    if not version.startswith("0.1.") or not (grafted or base.startswith(("sk_shufflenet", "sk_mobilenet"))):
        return name
    for pattern, added in _OF_0_1.items():
        if fnmatch.fnmatch(base, pattern):
            return f"{base}@{','.join(filter(None, [added, options]))}"
    raise InputError(f"{name} was trained by edge_sk {version}, which built it differently: use that version for it")


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
