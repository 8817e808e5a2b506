"""Damage a JSON value at random, one or a few places at a time: what readers must take or refuse in one short line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from edge_sk.errors import InputError

REMOVED = object()
ODD = [
    *(REMOVED, None, True, False, 0, 1, -1, 3, 10**15, 10**16, 10**400, -(10**20), 0.0, -0.0, 0.5, 5e-324, 1e308),
    *(float("nan"), float("inf"), "", "0", "nan", "../x", "a/b", "\0", "\ud800", "<b>", "x" * 10_000, "\n\x1b[31m"),
    *([], [[]], [0], [None], [1] * 50, ["\ud800"], {}, {"a": 1}, {"": {}}, {"\ud800": 1}),
]  # fmt: skip


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in items for path in ((*here, key), *places(inner, (*here, key)))]


def damaged(value: Any) -> st.SearchStrategy[Any]:
    """Copies of ``value`` with one to three places changed, removed or doubled."""
    changes = st.lists(st.tuples(st.sampled_from(places(value)), st.sampled_from(ODD)), min_size=1, max_size=3)
    return changes.map(lambda chosen: _changed(copy.deepcopy(value), chosen))


def _changed(value: Any, changes: list[tuple[tuple[Any, ...], Any]]) -> Any:
    for (*path, last), new in changes:
        try:
            inner = value
            for key in path:
                inner = inner[key]
            if new is REMOVED:
                del inner[last]
            else:
                inner[last] = copy.deepcopy(new)
        except (IndexError, KeyError, TypeError):
            continue  # an earlier change removed the place
    return value


def problem(function: Callable[[], Any]) -> str:
    """The message of the call's ``InputError``, which must be one short line of text; empty where it raises none."""
    try:
        function()
    except InputError as error:
        message = str(error)
        assert message.isprintable()
        assert 0 < len(message) < 1500
        return message
    return ""
