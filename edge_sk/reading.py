"""Read what users give: every failure is one short line."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from edge_sk.errors import InputError, short, shown

# The largest file that we write, a report of a hundred networks, has 2 MB.
LARGEST = 64 << 20
# Deeper values overflow the stack of whatever reads or prints them next; ours have five levels.
DEEPEST = 50

Model = TypeVar("Model", bound=BaseModel)


def read_text(path: str | os.PathLike[str], *, missing: str | None = None) -> str:
    """The text of a file in UTF-8.

    Raises:
        InputError: There is no such file (``missing`` is the message then), it is no regular file, too large, or not
            UTF-8.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a file")
        if status.st_size > LARGEST:
            raise InputError(f"{path} has {status.st_size} bytes, more than the {LARGEST} that are read")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(missing or f"{path} does not exist") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8") from None


def read_json(path: str | os.PathLike[str], *, missing: str | None = None) -> Any:
    """The value in a JSON file; errors as in :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, missing=missing), str(path))


def parse_json(text: str, origin: str) -> Any:
    """The value of JSON text.

    Raises:
        InputError: It is not JSON, or has NaN, infinity, a key twice, or more than 50 levels; ``origin`` names it.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
        if "\\ud" in text.lower():  # an escape may be half a character, which nothing can print or write
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin} is not JSON: {short(error)}") from None
    return _shallow(value, origin)


def read_yaml(path: str | os.PathLike[str], *, missing: str | None = None) -> Any:
    """The value in a YAML file; errors as in :func:`read_text` and :func:`parse_yaml`."""
    return parse_yaml(read_text(path, missing=missing), str(path))


def parse_yaml(text: str, origin: str) -> Any:
    """The value of YAML text: JSON's types, with YAML 1.2's floats (``4e-5``), and no dates.

    Raises:
        InputError: It is not YAML, or has an alias, a key twice, an unknown tag, or more than 50 levels; ``origin``
            names it.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    # PyYAML's own errors, and whatever its conversions raise: ValueError for an integer of 5,000 digits, KeyError for
    # `!!bool x`, AttributeError for `!!timestamp x`.
    except Exception as error:
        raise InputError(f"{origin} is not YAML: {short(error)}") from None
    return _shallow(value, origin)


def to_yaml(value: Any) -> str:
    """A value as YAML text that :func:`parse_yaml` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def validated(kind: type[Model], values: Any, origin: str | os.PathLike[str]) -> Model:
    """``values`` as a pydantic model.

    Raises:
        InputError: They do not fit: ``origin`` and the first three wrong fields with their values are named.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [explained(dict(problem)) for problem in error.errors(include_url=False)]
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{origin}: {'; '.join(problems[:3])}{more}") from None


def explained(problem: dict[str, Any]) -> str:
    """One of pydantic's errors as ``field: what is wrong (got value)``."""
    place = short(".".join(map(str, problem["loc"])))
    message = short(problem["msg"].removeprefix("Value error, "))
    given = "" if problem["type"] in ("missing", "value_error") else f" (got {shown(problem['input'])})"
    return f"{place}: {message}{given}" if place else f"{message}{given}"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _shallow(value: Any, origin: str) -> Any:
    level = [value]
    for _ in range(DEEPEST):
        nested = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in nested for item in items]
        if not level:
            return value
    raise InputError(f"{origin} is nested more than {DEEPEST} levels deep")


class _Loader(yaml.SafeLoader):
    """YAML without what surprises: aliases, keys twice, dates; and with the floats of YAML 1.2."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own form)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        _unique([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the text that :class:`_Loader` would take for a number."""


# PyYAML follows YAML 1.1 and reads 4e-5, which has no dot, as a string.
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )
