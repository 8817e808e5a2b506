"""Damage to what users give: hypothesis strategies, and the one way in which it may be refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from edge_sk.errors import InputError

extremes = st.sampled_from(
    [
        None,
        True,
        "",
        "x",
        "nan",
        "\ud800",
        "a" * 10_000,
        [],
        {},
        [[]],
        0,
        -1,
        1,
        2**63,
        10**400,
        0.0,
        -0.0,
        1e-300,
        1e308,
    ]
)
values = st.recursive(
    extremes | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn, valid: dict[str, Any]) -> Any:
    """A nested mapping with one to three of its entries replaced, removed or added, or something else entirely."""
    if draw(st.integers(0, 19)) == 0:
        return draw(values)
    damaged = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = damaged
        while True:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not (isinstance(place[key], dict | list) and place[key] and draw(st.booleans())):
                break
            place = place[key]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if action == "remove":
            del place[key]
        elif action == "add" and isinstance(place, dict):
            place[draw(st.text())] = draw(values)
        else:
            place[key] = draw(values)
        if not place:
            break
    return damaged


def outcome(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, str]:
    """What the call returns, and the message of its ``InputError``, which must be one short line."""
    try:
        return function(*args, **options), ""
    except InputError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    assert len(message) < 1500
    return None, message
