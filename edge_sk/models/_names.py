"""Names of networks, with their options."""

from __future__ import annotations

from typing import Any

from edge_sk.errors import InputError


def parse_name(name: str) -> tuple[str, dict[str, Any]]:
    """Split ``"NAME@option=value,..."``; numbers, true and false are read as such.

    Raises:
        InputError: No text, or a part that is not ``option=value``.
    """
    if not isinstance(name, str):
        raise InputError(f"{name!r} is no name of a model: give text; edge_sk.list_models() lists the names")
    name, _, rest = name.partition("@")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{part!r} in {name}@{rest} is not option=value")
        options[key.strip()] = _read_value(key.strip(), value.strip())
    return name, options


def _read_value(key: str, text: str) -> Any:
    if key == "kernels":
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
